"""Load any trained model by its run, file or name; and predict in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from tada.errors import OptionError
from tada.localization.localizer import CARD_FILE, Localization, Localizer, load_localizer
from tada.models.hub import is_hub_id
from tada.models.onnx_model import ONNX_SUFFIX
from tada.models.weights import BEST_PACKAGED, packaged_names
from tada.models.weights import CARD_FILE as MODEL_CARD_FILE
from tada.recognition.prediction import Prediction
from tada.recognition.recognizer import Recognizer, load_recognizer
from tada.system.calls import checked

if TYPE_CHECKING:
    from tada.video.inputs import VideoInput

    Answer = Prediction | Localization


@checked()
def load(
    run: str | PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    compile: bool = False,
) -> Recognizer | Localizer:
    """Load a trained recognizer, a localizer, or an exported file. All have the same ``predict``.

        tada.load("runs/first").predict("a.mp4").label      # what happens
        tada.load("runs/when").predict("a.mp4").segments    # what happens when
        tada.load("model.onnx").predict("a.mp4").top(3)

    Args:
        run: the folder of a run of `tada train` or `tada localize train`, OUT.onnx of `tada export`, the name of
            weights that ship with tada, or ``hf-hub:OWNER/NAME``.
        device: "cpu", "cuda", ...; by default a GPU where there is one. ONNX files run on the CPU.
        dtype: the dtype that a recognizer computes in, such as torch.bfloat16; by default that of its weights.
        compile: compile a recognizer by torch.compile at its first clips, which takes a minute.

    Returns:
        A ``Recognizer``, whose ``predict`` returns a ``Prediction``; or a ``Localizer``, whose ``predict`` returns a
        ``Localization``.

    Raises:
        CheckpointError: the folder or file holds no model, or a damaged one; or the hub has none or is out of reach.
        OptionError: dtype or compile for a localizer, whose detector was trained on features computed without them; or
            for an ONNX file, whose graph fixes both.
    """
    if not fspath(run):
        raise OptionError("run is an empty text: give the folder of a run, a file, or the name of weights")
    device = None if device is None else str(device)
    if _kind_of(run) == "localizer":
        if dtype is not None or compile:
            raise OptionError(f"{str(run)!r} is a localizer: it is loaded without dtype and compile")
        return load_localizer(run, device=device)
    return load_recognizer(run, device=device, dtype=dtype, compile=compile)


def _kind_of(folder: str | PathLike[str]) -> Literal["localizer", "recognizer"] | None:
    """Say what a folder holds, by the card in it; None where it holds no trained model, or is no folder."""
    path = Path(fspath(folder))
    if (path / CARD_FILE).exists():
        return "localizer"
    return "recognizer" if (path / MODEL_CARD_FILE).exists() else None


@checked()
def predict(
    video: VideoInput | Iterable[Any],
    model: str | PathLike[str] | Recognizer | Localizer = BEST_PACKAGED,
    *,
    device: str | torch.device | None = None,
    **options: Any,
) -> Answer | list[Answer] | Iterator[Answer]:
    """Predict a video, or each of several, in one call.

        tada.predict("a.mp4")                       # with weights that ship with tada
        tada.predict("a.mp4", "runs/first").label
        tada.predict(frames, "runs/first", fps=30)  # uint8 [T, H, W, 3]

    The model is loaded each time: for call after call, ``tada.load`` it once.

    Args:
        video: what ``Recognizer.predict`` takes.
        model: what ``tada.load`` takes or returns. By default the best weights that ship with tada: they know eight
            motions (left, clockwise, ...) and twelve strokes (circle, star, ...), and nothing else.
        options: arguments of the model's ``predict``, such as fps, num_clips, window_seconds and min_score.

    Raises:
        UserError: as ``load`` and ``Recognizer.predict``.
    """
    if isinstance(video, Recognizer | Localizer) or _is_model(video):
        raise OptionError(
            f"{video if isinstance(video, str) else type(video).__name__!r} is a model: tada.predict takes the video "
            "first, then the model: tada.predict('a.mp4', 'runs/first')"
        )
    loaded = model if isinstance(model, Recognizer | Localizer) else load(model, device=device)
    given: Any = video
    found: Answer | list[Answer] | Iterator[Answer] = loaded.predict(given, **options)
    return found


def _is_model(given: object) -> bool:
    """Whether ``given`` names a model, as ``load`` takes it, and no video."""
    if not isinstance(given, str | PathLike):
        return False
    name = fspath(given)
    if Path(name).is_dir():
        return _kind_of(name) is not None
    return name in packaged_names() or is_hub_id(name) or name.lower().endswith(ONNX_SUFFIX)
