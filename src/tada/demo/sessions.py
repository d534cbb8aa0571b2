"""The visitors of the page, and the folder of each, which is deleted when the visit ends."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tada.errors import OptionError, VideoNotFoundError, counted
from tada.video.numbered import VIDEO_EXTENSIONS

_FORGOTTEN_SECONDS = 1800.0  # after which an upload that no visitor has used is deleted
_UNUSED_SECONDS = 600.0  # after which a visit that has sent nothing makes room for others
_LONGEST_NAME = 60


@dataclass(kw_only=True, eq=False)
class Session:
    """A visit: from the loading of the page until it is closed."""

    token: str
    """A secret that only this visitor's page knows."""
    folder: Path
    ends: list[Callable[[], None]] = field(default_factory=list)
    """Called when the visit ends, before the folder is deleted."""
    uploads: set[Path] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    num_videos: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def is_unused(self) -> bool:
        """Whether nothing has come from it for a while: programs that call the page do not say that they leave."""
        return time.monotonic() - self.began > _UNUSED_SECONDS and not any(self.folder.iterdir())

    def new_file(self, suffix: str) -> Path:
        """A path in the folder for the next video; the videos before it are deleted."""
        with self.lock:
            for old in self.folder.glob("video-*"):
                old.unlink(missing_ok=True)
            self.num_videos += 1
            return self.folder / f"video-{self.num_videos}{suffix}"

    def take(self, upload: Path) -> Path:
        """Take an uploaded file into the folder, under a name of ours.

        Raises:
            VideoNotFoundError: the upload was deleted.
        """
        suffix = upload.suffix.lower()
        file = self.new_file(suffix if suffix in VIDEO_EXTENSIONS else "")
        self.uploads.add(upload)
        try:
            os.link(upload, file)
        except FileNotFoundError:
            raise VideoNotFoundError("the upload is not here any more: choose the video again") from None
        except OSError:  # a file system without hard links
            shutil.copyfile(upload, file)
        return file


class Sessions:
    """All visits."""

    def __init__(self, root: Path, *, most: int = 50) -> None:
        """Begin without visitors.

        Args:
            root: an empty folder; each visit has a folder below ``root / "visits"``, and ``root / "uploads"`` holds
                the uploads of all.
            most: largest number of visits at a time.
        """
        self.visits, self.uploads, self.most = root / "visits", root / "uploads", most
        self.visits.mkdir()
        self.uploads.mkdir()
        self._of_token: dict[str, Session] = {}
        self._token_of_key: dict[str, str] = {}
        self._lock = threading.Lock()

    def begin(self, key: str) -> Session:
        """Begin a visit.

        Args:
            key: what ``end`` will be called with.

        Raises:
            OptionError: there are as many visitors as the page takes.
        """
        self.sweep()
        self.end(key)
        if len(self._of_token) >= self.most:
            for other in [key for key, token in self._token_of_key.items() if self._of_token[token].is_unused]:
                self.end(other)
        with self._lock:
            if len(self._of_token) >= self.most:
                raise OptionError(f"{counted(self.most, 'visitor')} are here, as many as this page takes: try later")
            token = secrets.token_urlsafe(24)
            folder = self.visits / token
            folder.mkdir()
            session = self._of_token[token] = Session(token=token, folder=folder)
            self._token_of_key[key] = token
            return session

    def of(self, token: object) -> Session:
        """The visit with a token.

        Raises:
            OptionError: it has ended, or there was none.
        """
        session = self._of_token.get(token) if isinstance(token, str) else None
        if session is None:
            raise OptionError("this visit has ended: load the page again")
        return session

    def of_key(self, key: str) -> Session | None:
        """The visit that began with a key, if it has not ended."""
        return self._of_token.get(self._token_of_key.get(key, ""))

    def end(self, key: str) -> None:
        """End a visit, if there is one, and delete its files."""
        with self._lock:
            token = self._token_of_key.pop(key, None)
            session = None if token is None else self._of_token.pop(token)
            shared = {upload for other in self._of_token.values() for upload in other.uploads}
            is_last = not self._of_token
        if session is None:
            return
        for end in session.ends:
            end()
        shutil.rmtree(session.folder, ignore_errors=True)
        for upload in session.uploads - shared:
            _remove_upload(upload)
        if is_last:  # what no visit has taken, too
            for file in self.uploads.glob("*/*"):
                _remove_upload(file)

    def end_all(self) -> None:
        """End all visits."""
        for key in list(self._token_of_key):
            self.end(key)

    def sweep(self) -> None:
        """Delete uploads that no visitor has used for half an hour."""
        used = {upload for session in list(self._of_token.values()) for upload in session.uploads}
        for file in self.uploads.rglob("*"):
            with suppress(OSError):
                if file.is_file() and file not in used and file.stat().st_mtime < time.time() - _FORGOTTEN_SECONDS:
                    _remove_upload(file)


def _remove_upload(file: Path) -> None:
    with suppress(OSError):
        file.unlink()
        file.parent.rmdir()  # gradio gives each file a folder


def shown_name(name: str) -> str:
    """A visitor's file name as the page shows it: its last part, shortened, without control characters."""
    last = name.replace("\\", "/").rpartition("/")[2]
    clean = "".join(letter if letter.isprintable() else "�" for letter in last) or "video"
    return clean if len(clean) <= _LONGEST_NAME else f"{clean[: _LONGEST_NAME // 2]}…{clean[-_LONGEST_NAME // 2 + 1 :]}"
