"""Frames that are no video file, with the parts of one: in memory, or numbered pictures in a folder.

Shapes: T frames of H x W pixels.
"""

from __future__ import annotations

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from tada.errors import (
    CorruptVideoError,
    EmptyFileError,
    FrameFolderError,
    NotARegularFileError,
    NotAVideoError,
    OptionError,
    TooLargeError,
    UnsupportedCodecError,
    UserError,
    VideoNotFoundError,
    why_unread,
)
from tada.video.container import MAX_ASPECT
from tada.video.numbered import FrameFolder, check_fps, frame_folder, kind_in_words
from tada.video.reader import MAX_PIXELS, VideoInfo, open_video

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

Shrink = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

_FRAMES_AT_ONCE, _BYTES_AT_ONCE = 16, 1 << 26  # that are held at full size where they are to become smaller
_AGAIN = "extract or copy it again"
_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)  # an entry of Exif, and those of its values that swap width and height


class OpenVideo(Protocol):
    """A video that is open: ``tada.video.reader.Video`` says what its parts mean."""

    times_seconds: NDArray[np.float64]

    @property
    def container_fps(self) -> float | None: ...

    @property
    def info(self) -> VideoInfo: ...

    def frames(self, indices: Sequence[int], *, shrink: Shrink | None = None) -> NDArray[np.uint8]: ...

    def frames_played_at(self, seconds: Sequence[float], *, shrink: Shrink | None = None) -> NDArray[np.uint8]: ...

    def __iter__(self) -> Iterator[tuple[float, NDArray[np.uint8]]]: ...

    def __len__(self) -> int: ...


def open_footage(path: str | os.PathLike[str], *, fps: float | None = None) -> AbstractContextManager[OpenVideo]:
    """Open a video file, or a folder of numbered pictures as one, for a ``with``.

    Args:
        fps: the rate of a folder's frames, in frames per second; None: it is not known, and times count frames. A file
            has times of its own.

    Raises:
        VideoError: it cannot be read; of a folder also where its pictures are not one series (``tada.video.numbered``).
    """
    if not os.path.isdir(path):
        return open_video(path)
    return open_pictures(frame_folder(path), fps=fps)


def open_pictures(folder: FrameFolder | ListedPictures, *, fps: float | None) -> AbstractContextManager[OpenVideo]:
    """Open numbered or listed pictures as a video; arguments and errors are those of ``open_footage``."""
    pictures = Pictures(folder)
    codec = "png" if folder.file(0).lower().endswith("png") else "mjpeg"
    return nullcontext(FramesVideo(pictures, pictures.size, fps=fps, name=folder.path, codec=codec))


def probe_footage(path: str | os.PathLike[str], *, fps: float | None = None) -> VideoInfo:
    """Find out what a video file or a folder of frames holds; arguments and errors are those of ``open_footage``."""
    with open_footage(path, fps=fps) as video:
        return video.info


def check_pictures(path: str | os.PathLike[str]) -> None:
    """See whether all pictures in a folder of frames can be opened and have one size; none is decoded.

    Raises:
        VideoError: one cannot, or has another.
    """
    pictures = Pictures(frame_folder(path))
    for index in range(len(pictures)):
        pictures.size_of(index)


def check_rate(paths: Sequence[str | os.PathLike[str]], fps: float | None, *, needed: str = "") -> None:
    """See whether a rate is given where there are folders of frames among some videos, and only there.

    Args:
        needed: what needs the times of frames, for the message; empty if nothing does.

    Raises:
        OptionError: it lacks, or there are no such folders.
    """
    folder = next((path for path in paths if os.path.isdir(path)), None)
    if fps is not None and check_fps(fps) and folder is None and all(map(os.path.exists, paths)):
        raise OptionError(f"{fps = :g} is for folders of frames, and there is none: files have times of their own")
    if fps is None and folder is not None and needed:
        raise OptionError(no_rate(os.fspath(folder), needed))


def no_rate(folder: str, needed: str) -> str:
    """The message that the rate of a folder's frames lacks."""
    return (
        f"{folder!r} is a folder of frames, which does not say when they are shown, and {needed}: give their rate in "
        "frames per second (--fps 25)"
    )


class FramesVideo:
    """Frames that can be had one by one, with the parts of an open video.

    Args:
        frames: T pictures, each uint8 [H, W, 3] when it is asked for.
        size: height and width.
        fps: their rate; None: it is not known, and ``times_seconds`` counts frames.
        codec: how they are kept.
    """

    def __init__(
        self,
        frames: Sequence[NDArray[np.uint8]],
        size: tuple[int, int],
        *,
        fps: float | None,
        name: str,
        codec: str = "rawvideo",
    ) -> None:
        self._frames, self._size, self._fps, self._name, self._codec = frames, size, fps, name, codec
        self.times_seconds = np.arange(len(frames)) / (fps or 1.0)

    @property
    def container_fps(self) -> float | None:
        """The rate that was given."""
        return self._fps

    @property
    def info(self) -> VideoInfo:
        """What is known of a video."""
        height, width = self._size
        fps = self._fps or 1.0
        return VideoInfo(
            path=self._name,
            width=width,
            height=height,
            fps=fps,
            container_fps=self._fps,
            num_frames=len(self._frames),
            start_seconds=0.0,
            duration_seconds=len(self._frames) / fps,
            codec=self._codec,
            rotation_degrees=0,
            pixel_aspect=Fraction(1),
        )

    def frames(self, indices: Sequence[int], *, shrink: Shrink | None = None) -> NDArray[np.uint8]:
        """The frames numbered ``indices``, each read once; see ``Video.frames``."""
        for index in indices:
            if not 0 <= index < len(self._frames):
                raise IndexError(f"{self._name} has no frame {index}; its frames are 0 to {len(self._frames) - 1}")
        if not len(indices):
            return np.empty((0, *self._size, 3), np.uint8)
        wanted, places = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        numbers = wanted.tolist()
        if shrink is None:
            found = self._stacked(numbers)
        else:
            most = max(1, min(_FRAMES_AT_ONCE, _BYTES_AT_ONCE // (3 * self._size[0] * self._size[1])))
            parts = (numbers[i : i + most] for i in range(0, len(numbers), most))
            found = np.concatenate([shrink(self._stacked(part)) for part in parts])
        return found if np.array_equal(places, np.arange(len(found))) else found[places]

    def _stacked(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        frames = np.empty((len(indices), *self._size, 3), np.uint8)
        for place, index in enumerate(indices):
            frames[place] = self._frames[index]
        return frames

    def frames_played_at(self, seconds: Sequence[float], *, shrink: Shrink | None = None) -> NDArray[np.uint8]:
        """The frames shown at ``seconds``; see ``Video.frames_played_at``."""
        duration = self.info.duration_seconds
        for time in seconds:
            if not 0 <= time <= duration:
                raise OptionError(f"{self._name} shows nothing at {time} s; it lasts from 0 to {duration:.6g} s")
        shown = np.searchsorted(self.times_seconds, np.asarray(seconds, np.float64) + 1e-6, side="right") - 1
        return self.frames(shown.tolist(), shrink=shrink)

    def __len__(self) -> int:
        """How many frames there are."""
        return len(self.times_seconds)

    def __iter__(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """Every frame in turn, [H, W, 3], and when it is shown."""
        for index, seconds in enumerate(self.times_seconds.tolist()):
            yield seconds, self._stacked([index])[0]


# -- pictures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedPictures:
    """Frames whose files somebody has listed, as ``FrameFolder`` has those of a folder."""

    path: str
    """What they are called together."""
    files: tuple[str, ...]

    @property
    def num_frames(self) -> int:
        """How many there are."""
        return len(self.files)

    def file(self, index: int) -> str:
        """The path of a frame's picture."""
        return self.files[index]


class Pictures(Sequence[NDArray[np.uint8]]):
    """The pictures in a folder as frames, uint8 [H, W, 3], each read when it is asked for.

    Attributes:
        size: height and width of the first, and so of all.

    Raises:
        VideoError: the first, or one that is asked for, cannot be read or is of another size.
    """

    def __init__(self, folder: FrameFolder | ListedPictures) -> None:
        self._folder = folder
        self.size = self.size_of(0)

    def __len__(self) -> int:
        return self._folder.num_frames

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[NDArray[np.uint8]]: ...

    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | Sequence[NDArray[np.uint8]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        frame = _read(self._folder.file(index), self._folder.path, _turned)
        self._check_alike(index, frame.shape[:2])
        return frame

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of a picture, which is not decoded for that."""
        size = _read(self._folder.file(index), self._folder.path, _turned_size)
        self._check_alike(index, size)
        return size

    def _check_alike(self, index: int, size: tuple[int, ...]) -> None:
        first = vars(self).get("size", size)
        if first != size:
            ours, others = (f"{width}x{height}" for height, width in (size, first))
            raise FrameFolderError(
                f"{self._folder.path!r}: {os.path.basename(self._folder.file(index))!r} is of {ours} pixels, "
                f"{os.path.basename(self._folder.file(0))!r} of {others}: bring all frames to one size",
                self._folder.path,
            )


def _read(file: str, folder: str, read: Callable[[Image], T]) -> T:
    """What ``read`` makes of a picture that has been opened.

    Raises:
        VideoError: it is gone, no JPEG or PNG, too large, or damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            kind = kind_in_words(status.st_mode)
            raise NotARegularFileError(f"{file!r} is {kind}, no picture; {_AGAIN}", folder)
        if status.st_size == 0:
            raise EmptyFileError(f"{file!r} has no bytes; {_AGAIN}", folder)
        with warnings.catch_warnings():
            # Of damaged entries beside a picture that may be whole, and of sizes, for which there is our own limit. By
            # module, as other threads may warn meanwhile.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(file, formats=("JPEG", "PNG")) as image:
                _check(image, file, folder)
                return read(image)
    except UnidentifiedImageError as error:
        raise NotAVideoError(f"{file!r} is no JPEG or PNG picture, whatever its name says; {_AGAIN}", folder) from error
    except Image.DecompressionBombError as error:
        raise TooLargeError(
            f"{file!r} exceeds {MAX_PIXELS} pixels, which a frame may have; resize it", folder
        ) from error
    except PermissionError as error:
        raise VideoNotFoundError(f"{file!r} cannot be read: {why_unread(error)}", folder) from error
    except FileNotFoundError as error:
        raise VideoNotFoundError(f"{file!r} is not there any more; {_AGAIN}", folder) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise CorruptVideoError(f"{file!r} breaks off or is damaged ({error}); {_AGAIN}", folder) from error


def _check(image: Image, file: str, folder: str) -> None:
    check_size(*image.size, repr(file), folder)
    if image.mode.startswith(("I", "F")):
        raise UnsupportedCodecError(f"{file!r} has more than 8 bits for a color; convert it to 8", folder)


def check_size(width: int, height: int, name: str, path: str) -> None:
    """Refuse frames of other sizes than a video may have, wherever they come from.

    Raises:
        TooLargeError: they have too many pixels, or are strips.
    """
    if width * height > MAX_PIXELS:
        raise TooLargeError(
            f"{name} of {width}x{height} exceeds {MAX_PIXELS} pixels, which a frame may have; resize it", path
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise TooLargeError(
            f"{name} of {width}x{height} is a strip, more than {MAX_ASPECT} times as long as wide; cut it", path
        )


def _turned_size(image: Image) -> tuple[int, int]:
    """Height and width as the picture is shown."""
    width, height = image.size
    return (width, height) if _orientation(image) in _LYING else (height, width)


def _turned(image: Image) -> NDArray[np.uint8]:
    """The picture as it is shown."""
    from PIL import ImageOps

    return rgb_of(image if _orientation(image) == 1 else ImageOps.exif_transpose(image))


def _orientation(image: Image) -> int:
    """How a camera asks to turn a picture (Exif); 1: not at all."""
    if "exif" not in image.info:  # a PNG would be decoded to look behind its pixels
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, struct.error):  # damaged, while the picture may be whole
        return 1


def rgb_of(image: Image) -> NDArray[np.uint8]:
    """A picture of PIL as a frame, [H, W, 3]. Alpha is composited on black."""
    if image.has_transparency_data:
        alpha = image.convert("RGBA")
        black = alpha.copy()
        black.paste((0, 0, 0, 255), (0, 0, *alpha.size))
        black.alpha_composite(alpha)
        image = black
    return np.asarray(image.convert("RGB"))
