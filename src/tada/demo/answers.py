"""What the page shows of a video: plain values of the answers of each model.

Shapes: N windows, T frames of a clip, K classes.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tada.errors import OptionError, VideoError
from tada.localization.localizer import Localizer
from tada.recognition.prediction import Prediction
from tada.recognition.recognizer import Recognizer
from tada.video.inputs import VideoSource
from tada.video.sliding_windows import SlidingWindows, clips_of
from tada.video.transforms import shrink_to

Advance = Callable[[str, float], None]
"""Called with what is being done, and the fraction of it that is done; it may raise to end the work."""

_MOST_WINDOWS, _LEAST_WINDOWS = 60, 12
_CURVE_SECONDS = 20.0  # that the scores over time may take
_CURVES = 5
_FILM_FRAMES = 8
_FILM_PIXELS = 120  # short side of pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoModel:
    """A model of the page."""

    name: str
    model: Recognizer | Localizer


def answer(
    models: Sequence[DemoModel], source: VideoSource, *, advance: Advance = lambda what, part: None
) -> dict[str, Any]:
    """Ask all models about a video.

    Returns:
        Plain values for JSON: "seconds" of the video, "film" (its frames, evenly spread), and "models", the answers.

    Raises:
        VideoError: the video cannot be read.
    """
    advance("opening the video", 0.0)
    with source.open() as video:
        seconds = video.info.duration_seconds
        middles = (np.arange(_FILM_FRAMES) + 0.5) / _FILM_FRAMES * seconds
        times = np.clip(middles, video.times_seconds[0], video.times_seconds[-1]).tolist()
        pictures = video.frames_played_at(times, shrink=partial(shrink_to, short_side=_FILM_PIXELS))
    return {
        "seconds": seconds,
        "film": _film(pictures, times),
        "models": [_answer(model, source, seconds, advance) for model in models],
    }


def _answer(model: DemoModel, source: VideoSource, seconds: float, advance: Advance) -> dict[str, Any]:
    if isinstance(model.model, Localizer):
        return {
            "name": model.name,
            **_localize(model.model, source, partial(advance, f"{model.name} looks for segments")),
        }
    return {"name": model.name, **_recognize(model.name, model.model, source, seconds, advance)}


def _localize(localizer: Localizer, source: VideoSource, advance: Callable[[float], None]) -> dict[str, Any]:
    found = localizer.localize(source, advance=_summed(advance))
    return {
        "kind": "localizer",
        "segments": [segment.as_dict() for segment in found.segments],
        "labels": sorted({segment.label for segment in found.segments}),
    }


def _recognize(
    name: str, recognizer: Recognizer, source: VideoSource, seconds: float, advance: Advance
) -> dict[str, Any]:
    started = time.perf_counter()
    found = next(recognizer.predict_all([source], advance=_summed(partial(advance, f"{name} recognizes"))))
    if isinstance(found, VideoError):
        raise found
    clip_seconds = (time.perf_counter() - started) / len(found.clips)
    return {
        "kind": "recognizer",
        "top": found.top(_CURVES),
        "found": list(found.found),
        "several": bool(found.thresholds),
        **_scores_over_time(
            recognizer,
            source,
            seconds,
            clip_seconds,
            found.top(1)[0][0],
            partial(advance, f"{name} goes through the video"),
        ),
        **_explain(found, partial(advance, f"{name} explains itself")),
    }


def _summed(advance: Callable[[float], None]) -> Callable[[float], None]:
    """A function to call with what has been done since its last call; ``advance`` gets all of it."""
    done = 0.0

    def add(part: float) -> None:
        nonlocal done
        done += part
        advance(done)

    return add


def usual_seconds(recognizer: Recognizer, seconds: float) -> float:
    """How long the network's training clips were; half of the video's ``seconds`` where it is not known."""
    clip = recognizer.clip
    if clip.sampling == "interval" and clip.fps is not None:
        return clip.num_frames * clip.interval / clip.fps
    return recognizer.card.typical_seconds or seconds / 2


def windows_over(recognizer: Recognizer, seconds: float, most: int) -> SlidingWindows:
    """Windows for scores over time: as long as the network's clips, or shorter in a short video; at most ``most``."""
    window = min(usual_seconds(recognizer, seconds), max(seconds / 2, 0.05))
    return SlidingWindows(window_seconds=window, stride_seconds=max(seconds / most, window / 8, 0.04))


def _scores_over_time(
    recognizer: Recognizer,
    source: VideoSource,
    seconds: float,
    clip_seconds: float,
    label: str,
    advance: Callable[[float], None],
) -> dict[str, Any]:
    """The scores of sliding windows, for ``label`` and the classes that are the most probable ones somewhere."""
    affordable = int(_CURVE_SECONDS / max(clip_seconds, 1e-3))
    windows = windows_over(recognizer, seconds, min(max(affordable, _LEAST_WINDOWS), _MOST_WINDOWS))
    count = windows.count(seconds)
    rows: list[list[float]] = []
    with source.open() as video:
        for clip in clips_of(video, recognizer.clip, windows, range(count)):
            rows.append(recognizer.answer_scores(clip)[0].tolist())
            advance(len(rows) / count)
    scores = np.array(rows)  # [N, K]
    most = scores.max(0)
    most[recognizer.answers.index(label)] = np.inf
    best = np.argsort(-most, kind="stable")[:_CURVES].tolist()
    best.sort(key=lambda place: -scores[:, place].mean())
    return {
        "window_seconds": windows.window_seconds,
        "times": [round((i + 0.5) * windows.stride_seconds, 3) for i in range(count)],
        "curves": [
            {"label": recognizer.answers[place], "scores": [round(score, 4) for score in scores[:, place].tolist()]}
            for place in best
        ],
    }


def _explain(found: Prediction, advance: Callable[[float], None]) -> dict[str, Any]:
    """Heat map and calibrations of the clip in which the most probable class is most probable."""
    advance(0.0)
    try:
        why = found.explain()
    except OptionError as fault:  # an ONNX file
        return {"note": str(fault)}
    shown = sorted({round(i) for i in np.linspace(0, len(why.frames) - 1, _FILM_FRAMES)})
    overlay = why.overlay()[shown]
    parts: dict[str, Any] = {
        "heat": {
            "label": why.label,
            "score": why.score,
            "frames": _film(shrink_to(overlay, short_side=_FILM_PIXELS), [why.times_seconds[i] for i in shown]),
        },
        "note": why.note,
    }
    if why.calibrations:
        num_frames = len(why.times_seconds)
        parts["calibration"] = {
            "layers": list(why.calibrations),
            "times": list(why.times_seconds),
            "values": [_at_frames(strength.numpy(), num_frames) for strength in why.calibration_strength().values()],
        }
    advance(1.0)
    return parts


def _at_frames(values: NDArray[np.floating], num_frames: int) -> list[float]:
    """[T'] -> [T]: the values of a layer that sees every second frame, say, for each frame."""
    stride = -(-num_frames // len(values))
    return [round(float(values[min(i // stride, len(values) - 1)]), 4) for i in range(num_frames)]


def _film(frames: NDArray[np.uint8], times: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"seconds": round(seconds, 3), "picture": picture_url(frame)}
        for frame, seconds in zip(frames, times, strict=True)
    ]


def picture_url(frame: NDArray[np.uint8]) -> str:
    """A frame [H, W, 3] as the address of a JPEG that contains it."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
