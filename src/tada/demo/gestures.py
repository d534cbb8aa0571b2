"""Gestures before a camera: clips that a visitor labels, the training on them, and live recognition with the result.

The browser takes the frames: a clip arrives as JPEG pictures with their times. Training runs in a process of its own,
one at a time; other visitors wait their turn.

Shapes: T frames of a clip, K gestures.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tada.data.listed_videos import SEPARATOR
from tada.data.table import composed
from tada.errors import DataError, UserError, counted
from tada.recognition.recognizer import Recognizer, load_recognizer
from tada.system.files import whole_file
from tada.video.transforms import frame_crops
from tada.video.writer import write_video

MOST_GESTURES, LEAST_CLIPS, MOST_CLIPS = 5, 2, 40
"""Gestures of a visitor; clips of each."""
MOST_FRAMES = 90
"""Frames of a clip."""
EPOCHS = 40
"""Of two steps, for ten clips each of two gestures."""
_MOST_LETTERS, _MOST_PIXELS = 100_000, 640 * 480  # of a frame
_LONGEST_NAME = 40
_EPOCH = re.compile(r"epoch (\d+)/(\d+) .*?(?:val_top1 ([\d.]+))?\s+\([\d.]+ s\)")
_VIDEOS = re.compile(r"\d+ training and (\d+) validation videos")
_SMOOTH_LOOKS = 3

Frames = NDArray[np.uint8]


# -- what the browser sends -------------------------------------------------------------------------------------------


def read_frames(sent: object, *, at_least: int = 2) -> list[Frames]:
    """Frames [H, W, 3] of the same even size, from JPEG pictures in base64.

    Raises:
        DataError: they are something else, too many, or too large.
    """
    from PIL import Image, UnidentifiedImageError

    if not isinstance(sent, list) or not at_least <= len(sent) <= MOST_FRAMES:
        raise DataError(f"a clip should have {at_least} to {MOST_FRAMES} frames: record it again")
    frames: list[Frames] = []
    for text in sent:
        if not isinstance(text, str) or len(text) > _MOST_LETTERS:
            raise DataError("a frame of the clip is too large: record it again")
        try:
            data = base64.b64decode(text.rpartition(",")[2], validate=True)
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
                if picture.width * picture.height > _MOST_PIXELS or min(picture.size) < 16:
                    raise DataError("the clip's frames should have 16x16 to 640x480 pixels: record it again")
                frame = np.asarray(picture.convert("RGB"))
        except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError, ValueError) as fault:
            if isinstance(fault, DataError):
                raise
            raise DataError("a frame of the clip is damaged: record it again") from fault
        height, width = (side - side % 2 for side in frame.shape[:2])
        frames.append(np.ascontiguousarray(frame[:height, :width]))
    if len({frame.shape for frame in frames}) > 1:
        raise DataError("the frames of the clip differ in size: record it again, and keep the camera as it is")
    return frames


def read_times(sent: object, count: int) -> list[float]:
    """The times of a clip's frames in seconds, which begin with 0.

    Raises:
        DataError: they are no such numbers.
    """
    if not isinstance(sent, list) or len(sent) != count or not all(isinstance(one, int | float) for one in sent):
        raise DataError("each frame of a clip should have its time: record it again")
    times = [float(one) - float(sent[0]) for one in sent]
    if not all(1e-3 <= later - one < 10 for one, later in pairwise(times)):
        raise DataError("the times of the clip's frames do not rise: record it again")
    return times


def read_names(sent: object) -> dict[int, str]:
    """Names of gestures by number.

    Raises:
        DataError: a name is empty, too long, or there twice.
    """
    if not isinstance(sent, dict) or not 2 <= len(sent) <= MOST_GESTURES:
        raise DataError(f"a model tells 2 to {MOST_GESTURES} gestures apart: record clips of two")
    names: dict[int, str] = {}
    for number, name in sent.items():
        if not str(number).isdecimal() or not 0 <= int(number) < MOST_GESTURES or not isinstance(name, str):
            raise DataError(f"gestures have the numbers 0 to {MOST_GESTURES - 1}, and names")
        clean = composed(" ".join(name.split()))
        if not clean or len(clean) > _LONGEST_NAME or not clean.isprintable() or SEPARATOR in clean:
            raise DataError(
                f"a gesture's name should have 1 to {_LONGEST_NAME} letters, without {SEPARATOR!r}: not {clean[:60]!r}"
            )
        if clean in names.values():
            raise DataError(f"two gestures are called {clean!r}: give them different names")
        names[int(number)] = clean
    return names


# -- clips ------------------------------------------------------------------------------------------------------------


class Clips:
    """The labeled clips of a visitor, as files ``clips/GESTURE-NUMBER.mp4``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clips"
        self._number = 0
        self._lock = threading.Lock()

    def keep(self, gesture: object, frames: object, times: object) -> str:
        """Save a clip; return its name.

        Raises:
            DataError: there are as many clips as the page takes, or it is no clip.
        """
        if not isinstance(gesture, int) or not 0 <= gesture < MOST_GESTURES:
            raise DataError(f"gestures have the numbers 0 to {MOST_GESTURES - 1}")
        if len(self.files(gesture)) >= MOST_CLIPS:
            raise DataError(f"{MOST_CLIPS} clips of a gesture are enough: train, or remove some")
        pictures = read_frames(frames, at_least=4)
        shown = read_times(times, len(pictures))
        with self._lock:
            self._number += 1
            name = f"{gesture}-{self._number}"
        self.folder.mkdir(exist_ok=True)
        write_video(self.folder / f"{name}.mp4", pictures, times_seconds=shown, fast_encode=True)
        return name

    def drop(self, name: object) -> None:
        """Remove a clip; nothing happens if there is none of this name."""
        if isinstance(name, str) and re.fullmatch(r"\d+-\d+", name):
            (self.folder / f"{name}.mp4").unlink(missing_ok=True)

    def files(self, gesture: int) -> list[Path]:
        """The clips of a gesture, the oldest first."""
        return sorted(self.folder.glob(f"{gesture}-*.mp4"), key=lambda file: int(file.stem.partition("-")[2]))

    def write_table(self, file: Path, names: Mapping[int, str]) -> int:
        """Write the clips and their labels as a CSV file beside the folder of clips; return the number of clips.

        Raises:
            DataError: a gesture has too few clips.
        """
        rows = []
        for gesture, name in names.items():
            clips = self.files(gesture)
            if len(clips) < LEAST_CLIPS:
                raise DataError(
                    f"{name!r} has {counted(len(clips), 'clip')}, and a training needs {LEAST_CLIPS} or more of each "
                    "gesture: ten are good"
                )
            rows += [[f"clips/{clip.name}", name] for clip in clips]
        with whole_file(file) as part, part.open("w", encoding="utf-8", newline="") as lines:
            csv.writer(lines).writerows([["path", "label"], *rows])
        return len(rows)


# -- training ---------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class Training:
    """A training in a process of its own, and how far it is."""

    table: Path
    run: Path
    num_clips: int
    state: str = "waiting"
    """"waiting" for another visitor's training, "starting", "training", "done", "failed" or "stopped"."""
    epoch: int = 0
    epochs: int = EPOCHS
    top1: float | None = None
    """Accuracy on the held-out clips."""
    num_held_out: int = 0
    message: str = ""
    """Why it failed."""
    recognizer: Recognizer | None = None
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    _process: subprocess.Popen[str] | None = None
    _is_stopped: bool = False

    def stop(self) -> None:
        """End the process, if it runs."""
        self._is_stopped = True
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()  # so that it writes no more into the visitor's folder

    def train(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Train, and load the result."""
        if self._is_stopped:
            self.state = "stopped"
            return
        self.state, self.started = "starting", time.monotonic()
        lines: deque[str] = deque(maxlen=20)
        with subprocess.Popen(
            training_command(self.table, self.run),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=_environment(),
            start_new_session=True,  # Ctrl-C at the page's terminal is for the page, which ends this process
        ) as process:
            self._process = process
            if self._is_stopped:
                process.kill()
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip())
                self._note(line)
            code = process.wait()
        self.seconds = time.monotonic() - self.started
        if self._is_stopped:
            self.state = "stopped"
        elif code != 0:
            told = next((line for line in reversed(lines) if line.startswith("tada: ")), "")
            reason = f"signal {signal.Signals(-code).name}: is there enough memory?" if code < 0 else f"code {code}"
            self.message = told.removeprefix("tada: ").replace(f"{self.table.parent}{os.sep}", "") or (
                f"the training has ended with {reason}"
            )
            self.state = "failed"
        else:
            try:
                self.recognizer = load_recognizer(self.run, device="cpu")
            except UserError as fault:
                self.message, self.state = str(fault), "failed"
            else:
                self.state = "done"

    def _note(self, line: str) -> None:
        split = _VIDEOS.search(line)
        if split:
            self.num_held_out = int(split[1])
        found = _EPOCH.search(line)
        if found:
            self.state = "training"
            self.epoch, self.epochs = int(found[1]), int(found[2])
            self.top1 = self.top1 if found[3] is None else float(found[3])

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the page."""
        passed = self.seconds or (time.monotonic() - self.started if self.state != "waiting" else 0.0)
        left = None
        if self.state == "training" and self.epoch:
            left = passed / self.epoch * (self.epochs - self.epoch)
        return {
            "state": self.state,
            "epoch": self.epoch,
            "epochs": self.epochs,
            "top1": self.top1,
            "message": self.message,
            "seconds": passed,
            "seconds_left": left,
            "num_clips": self.num_clips,
            "num_held_out": self.num_held_out,
            "labels": [] if self.recognizer is None else list(self.recognizer.answers),
            "window_seconds": None if self.recognizer is None else self.recognizer.card.typical_seconds,
            "num_frames": None if self.recognizer is None else self.recognizer.clip.num_frames,
        }


def training_command(table: Path, run: Path) -> list[str]:
    """The command that trains on the clips: the best start for few clips, and nothing is mirrored."""
    tada = [sys.executable, "-m", "tada", "train", str(table), "--out", str(run)]
    return [*tada, "--epochs", str(EPOCHS), "--flip-probability", "0", "--num-workers", "0", "--device", "cpu"]


def _environment() -> dict[str, str]:
    """This process's environment, in which the command finds the same tada."""
    source = str(Path(__file__).parents[2])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}


class Trainings:
    """The trainings of all visitors, one after another."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._waiting: list[Training] = []

    def start(self, training: Training) -> None:
        """Train in the background, when the trainings before it have ended."""
        self._waiting.append(training)
        threading.Thread(target=self._train, args=[training], daemon=True, name="training").start()

    def _train(self, training: Training) -> None:
        with self._turn:
            self._waiting.remove(training)
            try:
                training.train()
            except Exception as fault:  # the page goes on, and says it
                training.state, training.message = "failed", f"{type(fault).__name__}: {fault}"
                raise

    def ahead(self, training: Training) -> int:
        """How many trainings are before this one."""
        return 0 if training not in self._waiting else self._waiting.index(training) + 1


# -- live -------------------------------------------------------------------------------------------------------------


class Live:
    """Live recognition with a visitor's model: scores are averaged over a few looks."""

    def __init__(self, recognizer: Recognizer) -> None:
        self.recognizer = recognizer
        self._recent: deque[list[float]] = deque(maxlen=_SMOOTH_LOOKS)
        self._lock = threading.Lock()

    def look(self, sent: object) -> list[float] | None:
        """The smoothed scores [K] of the clip that was sent; None if the look before is not done yet.

        Args:
            sent: the clip's T frames, evenly spread, as ``read_frames`` takes them.

        Raises:
            DataError: these are no frames.
        """
        frames = np.stack(read_frames(sent))
        if not self._lock.acquire(blocking=False):
            return None
        try:
            self._recent.append(clip_scores(self.recognizer, frames))
            smoothed: list[float] = np.mean(list(self._recent), axis=0).tolist()
            return smoothed
        finally:
            self._lock.release()


def clip_scores(recognizer: Recognizer, frames: Frames) -> list[float]:
    """Probabilities [K] of a clip's frames [T, H, W, 3]; of more or fewer than T, evenly spread ones are taken."""
    clip = recognizer.clip
    chosen = np.minimum((np.arange(clip.num_frames) + 0.5) / clip.num_frames * len(frames), len(frames) - 1).astype(int)
    crops = frame_crops(
        frames[chosen], short_side=clip.short_side, crop=clip.crop, num_crops=1, antialias=clip.antialias
    )
    views = torch.from_numpy(crops).transpose(0, 1)
    scores: list[float] = recognizer.answer_scores(views)[0].tolist()
    return scores


def pack(run: Path, target: Path, names: Sequence[str] = ("model.safetensors", "model.json", "recipe.yaml")) -> None:
    """Write a trained model as a ZIP file that holds the folder ``gestures``."""
    import zipfile

    with whole_file(target) as part, zipfile.ZipFile(part, "w") as archive:
        for name in names:
            if (run / name).is_file():
                archive.write(run / name, f"gestures/{name}")


def forget_run(run: Path) -> None:
    """Remove a run's folder, if it is there."""
    shutil.rmtree(run, ignore_errors=True)
