"""What happens at the page: visits, answers about videos, clips and trainings of gestures. ``looks`` shows it."""

from __future__ import annotations

import os
import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from tada.data.motion import MOTIONS, draw_motion
from tada.demo.answers import DemoModel, answer
from tada.demo.gestures import Clips, Live, Training, Trainings, forget_run, pack, read_names
from tada.demo.playable import is_playable, write_playable
from tada.demo.sessions import Session, Sessions, shown_name
from tada.errors import DataError, OptionError, UserError
from tada.system.terminal import printable
from tada.video.isolation.limits import DecodingLimits
from tada.video.isolation.readers import OpenedVideos, Readers, RemoteVideo, Upload
from tada.video.writer import write_video

_API = "/gradio_api"


@dataclass(frozen=True, kw_only=True, slots=True)
class PageLimits:
    """What the page takes."""

    max_minutes: float = 30.0
    """Longest video."""
    max_megabytes: int = 500
    """Largest upload."""
    max_memory_megabytes: float = 2048.0
    """Memory for decoding one video, in MB, where the system can limit it."""

    def __post_init__(self) -> None:
        """Raise OptionError where a limit is out of its range."""
        if not 0 < self.max_minutes <= 24 * 60:
            raise OptionError(f"max_minutes={self.max_minutes:g} should be more than 0, and 1440 at most")
        if not 1 <= self.max_megabytes <= 100_000:
            raise OptionError(f"max_megabytes={self.max_megabytes} should be from 1 to 100000")

    @property
    def decoding(self) -> DecodingLimits:
        """What decoding one video may cost: as much time as the longest video lasts."""
        seconds = 60 * self.max_minutes
        return DecodingLimits(
            max_seconds=seconds,
            max_memory_megabytes=self.max_memory_megabytes,
            decode_seconds=max(seconds, 60.0),
            owner="this page",
        )


# -- what the page calls ----------------------------------------------------------------------------------------------


class _Gone(Exception):
    """The visitor has closed the page."""


class Page:
    """What happens at the page, without its looks."""

    def __init__(self, models: Sequence[DemoModel], root: Path, limits: PageLimits, readers: Readers) -> None:
        self.models, self.limits, self.readers = tuple(models), limits, readers
        self.sessions, self.trainings = Sessions(root), Trainings()
        self._trained: dict[str, Training] = {}
        self._live: dict[str, Live] = {}
        self._clips: dict[str, Clips] = {}
        self._asking = threading.Lock()
        self._opened: set[OpenedVideos] = set()
        self._refused: dict[str, str] = {}

    # -- visits

    def begin(self, key: str) -> dict[str, Any]:
        """Begin a visit; return what its page needs to know."""
        try:
            session = self.sessions.begin(key)
        except OptionError as fault:
            self._refused = {key: str(fault)}  # the last one's is enough: it is told at once
            return {"error": str(fault)}
        self._clips[session.token] = Clips(session.folder)
        session.ends.append(lambda: self._forget(session.token))
        return {"token": session.token}

    def end(self, key: str) -> None:
        """End a visit."""
        self.sessions.end(key)

    def close(self) -> None:
        """End the answers that are sought, and all visits."""
        for opened in list(self._opened):
            opened.stop("the page is closed")
        self.sessions.end_all()

    def _forget(self, token: str) -> None:
        training = self._trained.pop(token, None)
        if training is not None:
            training.stop()
        self._live.pop(token, None)
        self._clips.pop(token, None)

    def _session_of(self, key: str | None) -> Session:
        session = self.sessions.of_key(key or "")
        if session is None:
            raise OptionError(self._refused.get(key or "", "this visit has ended: load the page again"))
        return session

    # -- videos

    def recognize(self, key: str | None, upload: str | None) -> Iterator[dict[str, Any]]:
        """Ask the models about an upload; yield what the page shows meanwhile, and at last the answer or the error."""
        name = shown_name(upload or "")
        yield from self._told(key, name, lambda session: session.take(Path(upload or "")))

    def draw(self, key: str | None) -> Iterator[dict[str, Any]]:
        """Draw a video of a random motion, and ask the models about it."""
        rng = np.random.default_rng()
        motion = str(rng.choice(MOTIONS))

        def take(session: Session) -> Path:
            file = session.new_file(".mp4")
            frames = draw_motion(motion, rng, num_frames=32, width=320, height=240, clutter=0.3, easy=True)
            write_video(file, frames, fps=16)
            return file

        yield from self._told(key, f"a drawn motion: {motion}", take)

    def _told(self, key: str | None, name: str, take: Callable[[Session], Path]) -> Iterator[dict[str, Any]]:
        """Run ``_ask`` in a thread, and yield how far it is."""
        told: queue.Queue[dict[str, Any]] = queue.Queue()
        gone = threading.Event()
        opened = OpenedVideos()
        self._opened.add(opened)

        def advance(what: str, part: float) -> None:
            if gone.is_set():
                raise _Gone
            told.put({"working": {"text": what, "part": min(part, 1.0)}})

        def ask() -> None:
            folder = None
            try:
                session = self._session_of(key)
                folder = session.folder  # its name is a secret
                file = take(session)
                with self._asking:
                    told.put({"answer": self._ask(file, name, opened, advance)})
            except UserError as fault:
                line = printable(str(fault))
                told.put({"error": line if folder is None else line.replace(f"{folder}{os.sep}", "")})
            except _Gone:
                told.put({"error": "the page was closed"})
            except Exception:
                told.put({"error": f"{name}: a fault of tada's own; the terminal of `tada demo` says more"})
                raise

        thread = threading.Thread(target=ask, daemon=True, name="answer")
        thread.start()
        try:
            yield {"working": {"text": f"{name} has arrived", "part": 0.0}}
            while True:
                state = told.get()
                while "working" in state and not told.empty():
                    state = told.get()
                yield state
                if "working" not in state:
                    return
                thread.join(0.15)  # at most so many updates
        finally:
            gone.set()
            opened.stop("the page was closed")
            self._opened.discard(opened)

    def _ask(
        self, file: Path, name: str, opened: OpenedVideos, advance: Callable[[str, float], None]
    ) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = self.readers.source(Upload(name=name, file=None, path=str(file)), opened, self.limits.decoding)
            found = answer(self.models, source, advance=advance)
            played, note = file, ""
            with source.open() as video:
                assert isinstance(video, RemoteVideo)
                if not video.ask_of_file(is_playable):
                    played = file.with_name(f"{file.stem}-copy.mp4")
                    write_playable(video, played, lambda part: advance("making a copy that browsers play", part))
                    note = "Browsers do not play, or do not seek in, this file: this is a small silent copy."
        return {"name": name, "note": note, "url": file_url(played), **found}

    # -- gestures: each is called by the page's script, with its token

    def keep_clip(self, data: dict[str, Any]) -> dict[str, Any]:
        """Save a labeled clip."""
        token = self.sessions.of(data.get("token")).token
        return {"name": self._clips[token].keep(data.get("gesture"), data.get("frames"), data.get("times"))}

    def drop_clip(self, data: dict[str, Any]) -> dict[str, Any]:
        """Remove a clip."""
        self._clips[self.sessions.of(data.get("token")).token].drop(data.get("name"))
        return {}

    def train(self, data: dict[str, Any]) -> dict[str, Any]:
        """Start a training on the visitor's clips."""
        session = self.sessions.of(data.get("token"))
        before = self._trained.get(session.token)
        if before is not None and before.state in ("waiting", "starting", "training"):
            raise OptionError("a training of yours is going on: stop it first")
        table, run = session.folder / "clips.csv", session.folder / "run"
        num_clips = self._clips[session.token].write_table(table, read_names(data.get("names")))
        forget_run(run)
        training = self._trained[session.token] = Training(table=table, run=run, num_clips=num_clips)
        self._live.pop(session.token, None)
        self.trainings.start(training)
        return self._state_of(training)

    def _state_of(self, training: Training) -> dict[str, Any]:
        return {**training.as_dict(), "ahead": self.trainings.ahead(training)}

    def progress(self, data: dict[str, Any]) -> dict[str, Any]:
        """How far the visitor's training is."""
        session = self.sessions.of(data.get("token"))
        training = self._trained.get(session.token)
        if training is None:
            raise OptionError("there is no training: start one")
        state = self._state_of(training)
        if training.recognizer is not None:
            if session.token not in self._live:
                pack(training.run, session.folder / "gestures.zip")
                self._live[session.token] = Live(training.recognizer)
            state["download"] = file_url(session.folder / "gestures.zip")
        return state

    def stop_training(self, data: dict[str, Any]) -> dict[str, Any]:
        """Stop the visitor's training."""
        training = self._trained.get(self.sessions.of(data.get("token")).token)
        if training is not None:
            training.stop()
        return {}

    def look(self, data: dict[str, Any]) -> dict[str, Any]:
        """The scores of the gestures in the last moments before the camera."""
        live = self._live.get(self.sessions.of(data.get("token")).token)
        if live is None:
            raise OptionError("there is no model yet: train one")
        return {"scores": live.look(data.get("frames"))}

    @property
    def calls(self) -> list[Callable[[dict[str, Any]], dict[str, Any]]]:
        """What the script of the second tab calls; a user's mistake is returned as {"error": its line}."""
        own = (self.keep_clip, self.drop_clip, self.train, self.progress, self.stop_training, self.look)
        return [_with_errors(call) for call in own]


def _with_errors(call: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    @wraps(call)
    def answered(data: dict[str, Any]) -> dict[str, Any]:
        try:
            if not isinstance(data, dict):
                raise DataError("a call should have an object of values")
            return call(data)
        except UserError as fault:
            return {"error": printable(str(fault))}

    return answered


def file_url(file: Path) -> str:
    """The address of a file in a visitor's folder, whose name is a secret."""
    return f".{_API}/file={quote(str(file))}"
