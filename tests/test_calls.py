"""Arguments of calls: what is of another type than the function says is told in a line, before anything is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tada
from tada.display.plots import save_confusion_matrix
from tada.errors import CheckpointError, OptionError, TooLargeError
from tada.system.calls import checked
from tada.video.annotate import annotate_video
from test_python import LOCALIZATION, PREDICTION
from told_by_brightness import segments


@checked(count=1)
def call(path: str | Path, count: int = 1, *, part: float | None = None, deep: bool = False, **more: Any) -> Any:
    return path, count, part, deep


TAKEN: list[dict[str, Any]] = [{"path": "a"}, {"path": Path("a"), "count": np.int64(3), "part": np.float32(0.5)}]
TAKEN += [{"path": "a", "part": 2, "deep": np.True_, "count": torch.tensor(3), "other": None}]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, r"^call\(path, count, part, deep, more\): missing a required argument: 'path'$"),
    ({"path": None}, "^path = None should be a path$"),
    ({"path": "a", "count": True}, "^count = True should be a whole number$"),
    ({"path": "a", "count": 1.5}, "^count = 1.5 should be a whole number$"),
    ({"path": "a", "count": 0}, "^count = 0 should be at least 1$"),
    ({"path": "a", "part": "2"}, "^part = '2' should be a finite number or None$"),
    ({"path": "a", "part": float("nan")}, "^part = nan should be a finite number or None$"),
    ({"path": "a", "deep": 1}, "^deep = 1 should be True or False$"),
    ({"path": "a", "deep": np.zeros((9, 9))}, "^deep = a ndarray should be True or False$"),
]


def test_arguments_are_taken_or_refused_by_their_annotations() -> None:
    for given in TAKEN:
        assert call(**given)[0] == given["path"]
    for given, message in REFUSED:
        with pytest.raises(OptionError, match=message):
            call(**given)


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "load": (lambda: tada.load(None), "run = None should be a path"),
    "train": (lambda: tada.train(None, None, "out"), "data = None should be a path or a VideoTable"),
    "too few": (lambda: tada.train("clips", "out"), r"train\(recipe, data, out, .*missing a required argument: 'out'"),
    "too few, and a field": (lambda: tada.train("clips", out="run", epochs=1), "missing a required argument: 'data'"),
    "empty": (lambda: tada.load(""), "run is an empty text: give the folder of a run"),
    "limit": (lambda: tada.train(None, "clips", "out", limit=True), "limit = True should be a whole number"),
    "evaluate": (lambda: tada.evaluate("run", "clips", views=3), "views = 3 should be a Views or a text or None"),
    "network": (lambda: tada.create_model("tada2d_tiny", num_classes="3"), "num_classes = '3' should be a whole"),
    "top": (lambda: PREDICTION.top("a"), "count = 'a' should be a whole number"),
    "fewer": (lambda: PREDICTION.to_rows(-1), "count = -1 should be at least 0"),
    "picture": (lambda: LOCALIZATION.plot(None), "picture = None should be a path"),
    "window": (lambda: segments().predict("a.mp4", window_seconds="2"), "window_seconds = '2' should be a finite"),
    "no argument": (lambda: segments().predict("a.mp4", top=3), r"no argument 'top': its answers have \.top\(3\)"),
    "near": (lambda: segments()("a.mp4", clips=3), r"no argument 'clips'; did you mean 'num_clips'\? It is predict\("),
    "swapped": (lambda: tada.predict("tada2d_tiny_motion", "a.mp4"), "is a model: tada.predict takes the video first"),
    "swapped too": (lambda: tada.predict(segments(), "a.mp4"), "'Recognizer' is a model: tada.predict takes the video"),
    "ending": (lambda: save_confusion_matrix(np.eye(2), "ab", Path("x.xyz")), "'x.xyz' ends in .xyz, and pictures are"),
    "video": (lambda: annotate_video("a.mp4", "b.avi", []), "'b.avi' ends in .avi, and videos are written as MP4"),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_wrong_call_is_one_line_and_writes_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given, message = CALLS[case]
    with pytest.raises(OptionError, match=message) as raised:
        given()
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_misspelled_are_answered_with_the_nearest() -> None:
    with pytest.raises(CheckpointError, match="did you mean 'tada2d_tiny_motion'"):
        tada.load("tada2d_tiny_motoin")


@pytest.mark.parametrize("name", ["tada2d_tiny", "tsn_r18", "tadaconvnext_t"])
def test_a_network_says_what_clips_are(name: str) -> None:
    with torch.device("meta"):
        network = tada.create_model(name, num_classes=2)
        for shape, way_out in (
            ((3, 4, 32, 32), r"this seems to be one clip, clips\[None\]"),
            ((1, 4, 3, 32, 32), r"this seems to be \[N, T, 3, H, W\], clips.transpose\(1, 2\)"),
            ((1, 4, 4, 32, 32), "three colors$"),
        ):
            with pytest.raises(OptionError, match=rf"should be \[N, 3, T, H, W\].*{way_out}"):
                network(torch.zeros(shape))


def test_frames_of_strips_are_refused_wherever_they_come_from() -> None:
    for given in (np.zeros((8, 2, 4000, 3), np.uint8), torch.zeros(2, 4000, 2, 3, dtype=torch.uint8)):
        with pytest.raises(TooLargeError, match=r"of (4000x2|2x4000) is a strip, more than 50 times as long as wide"):
            segments().predict(given)
