"""What the page shows of a video."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from drawn_videos import draw
from tada.demo.answers import DemoModel, answer, windows_over
from tada.demo.page import PageLimits
from tada.demo.playable import is_playable, write_playable
from tada.localization.localizer import Localization, LocalizedSegment, Localizer
from tada.models.weights import BEST_PACKAGED
from tada.recognition.recognizer import Recognizer, load_recognizer
from tada.video.inputs import source_of
from tada.video.isolation.readers import OpenedVideos, Readers, RemoteVideo, Upload
from tada.video.reader import open_video


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return load_recognizer(BEST_PACKAGED, device="cpu")


def test_scores_over_time_follow_the_video(recognizer: Recognizer, film: Path) -> None:
    told: list[tuple[str, float]] = []
    found = answer(
        [DemoModel(name="motions", model=recognizer)],
        source_of(film),
        advance=lambda what, part: told.append((what, part)),
    )
    json.dumps(found)  # plain values
    (model,) = found["models"]
    curves = {curve["label"]: curve["scores"] for curve in model["curves"]}
    times = model["times"]
    assert found["seconds"] == pytest.approx(4.0)
    assert times == sorted(times)
    assert 0 < times[0] <= times[-1] < 4
    first, last = np.searchsorted(times, 1.0), np.searchsorted(times, 3.0)
    assert curves["left"][first] > 0.5 > curves["up"][first]
    assert curves["up"][last] > 0.5 > curves["left"][last]
    said = recognizer.predict(film)
    assert model["top"] == said.top(5), "what tada predict says"
    assert said.label in curves
    assert len(found["film"]) == len(model["heat"]["frames"]) == 8
    assert base64.b64decode(found["film"][0]["picture"].partition(",")[2]).startswith(b"\xff\xd8")
    calibration = model["calibration"]
    assert np.shape(calibration["values"]) == (len(calibration["layers"]), len(calibration["times"]))
    assert np.std(calibration["values"]) > 0
    assert all(0 <= part <= 1 + 1e-6 for _, part in told)
    assert {what for what, _ in told} >= {"opening the video", "motions goes through the video"}


def test_the_work_ends_where_progress_raises(recognizer: Recognizer, film: Path) -> None:
    def gone(what: str, part: float) -> None:
        raise InterruptedError(what)

    with pytest.raises(InterruptedError, match="opening the video"):
        answer([DemoModel(name="motions", model=recognizer)], source_of(film), advance=gone)


@pytest.mark.parametrize("seconds", [0.2, 2.0, 30.0, 7200.0])
def test_long_videos_have_no_more_windows(recognizer: Recognizer, seconds: float) -> None:
    windows = windows_over(recognizer, seconds, 60)
    assert 1 <= windows.count(seconds) <= 60
    assert windows.window_seconds <= seconds


def test_segments_of_a_localizer(film: Path) -> None:
    class Stub(Localizer):
        def __init__(self) -> None:
            pass

        def localize(self, video: object, **options: object) -> Localization:  # type: ignore[override]
            segments = (
                LocalizedSegment(start_seconds=1.0, end_seconds=2.0, label="wave", score=0.9),
                LocalizedSegment(start_seconds=2.5, end_seconds=3.0, label="<b>", score=0.4),
            )
            return Localization(path=str(video), duration_seconds=4.0, segments=segments)

    found = answer([DemoModel(name="when", model=Stub())], source_of(film))["models"][0]
    assert (found["kind"], found["labels"]) == ("localizer", ["<b>", "wave"])
    assert found["segments"][0] == {"start_seconds": 1.0, "end_seconds": 2.0, "label": "wave", "score": 0.9}


def test_what_browsers_play(film: Path, readers: Readers, tmp_path: Path) -> None:
    assert is_playable(str(film))
    with open_video(film) as video:
        frames, times = video.frames(range(len(video))), video.times_seconds
    other = draw(tmp_path / "film.avi", frames, codec="mpeg4", fps=16)
    assert not is_playable(str(other))
    done: list[float] = []
    upload, limits = Upload(name="film.avi", file=None, path=str(other)), PageLimits().decoding
    with readers.source(upload, OpenedVideos(), limits).open() as remote:
        assert isinstance(remote, RemoteVideo)
        assert not remote.ask_of_file(is_playable)
        write_playable(remote, tmp_path / "copy.mp4", done.append)
    assert is_playable(str(tmp_path / "copy.mp4"))
    assert done[-1] == 1
    with open_video(tmp_path / "copy.mp4") as copy:
        assert np.abs(copy.times_seconds - times).max() < 0.01
        assert np.abs(copy.frames([40]).astype(float) - frames[[40]]).mean() < 12
