"""Labeled clips from a browser, the command that trains on them, and live scores."""

from __future__ import annotations

import base64
import io
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tada.demo.gestures as gestures
from tada.data.annotations import read_dataset
from tada.data.motion import draw_motion
from tada.demo.gestures import Clips, Live, Training, Trainings, clip_scores, pack, read_names, read_times
from tada.errors import DataError
from tada.models.weights import BEST_PACKAGED, packaged
from tada.recognition.recognizer import load_recognizer
from tada.video.reader import open_video


def jpeg(frame: np.ndarray, kind: str = "JPEG") -> str:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, kind, quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def motion(name: str, count: int = 30) -> list[str]:
    rng = np.random.default_rng(5)
    frames = draw_motion(name, rng, num_frames=count, width=160, height=120, clutter=0.3, easy=True)
    return [jpeg(frame) for frame in frames]


TIMES = [10 + i / 15 for i in range(30)]


def test_clips_become_videos_and_a_table(tmp_path: Path) -> None:
    clips = Clips(tmp_path)
    for gesture, name in enumerate(("left", "right")):
        for _ in range(3):
            clips.keep(gesture, motion(name), TIMES)
    clips.drop("1-4")
    for name in ("../../x", "1-99", None):
        clips.drop(name)
    assert [file.name for file in clips.files(1)] == ["1-5.mp4", "1-6.mp4"]
    with open_video(clips.files(0)[0]) as video:
        assert (len(video), video.info.width, video.info.height) == (30, 160, 120)
        assert video.times_seconds[-1] == pytest.approx(29 / 15, abs=1e-3)
    assert clips.write_table(tmp_path / "clips.csv", {0: "wave, left", 1: "=right"}) == 5
    table = read_dataset(tmp_path / "clips.csv")
    assert set(table.labels) == {"wave, left", "=right"}


def test_too_few_and_too_many_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = Clips(tmp_path)
    clips.keep(0, motion("left"), TIMES)
    with pytest.raises(DataError, match="'wave' has 1 clip, and a training needs 2 or more of each gesture"):
        clips.write_table(tmp_path / "clips.csv", {0: "wave", 1: "clap"})
    monkeypatch.setattr(gestures, "MOST_CLIPS", 1)
    with pytest.raises(DataError, match="1 clips of a gesture are enough"):
        clips.keep(0, motion("left"), TIMES)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (None, "a clip should have 4 to 90 frames"),
        ([], "a clip should have 4 to 90 frames"),
        (["x"] * 91, "a clip should have 4 to 90 frames"),
        ([3] * 4, "a frame of the clip is too large"),
        (["A" * 200_000] * 4, "a frame of the clip is too large"),
        (["not base64!"] * 4, "a frame of the clip is damaged"),
        ([base64.b64encode(b"GIF89a").decode()] * 4, "a frame of the clip is damaged"),
        ([jpeg(np.zeros((64, 64, 3), np.uint8), "PNG")] * 4, "a frame of the clip is damaged"),
        ([jpeg(np.zeros((8, 8, 3), np.uint8))] * 4, "should have 16x16 to 640x480 pixels"),
        ([jpeg(np.zeros((900, 900, 3), np.uint8))] * 4, "should have 16x16 to 640x480 pixels"),
        ([jpeg(np.zeros((64, 64 + 2 * i, 3), np.uint8)) for i in range(4)], "the frames of the clip differ in size"),
    ],
)
def test_frames_that_are_none(frames: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        Clips(tmp_path).keep(0, frames, [0, 1, 2, 3])
    assert list(tmp_path.rglob("*.mp4")) == []


@pytest.mark.parametrize("times", [None, [0, 1], [0, "1", 2], [0, 1, 1], [2, 1, 0], [0, 1, 1e9], [0, 1, float("nan")]])
def test_times_that_do_not_rise(times: object) -> None:
    with pytest.raises(DataError, match="record it again"):
        read_times(times, 3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({0: "wave"}, "a model tells 2 to 5 gestures apart"),
        ({0: "wave", 1: " wave "}, "two gestures are called 'wave'"),
        ({0: "wave", 1: "  "}, "a gesture's name should have 1 to 40 letters"),
        ({0: "wave", 1: "x" * 41}, "a gesture's name should have 1 to 40 letters"),
        ({0: "wave", 1: "a;b"}, "without ';'"),
        ({0: "wave", 1: "a\x00b"}, "a gesture's name should have"),
        ({0: "wave", 9: "clap"}, "gestures have the numbers 0 to 4"),
        ({0: "wave", "../1": "clap"}, "gestures have the numbers 0 to 4"),
        (["wave", "clap"], "a model tells 2 to 5 gestures apart"),
    ],
)
def test_names_of_gestures(names: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_names(names)


def test_names_are_cleaned() -> None:
    assert read_names({"0": "  wave  left ", "3": "klatschen"}) == {0: "wave left", 3: "klatschen"}


def as_command(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gestures, "training_command", lambda table, run: [sys.executable, "-c", code])


def training(folder: Path) -> Training:
    return Training(table=folder / "clips.csv", run=folder / "run", num_clips=20)


def test_what_the_training_prints_becomes_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = f"import shutil; shutil.copytree({str(packaged(BEST_PACKAGED))!r}, {str(tmp_path / 'run')!r})"
    line = "epoch 8/40  train_loss 0.4519  val_loss 0.0000  val_top1 0.7500  (4.3 s)"
    as_command(f"print('16 training and 4 validation videos'); print({line!r}); {copy}", monkeypatch)
    own = training(tmp_path)
    own.train()
    own._note("16 training and 4 validation videos of 2 classes")
    found = own.as_dict()
    assert found["num_held_out"] == 4
    assert (found["state"], found["epoch"], found["epochs"], found["top1"]) == ("done", 8, 40, 0.75)
    assert "left" in found["labels"]
    assert found["num_frames"] == 8


def test_a_training_that_fails_says_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"tada: {tmp_path}/clips.csv row 3: no such file"
    as_command(f"import sys; print({line!r}, file=sys.stderr); sys.exit(2)", monkeypatch)
    own = training(tmp_path)
    own.train()
    assert (own.state, own.message) == ("failed", "clips.csv row 3: no such file")
    as_command("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", monkeypatch)
    own = training(tmp_path)
    own.train()
    assert own.message == "the training has ended with signal SIGKILL: is there enough memory?"


def test_trainings_wait_for_each_other_and_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_command("import time; time.sleep(600)", monkeypatch)
    trainings, first, second = Trainings(), training(tmp_path), training(tmp_path)
    for own in (first, second):
        trainings.start(own)
    while first.state != "starting":
        time.sleep(0.01)
    assert (trainings.ahead(first), trainings.ahead(second), second.state) == (0, 1, "waiting")
    second.stop()
    while first._process is None:
        time.sleep(0.01)
    first.stop()
    for thread in threading.enumerate():
        if thread.name == "training":
            thread.join(60)
    assert (first.state, second.state) == ("stopped", "stopped")


def test_the_command_mirrors_nothing(tmp_path: Path) -> None:
    words = gestures.training_command(tmp_path / "clips.csv", tmp_path / "run")
    assert words[1:4] == ["-m", "tada", "train"]
    assert words[words.index("--flip-probability") + 1] == "0", "or a wave to the left would train a wave to the right"


def test_live_scores_are_averaged() -> None:
    recognizer = load_recognizer(BEST_PACKAGED, device="cpu")
    live = Live(recognizer)
    first, second = (live.look(motion(name, 8)) for name in ("left", "right"))
    assert first is not None
    assert second is not None
    assert recognizer.answers[int(np.argmax(first))] == "left"
    right = live.recognizer.answers.index("right")
    frames = np.stack(gestures.read_frames(motion("right", 8)))
    assert second[right] == pytest.approx((first[right] + clip_scores(recognizer, frames)[right]) / 2, abs=1e-6)
    with live._lock:
        assert live.look(motion("left", 8)) is None, "a look that comes while another is scored is left out"


def test_the_model_to_take_away(tmp_path: Path) -> None:
    pack(packaged(BEST_PACKAGED), tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        archive.extractall(tmp_path)
    assert "left" in load_recognizer(tmp_path / "gestures", device="cpu").answers
