"""Frames in memory, or numbered pictures in a folder, behind the interface of an open video file.

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
from tada.video.reader import MAX_PIXELS, VideoInfo, indices_played_at, open_video

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

Shrink = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

_FRAMES_AT_ONCE, _BYTES_AT_ONCE = 16, 1 << 26  # most held at full size before they are resized
_AGAIN = "extract or copy it again"
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the Exif tag, and its values that swap width and height


def frames_at_once(height: int, width: int) -> int:
    """How many frames of this size are held at a time, before they are resized."""
    return max(1, min(_FRAMES_AT_ONCE, _BYTES_AT_ONCE // (3 * height * width)))


class OpenVideo(Protocol):
    """The interface of an open video; ``tada.video.reader.Video`` documents its members."""

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
    """Open a video file or a folder of numbered pictures; use the result in a ``with``.

    Args:
        fps: the rate of a folder's frames, in frames per second; None: unknown, and times are frame numbers. A video
            file has its own times.

    Raises:
        VideoError: it cannot be read, or a folder's pictures are not one series (``tada.video.numbered``).
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
    """Check that all pictures in a folder of frames can be opened and have one size, without decoding them.

    Raises:
        VideoError: a picture cannot be opened, or has another size.
    """
    pictures = Pictures(frame_folder(path))
    for index in range(len(pictures)):
        pictures.size_of(index)


def check_rate(paths: Sequence[str | os.PathLike[str]], fps: float | None, *, needed: str = "") -> None:
    """Check that ``fps`` is given if some of the videos are folders of frames, and only then.

    Args:
        needed: for the message, what needs the times of frames; if empty, ``fps`` may be missing.

    Raises:
        OptionError: ``fps`` is missing, or there are no folders of frames.
    """
    folder = next((path for path in paths if os.path.isdir(path)), None)
    if fps is not None and check_fps(fps) and folder is None and all(map(os.path.exists, paths)):
        raise OptionError(f"{fps = :g} is for folders of frames, and there is none: files have times of their own")
    if fps is None and folder is not None and needed:
        raise OptionError(no_rate(os.fspath(folder), needed))


def no_rate(folder: str, needed: str) -> str:
    """The message that the rate of a folder's frames is missing."""
    return (
        f"{folder!r} is a folder of frames, which does not say when they are shown, and {needed}: give their rate in "
        "frames per second (--fps 25)"
    )


class FramesVideo:
    """A sequence of frames as an open video.

    Args:
        frames: T frames, each uint8 [H, W, 3], read on access.
        size: height and width, in pixels.
        fps: their rate, in frames per second; None: unknown, and ``times_seconds`` are frame numbers.
        name: for messages and ``VideoInfo.path``.
        codec: for ``VideoInfo.codec``.
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
        """The ``fps`` that was given."""
        return self._fps

    @property
    def info(self) -> VideoInfo:
        """Size, rate, length and codec, as for a video file."""
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
            found = self._stack_frames(numbers)
        else:
            most = frames_at_once(*self._size)
            parts = (numbers[i : i + most] for i in range(0, len(numbers), most))
            found = np.concatenate([shrink(self._stack_frames(part)) for part in parts])
        return found if np.array_equal(places, np.arange(len(found))) else found[places]

    def _stack_frames(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        frames = np.empty((len(indices), *self._size, 3), np.uint8)
        for place, index in enumerate(indices):
            frames[place] = self._frames[index]
        return frames

    def frames_played_at(self, seconds: Sequence[float], *, shrink: Shrink | None = None) -> NDArray[np.uint8]:
        """The frames shown at ``seconds``; see ``Video.frames_played_at``."""
        duration = self.info.duration_seconds
        return self.frames(indices_played_at(seconds, self.times_seconds, duration, self._name), shrink=shrink)

    def __len__(self) -> int:
        """How many frames there are."""
        return len(self.times_seconds)

    def __iter__(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """Every frame in turn, [H, W, 3], and when it is shown."""
        for index, seconds in enumerate(self.times_seconds.tolist()):
            yield seconds, self._stack_frames([index])[0]


# -- pictures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedPictures:
    """Frames given as a list of picture files; the interface is that of ``FrameFolder``."""

    path: str
    """Name of the list, for messages."""
    files: tuple[str, ...]

    @property
    def num_frames(self) -> int:
        """Number of pictures."""
        return len(self.files)

    def file(self, index: int) -> str:
        """The path of a frame's picture."""
        return self.files[index]


class Pictures(Sequence[NDArray[np.uint8]]):
    """The pictures in a folder as frames, uint8 [H, W, 3], each read on access.

    Attributes:
        size: height and width of all pictures, taken from the first.

    Raises:
        VideoError: the first picture, or one on access, cannot be read or has another size.
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
        frame = _read_picture(self._folder.file(index), self._folder.path, _rotated_rgb)
        self._check_same_size(index, frame.shape[:2])
        return frame

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of a picture, read without decoding it."""
        size = _read_picture(self._folder.file(index), self._folder.path, _rotated_size)
        self._check_same_size(index, size)
        return size

    def _check_same_size(self, index: int, size: tuple[int, ...]) -> None:
        first = vars(self).get("size", size)
        if first != size:
            ours, others = (f"{width}x{height}" for height, width in (size, first))
            raise FrameFolderError(
                f"{self._folder.path!r}: {os.path.basename(self._folder.file(index))!r} is of {ours} pixels, "
                f"{os.path.basename(self._folder.file(0))!r} of {others}: bring all frames to one size",
                self._folder.path,
            )


def _read_picture(file: str, folder: str, read: Callable[[Image], T]) -> T:
    """Open a picture and return ``read(image)``.

    Raises:
        VideoError: the file is missing, not a JPEG or PNG, too large, or damaged.
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
            # Pillow warns of damaged metadata, though the picture may be whole, and of sizes, for which we have our own
            # limit. Filter by module, as other threads may warn at the same time.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(file, formats=("JPEG", "PNG")) as image:
                _check_image(image, file, folder)
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


def _check_image(image: Image, file: str, folder: str) -> None:
    check_size(*image.size, repr(file), folder)
    if image.mode.startswith(("I", "F")):
        raise UnsupportedCodecError(f"{file!r} has more than 8 bits for a color; convert it to 8", folder)


def check_size(width: int, height: int, name: str, path: str) -> None:
    """Refuse frames whose size a video may not have.

    Raises:
        TooLargeError: they exceed ``MAX_PIXELS``, or one side is more than ``MAX_ASPECT`` times the other.
    """
    if width * height > MAX_PIXELS:
        raise TooLargeError(
            f"{name} of {width}x{height} exceeds {MAX_PIXELS} pixels, which a frame may have; resize it", path
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise TooLargeError(
            f"{name} of {width}x{height} is a strip, more than {MAX_ASPECT} times as long as wide; cut it", path
        )


def _rotated_size(image: Image) -> tuple[int, int]:
    """Height and width after the Exif rotation."""
    width, height = image.size
    return (width, height) if _orientation(image) in _SIDEWAYS else (height, width)


def _rotated_rgb(image: Image) -> NDArray[np.uint8]:
    """The picture as RGB, [H, W, 3], after the Exif rotation."""
    from PIL import ImageOps

    return rgb_of(image if _orientation(image) == 1 else ImageOps.exif_transpose(image))


def _orientation(image: Image) -> int:
    """The Exif orientation, 1 to 8; 1: no rotation."""
    if "exif" not in image.info:  # getexif would decode a PNG to read the chunks after its pixels
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, struct.error):  # damaged, while the picture may be whole
        return 1


def rgb_of(image: Image) -> NDArray[np.uint8]:
    """Convert a PIL image to a frame, uint8 [H, W, 3]. Alpha is composited on black."""
    if image.has_transparency_data:
        alpha = image.convert("RGBA")
        black = alpha.copy()
        black.paste((0, 0, 0, 255), (0, 0, *alpha.size))
        black.alpha_composite(alpha)
        image = black
    return np.asarray(image.convert("RGB"))
