"""Errors a user can cause and mend: each says what was wrong, the rule it breaks and the way out.

The command line prints such an error as it stands, without a traceback, and exits with code 2 (1 where output cannot be
written). Everything else that is raised is a fault of ours, but for an OSError, which is the machine's. An error may
cross from a worker process, so each can be rebuilt from its message alone.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_LONGEST = 2000


class UserError(ValueError):
    """Something only the user can mend: a file, a row, an option. A message that fills a screen loses its middle."""

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST - 500]} [...] {message[-490:]}"
        super().__init__(message)


def why_unread(error: OSError) -> str:
    """Why something cannot be read, with the way out where there is one."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return "no permission; give this user the right to read it"
    if error.errno == errno.ELOOP:
        return "it is a symbolic link that leads back to itself"
    return error.strerror or str(error)


class UnknownNameError(UserError):
    """A name that is not in a closed list: of models, recipes, options."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
        """Name the nearest known one, and all of them."""
        choices = sorted(known)
        near = nearest(name, choices)
        hint = f"did you mean {near!r}?" if near else "see the list."
        return cls(f"no {kind} is called {name!r}; {hint} Known: {', '.join(choices)}")


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that is most like another: by its letters, or else by the initials of its words.

    Of those that are like it one that begins with it is preferred: batch_size for "batch", not last_batch.
    """
    close = sorted(get_close_matches(name, known), key=lambda other: not other.startswith(name))
    initials = [other for other in known if len(name) > 1 and name == "".join(word[:1] for word in other.split("_"))]
    return next(iter([*close, *initials]), None)


def counted(number: float, noun: str) -> str:
    """For a message: "1 video", "2 videos", "0.5 epochs", "3 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:.12g} {noun}{ending}"


class OptionError(UserError):
    """An argument or a recipe field outside of what it may be."""


class DataError(UserError):
    """A data set that cannot be used as it is: a missing column, an empty class, a label without clips."""


class CheckpointError(UserError):
    """Weights or a run directory that are damaged, incomplete or meant for something else."""


class OutputError(UserError):
    """A file or folder that cannot be written: rights, a full disk, something in its place, another process in it."""


class ReaderGoneError(OutputError):
    """Who read what we print, such as `head`, has seen enough."""


class WorkerLostError(UserError):
    """A process that reads videos has died."""


class VideoError(UserError):
    """A video file that cannot be read. ``path`` names it, ``reason`` is the same word for every such fault."""

    reason = "unreadable"

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class VideoNotFoundError(VideoError):
    """Nothing lies at the path, or it cannot be opened with the rights at hand."""

    reason = "not_found"


class NotARegularFileError(VideoError):
    """A folder, pipe, socket or device: only regular files are opened (a pipe would hang for ever)."""

    reason = "not_a_regular_file"


class EmptyFileError(VideoError):
    """The file has no bytes."""

    reason = "empty_file"


class NotAVideoError(VideoError):
    """The content is of no container format that is opened: text, a playlist, an image list, noise."""

    reason = "not_a_video"


class NoVideoStreamError(VideoError):
    """The container holds sound or a cover picture only."""

    reason = "no_video_stream"


class UnsupportedCodecError(VideoError):
    """The stream's codec is not among those FFmpeg was built with."""

    reason = "unsupported_codec"


class TooLargeError(VideoError):
    """A frame has more pixels than the limit, or the video more frames."""

    reason = "too_large"


class TruncatedVideoError(VideoError):
    """The file ends, or turns to noise, before the frames that were asked for."""

    reason = "truncated"


class CorruptVideoError(VideoError):
    """A frame that was asked for decodes with errors, or not at all, though the file goes on."""

    reason = "corrupt"


class DecodeTimeoutError(VideoError):
    """Opening or reading took longer than allowed."""

    reason = "timeout"


class SegmentOutsideError(VideoError):
    """A segment that its video does not hold, by more than one frame."""

    reason = "segment_outside"


class ChangedVideoError(VideoError):
    """The file is not the one that lay there when the data set was read."""

    reason = "changed"


class FrameFolderError(VideoError):
    """A folder of frames that are not one series: a number is missing, or there are pictures of two series or sizes."""

    reason = "frame_folder"


def listed(names: Iterable[str], *, quote: bool = True, at_most: int = 5) -> str:
    """The first names, for a message, and how many more there are."""
    shown = [repr(name) if quote else name for name in names]
    more = f" and {len(shown) - at_most} more" if len(shown) > at_most else ""
    return ", ".join(shown[:at_most]) + more
