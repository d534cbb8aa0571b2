"""ONNX files: load and run them with ONNX Runtime, and read tada's metadata in them.

The metadata entry ``tada`` is the model's card as JSON, with mean and std of the pixels. So the file is enough to run
the network, with tada or without. The entry ``tada_videos`` says which videos it was trained on, for `tada evaluate`.

Shapes: N clips, T frames, H x W pixels, K classes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tada.errors import CheckpointError, OptionError
from tada.models.weights import ModelCard, parse_card, read_bytes

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ONNX_SUFFIX = ".onnx"
CARD_ENTRY = "tada"
"""The metadata entry with the card."""
SPLITS_ENTRY = "tada_videos"
"""The metadata entry with hashes of the training and test videos (``split_hashes``)."""
# The protocol buffer key of weights that are stored in another file: field number, length and text.
_ELSEWHERE = re.compile(rb"\x0a(?:\x08|\x88\x80*\x00)location")
INPUT, OUTPUT = "clips", "logits"
"""[N, 3, T, H, W] float32, normalized; and [N, K]."""


class OnnxNetwork(nn.Module):
    """An ONNX file's network, run by ONNX Runtime on the CPU with as many threads as PyTorch has."""

    def __init__(self, session: InferenceSession) -> None:
        super().__init__()
        self.session = session

    def forward(self, clips: Tensor) -> Tensor:
        """Clips [N, 3, T, H, W], normalized -> logits [N, K], on the clips' device."""
        (logits,) = self.session.run([OUTPUT], {INPUT: clips.cpu().numpy()})
        return torch.from_numpy(logits).to(clips.device)

    def metadata(self) -> dict[str, str]:
        """The file's metadata entries."""
        entries: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        return entries

    def features(self, clips: Tensor) -> Tensor:
        """Refuse, since the graph returns logits only.

        Raises:
            OptionError: always.
        """
        raise OptionError("an ONNX file gives logits and no features: give the run that it was exported from")


def load_onnx(file: Path) -> tuple[OnnxNetwork, ModelCard]:
    """Load an ONNX file of ``tada export``.

    Raises:
        CheckpointError: the file is missing, damaged, or was not written by tada.
        OptionError: ONNX Runtime is not installed.
    """
    network = open_session(file)
    entries = network.metadata()
    if CARD_ENTRY not in entries:
        raise CheckpointError(
            f"{str(file)!r} has no labels and no clip specification (metadata {CARD_ENTRY!r}): it was not written by "
            "`tada export`"
        )
    card, _ = parse_card(file, entries[CARD_ENTRY])
    return network, card


def open_session(file: Path) -> OnnxNetwork:
    """Load an ONNX file's network, without reading its card; raises as ``load_onnx``."""
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        raise OptionError(f"{str(file)!r}: ONNX needs onnxruntime: pip install 'tada-video[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only; its warnings are about its own optimizations
    try:
        data = read_bytes(file)
        if _ELSEWHERE.search(data):  # ONNX Runtime would read them from the working directory
            raise CheckpointError(f"{str(file)!r} keeps weights in other files, which are not opened; export it again")
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can raise any type of error
        raise CheckpointError(
            f"{str(file)!r} is no ONNX file that ONNX Runtime {onnxruntime.__version__} runs, or it is damaged "
            f"({type(error).__name__}); export it again"
        ) from error
    return OnnxNetwork(session)


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime with its telemetry disabled. tada imports it only here.

    By default it records its use in ~/.cache under an id of the machine, and sends that to its maker, from its import
    on. ORT_DISABLE_TELEMETRY=0 allows it.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    module: ModuleType = onnxruntime
    return module
