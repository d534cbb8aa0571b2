"""Errors that a user can cause and mend: each message says what is wrong, the rule it breaks and the way out.

The command line prints such an error without a traceback and exits with code 2 (1 where output cannot be written).
Any other exception is a bug of ours, except OSError, which comes from the machine. Worker processes send errors to
their parent, so each can be rebuilt from its message alone.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

_LONGEST = 2000


class UserError(ValueError):
    """An error that only the user can mend: in a file, a row, an option. Messages are cut to 2,000 characters."""

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST - 500]} [...] {message[-490:]}"
        super().__init__(message)


def why_unread(error: OSError) -> str:
    """The reason why a file cannot be read, with the way out where there is one."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return "no permission; give this user the right to read it"
    if error.errno == errno.ELOOP:
        return "it is a symbolic link that leads back to itself"
    return error.strerror or str(error)


class UnknownNameError(UserError):
    """A name that is not in a closed list: of models, recipes, options."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
        """The error whose message lists all known names and suggests the nearest."""
        choices = sorted(known)
        near = nearest(name, choices)
        hint = f"did you mean {near!r}?" if near else "see the list."
        return cls(f"no {kind} is called {name!r}; {hint} Known: {', '.join(choices)}")


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that is most similar to ``name``: by its letters, or else by the initials of its words.

    Among similar names, one that begins with ``name`` is preferred: batch_size for "batch", not last_batch.
    """
    close = sorted(get_close_matches(name, known), key=lambda other: not other.startswith(name))
    initials = [other for other in known if len(name) > 1 and name == "".join(word[:1] for word in other.split("_"))]
    return next(iter([*close, *initials]), None)


def counted(number: float, noun: str) -> str:
    """A number and its noun for a message: "1 video", "2 videos", "0.5 epochs", "3 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:.12g} {noun}{ending}"


class OptionError(UserError):
    """An argument or a recipe field with a value that is not allowed."""


class DataError(UserError):
    """A data set that cannot be used as it is: a missing column, an empty class, a label without clips."""


class CheckpointError(UserError):
    """Weights or a run directory that are damaged, incomplete or meant for something else."""


class OutputError(UserError):
    """A file or folder that cannot be written: no rights, a full disk, a file in its place, in use."""


class ReaderGoneError(OutputError):
    """The pipe that we print to was closed by its reader, such as `head`."""


class WorkerLostError(UserError):
    """A process that reads videos has died."""


class StoreAccessError(UserError):
    """An object store that gives us nothing: credentials are missing or refused, a bucket or a package is not there.

    It is no fault of a single video: a job over many videos stops for it.
    """


class VideoError(UserError):
    """A video file that cannot be read. ``path`` names the file; ``reason`` is one word per kind of fault."""

    reason = "unreadable"

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class VideoNotFoundError(VideoError):
    """There is no file at the path, or no permission to open it."""

    reason = "not_found"


class NotARegularFileError(VideoError):
    """A folder, pipe, socket or device: only regular files are opened (a pipe would hang for ever)."""

    reason = "not_a_regular_file"


class EmptyFileError(VideoError):
    """The file has no bytes."""

    reason = "empty_file"


class NotAVideoError(VideoError):
    """The content has none of the container formats that are read: it is text, a playlist, an image list, noise."""

    reason = "not_a_video"


class NoVideoStreamError(VideoError):
    """The container holds only sound or a cover picture."""

    reason = "no_video_stream"


class UnsupportedCodecError(VideoError):
    """The stream's codec is not among those FFmpeg was built with."""

    reason = "unsupported_codec"


class TooLargeError(VideoError):
    """A frame has more pixels than the limit, or the video more frames."""

    reason = "too_large"


class TruncatedVideoError(VideoError):
    """The file ends, or its content turns to noise, before the requested frames."""

    reason = "truncated"


class CorruptVideoError(VideoError):
    """A requested frame decodes with errors, or not at all, though later frames exist."""

    reason = "corrupt"


class DecoderLostError(VideoError):
    """The process that decoded the video has died, or was killed because it took too long."""

    reason = "lost"


class DecodeTimeoutError(VideoError):
    """Opening or reading took longer than allowed."""

    reason = "timeout"


class UnreachableError(VideoError):
    """The server of an address did not send the whole file in any attempt. It may do so later."""

    reason = "unreachable"


class RedirectRefusedError(VideoError):
    """The server of an http address redirects to an address that is not allowed."""

    reason = "redirect_refused"


class SegmentOutsideError(VideoError):
    """A segment that reaches beyond its video by more than one frame."""

    reason = "segment_outside"


class ChangedVideoError(VideoError):
    """The file was replaced or changed since the data set was read."""

    reason = "changed"


class FrameFolderError(VideoError):
    """A folder whose frames are not one series: a number is missing, or pictures of two series or sizes are mixed."""

    reason = "frame_folder"


def changed_values(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """The names of either whose values differ, with the value before where it is short: "top (5)"."""
    changed = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return [f"{name} ({before.get(name)})" if len(str(before.get(name))) <= 30 else name for name in changed]


def listed(names: Iterable[str], *, quote: bool = True, at_most: int = 5) -> str:
    """The first ``at_most`` names, for a message, and how many more there are."""
    shown = [repr(name) if quote else name for name in names]
    more = f" and {len(shown) - at_most} more" if len(shown) > at_most else ""
    return ", ".join(shown[:at_most]) + more
