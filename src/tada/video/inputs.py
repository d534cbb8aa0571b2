"""Inputs that count as a video: a path, bytes, an open file, or frames. Each becomes a ``VideoSource``.

Frames are RGB, uint8, in an array or a tensor, [T, H, W, 3] or [T, 3, H, W], or pictures in a list. They have no times
unless their rate is given. An ambiguous layout is refused.

Shapes: T frames of H x W pixels.
"""

from __future__ import annotations

import glob
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from tada.errors import CorruptVideoError, OptionError, VideoError, VideoNotFoundError
from tada.system.files import writing
from tada.video.frames import (
    FramesVideo,
    ListedPictures,
    OpenVideo,
    check_size,
    open_footage,
    open_pictures,
    rgb_of,
)
from tada.video.numbered import PICTURE_EXTENSIONS, VIDEO_EXTENSIONS, check_fps, is_frame_folder
from tada.video.reader import open_video

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_LAYOUTS = "a video in memory is uint8 [T, H, W, 3] or [T, 3, H, W], RGB"


class VideoSource:
    """A video as the caller gave it; it can be opened repeatedly.

    Attributes:
        name: its path; without a path, its kind: "<bytes>", "<array>".
        has_times: whether it is known when its frames are shown.
        is_file: whether another process can open it, too.
    """

    def __init__(
        self,
        name: str,
        opens: Callable[[], AbstractContextManager[OpenVideo]],
        *,
        has_times: bool = True,
        is_file: bool = False,
    ) -> None:
        self.name, self.has_times = name, has_times
        self._opens: Callable[[], AbstractContextManager[OpenVideo]] | None = opens
        self.is_file = is_file

    def __repr__(self) -> str:
        return f"VideoSource({self.name!r})"

    def open(self) -> AbstractContextManager[OpenVideo]:
        """Open the video; use the result in a ``with``.

        Raises:
            VideoError: it cannot be read, or its bytes or frames were released by ``forget`` or pickling.
        """
        if self._opens is None:
            raise VideoNotFoundError(
                f"the frames of {self.name} are not kept: they do not go along where an answer is pickled, and those "
                "of a generator are let go when it gives the next; predict the video again",
                self.name,
            )
        return self._opens()

    def forget(self) -> None:
        """Release bytes or frames in memory; a file can still be opened."""
        if not self.is_file:
            self._opens = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opens": self._opens if self.is_file else None}


def is_one_video(video: Any) -> bool:
    """Whether ``video`` is one video rather than a collection; a list of pictures is one, other lists are not."""
    if isinstance(video, str | os.PathLike | bytes | bytearray | memoryview | VideoSource) or hasattr(video, "read"):
        return True
    if _is_image(video):
        return True
    if getattr(video, "ndim", None) is not None:  # a pandas column or an array of strings holds paths
        return not (video.ndim == 1 and getattr(getattr(video, "dtype", None), "kind", "") in ("O", "U"))
    if isinstance(video, Sequence):
        return bool(video) and (all(map(_is_picture, video)) or all(map(_is_picture_file, video)))
    return isinstance(video, Mapping) or not isinstance(video, Iterable)


def source_of(video: Any, *, fps: float | None = None, number: int | None = None) -> VideoSource:
    """Make a ``VideoSource`` of a video in any of the supported forms.

    Args:
        video: the path of a file or of a folder of numbered pictures, the bytes of a file, an open binary file (read
            from its current position to its end), frames in an array or a tensor, or a list of pictures: PIL images,
            paths of picture files, or arrays or tensors of one picture each.
        fps: the rate of frames without times, in frames per second.
        number: the video's number among several, for its name.

    Raises:
        OptionError: it is none of these, its layout is ambiguous, or ``fps`` is given for a video with its own times.
    """
    fps = None if fps is None else check_fps(fps)
    if isinstance(video, VideoSource):
        return video
    which = "" if number is None else f" {number}"
    found: VideoSource
    if isinstance(video, str | os.PathLike):
        _check_path(os.fspath(video))
        if os.path.isdir(video):
            return source_at(os.fspath(video), fps=fps)
        found = source_at(os.fspath(video))
    elif isinstance(video, bytes | bytearray | memoryview):
        name = f"<bytes{which}>"
        found = VideoSource(name, partial(_open_bytes, video, name))
    elif hasattr(video, "read"):
        found = _source_of_open_file(video, which)
    else:
        return _source_of_frames(video, fps, which)
    is_missing = isinstance(video, str | os.PathLike) and not os.path.exists(found.name)  # opening it raises the error
    if fps is not None and not is_missing:
        raise OptionError(f"{found.name!r} has times of its own: leave out fps, which is for frames without times")
    return found


def source_at(path: str, *, fps: float | None = None) -> VideoSource:
    """Make a ``VideoSource`` of the file, or folder of numbered pictures, that a list names.

    Nothing is looked at before it is opened, which raises a VideoError if the path is something else.

    Args:
        fps: the rate of a folder's frames, in frames per second.
    """
    if os.path.isdir(path):
        return VideoSource(path, partial(open_footage, path, fps=fps), has_times=fps is not None, is_file=True)
    return VideoSource(path, partial(open_footage, path), is_file=True)


def _check_path(name: str) -> None:
    """Refuse a path that stands for several videos or for a single picture.

    Raises:
        OptionError: it does; the message shows the call to use instead.
    """
    if os.path.isdir(name):
        held = [] if is_frame_folder(name) else os.listdir(name)
        if any(os.path.splitext(one)[1].lower() in VIDEO_EXTENSIONS or os.path.isdir(f"{name}/{one}") for one in held):
            raise OptionError(
                f"{name!r} is a folder of videos: give them in a list, as "
                f"predict(sorted(pathlib.Path({name!r}).rglob('*.mp4')))"
            )
    elif glob.has_magic(name) and not os.path.exists(name):
        raise OptionError(
            f"{name!r} is a pattern, or no file: give the files in a list, as predict(sorted(glob.glob({name!r})))"
        )
    elif _is_picture_file(name) and os.path.isfile(name):
        raise OptionError(
            f"{name!r} is a picture, and no video: give a list of them, or the folder of a video's frames"
        )


# -- bytes and open files ---------------------------------------------------------------------------------------------


@contextmanager
def _open_bytes(content: bytes | bytearray | memoryview, name: str) -> Iterator[OpenVideo]:
    with _open_copy(io.BytesIO(content), name) as video:
        yield video


@contextmanager
def _open_copy(content: BinaryIO, name: str) -> Iterator[OpenVideo]:
    """Copy the rest of a binary file into a temporary file, which FFmpeg may open, and open that."""
    with tempfile.TemporaryDirectory(prefix="tada-") as folder:
        file = Path(folder) / "video"
        with writing(file), file.open("wb") as copy:
            shutil.copyfileobj(content, copy, 1 << 20)
        try:
            with open_video(file) as video:
                yield video
        except VideoError as error:
            message = str(error).replace(repr(str(file)), name)
            raise type(error)(message, name) from error


def _source_of_open_file(file: Any, which: str) -> VideoSource:
    own = getattr(file, "name", None)
    name = own if isinstance(own, str) and own else f"<file{which}>"
    if getattr(file, "closed", False):
        raise OptionError(f"the file {name!r} is closed: give its path, or open it again")
    if isinstance(file, io.TextIOBase):
        raise OptionError(f"the file {name!r} is open as text: open it with mode 'rb'")
    start = file.tell() if hasattr(file, "seekable") and file.seekable() else None
    opened = False

    @contextmanager
    def opens() -> Iterator[OpenVideo]:
        nonlocal opened
        if getattr(file, "closed", False):
            raise VideoNotFoundError(f"the file {name!r} has been closed since: predict its path", name)
        if opened and start is None:
            raise VideoNotFoundError(f"{name!r} can be read only once: save it, and predict the file's path", name)
        if opened:
            file.seek(start)
        opened = True
        with _open_copy(file, name) as video:
            yield video

    return VideoSource(name, opens)


# -- frames -----------------------------------------------------------------------------------------------------------


def _source_of_frames(video: Any, fps: float | None, which: str) -> VideoSource:
    frames: Sequence[NDArray[np.uint8]]
    if _is_image(video):
        raise OptionError("one picture is no video: give a list of them")
    if isinstance(video, Sequence) and video and all(map(_is_picture_file, video)):
        listed = ListedPictures(path=f"<pictures{which}>", files=tuple(map(os.fspath, video)))
        return VideoSource(
            listed.path, partial(open_pictures, listed, fps=fps), has_times=fps is not None, is_file=True
        )
    if isinstance(video, Sequence) and video and all(map(_is_image, video)):
        name, frames = f"<images{which}>", Images(video)
        size = frames.size
    elif isinstance(video, Sequence) and video and all(map(_is_picture, video)):
        name = f"<frames{which}>"
        shapes = {tuple(frame.shape) for frame in video}
        if len(shapes) > 1:
            raise OptionError(f"{name}: its frames are of several shapes, {_listed(shapes)}: bring them to one size")
        array = _as_rgb(np.stack([_as_array(frame, name) for frame in video]), name)
        frames, size = cast(Any, array), (array.shape[1], array.shape[2])
    elif hasattr(video, "__array__"):
        name = f"<{'tensor' if _is_tensor(video) else 'array'}{which}>"
        array = _as_rgb(_as_array(video, name), name)
        frames, size = cast(Any, array), (array.shape[1], array.shape[2])
    else:
        kind = type(video).__name__
        raise OptionError(
            f"a video is a path, bytes, an open binary file, an array or tensor [T, H, W, 3] or a list of pictures, "
            f"not {'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
        )
    check_size(size[1], size[0], name, name)
    return VideoSource(
        name, lambda: nullcontext(FramesVideo(frames, size, fps=fps, name=name)), has_times=fps is not None
    )


def _as_array(video: Any, name: str) -> NDArray[Any]:
    """Convert a tensor or array-like to an array, without a copy if possible; refuse other types than uint8."""
    kind = str(getattr(video, "dtype", "")).removeprefix("torch.")
    if kind and kind != "uint8":
        way_out = "scale what is from 0 to 1 by 255, round it and make it uint8"
        if not kind.startswith(("float", "bfloat")):
            way_out = "make it uint8"
        raise OptionError(f"{name} is {kind} {list(video.shape)}; {_LAYOUTS}: {way_out}")
    try:
        return np.asarray(video.detach().cpu().numpy() if _is_tensor(video) else video)
    except (TypeError, ValueError, RuntimeError) as error:  # sparse, on "meta", or of objects
        raise OptionError(f"{name} cannot be read as an array ({_first_line(error)}): give a dense one") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _as_rgb(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """View an array of either layout as [T, H, W, 3], without a copy; refuse other shapes."""
    shape = list(array.shape)
    if array.dtype != np.uint8:
        raise OptionError(f"{name} is {array.dtype} {shape}; {_LAYOUTS}")
    if array.ndim == 5:
        raise OptionError(f"{name} is a batch, {shape}: give its videos one by one, as list(batch)")
    if array.ndim == 3 and 3 in (shape[0], shape[2]):
        raise OptionError(f"{name} is one picture, {shape}; {_LAYOUTS}: frames[None] makes a video of one frame")
    if array.ndim == 3:
        raise OptionError(f"{name} has no colors, {shape}; {_LAYOUTS}: np.repeat(frames[..., None], 3, axis=-1)")
    if array.ndim != 4:
        raise OptionError(f"{name} is {shape}; {_LAYOUTS}")
    if 0 in shape:
        raise OptionError(f"{name} is {shape}: a video has at least one frame, and that a pixel")
    if shape[1] == 3 and 3 in (shape[0], shape[3]):
        other, way_out = "[3, T, H, W]", "permute it to [T, H, W, 3]"
        if shape[3] == 3:
            other, way_out = "[T, H, W, 3]", "give frames of more than 3 pixels"
        raise OptionError(f"{name} is {shape}, which may be [T, 3, H, W] or {other}: {way_out}")
    if shape[3] == 3:
        return array
    if shape[1] == 3:
        return array.transpose(0, 2, 3, 1)
    way_out = "rearrange it"
    if shape[0] == 3:
        way_out = "where colors come first, permute it by (1, 2, 3, 0)"
    elif 4 in (shape[1], shape[3]):
        way_out = "leave out alpha"
    elif 1 in (shape[1], shape[3]):
        way_out = "repeat its one channel three times"
    raise OptionError(f"{name} is {shape}; {_LAYOUTS}: {way_out}")


class Images(Sequence[NDArray[np.uint8]]):
    """PIL images as frames, uint8 [H, W, 3], each converted on access. Alpha is composited on black."""

    def __init__(self, images: Sequence[Image]) -> None:
        sizes = {image.size for image in images}
        if len(sizes) > 1:
            raise OptionError(f"pictures of one video have one size, these are of {_listed(sizes)}: resize them")
        deep = {image.mode for image in images if image.mode.startswith(("I", "F"))}
        if deep:
            raise OptionError(f"pictures of mode {_listed(deep)} have more than 8 bits: make them 'L' or 'RGB'")
        self._images = images
        width, height = images[0].size
        self.size = height, width

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        image = self._images[index]
        try:
            return rgb_of(image)
        except (OSError, ValueError, SyntaxError) as error:  # its file is truncated, or was closed
            name = getattr(image, "filename", "") or "<images>"
            raise CorruptVideoError(f"{name!r}: picture {index} cannot be read ({error})", str(name)) from error


def _is_image(value: Any) -> bool:
    """Whether it is a PIL image; does not import PIL."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def _is_tensor(value: Any) -> bool:
    module = sys.modules.get("torch")
    return module is not None and isinstance(value, module.Tensor)


def _is_picture(value: Any) -> bool:
    return _is_image(value) or (getattr(value, "ndim", None) == 3 and hasattr(value, "__array__"))


def _is_picture_file(value: Any) -> bool:
    """Whether it is a path with a picture's extension."""
    is_path = isinstance(value, str | os.PathLike) and not isinstance(os.fspath(value), bytes)
    return is_path and os.path.splitext(os.fspath(value))[1].lower() in PICTURE_EXTENSIONS


def _listed(values: Iterable[Any]) -> str:
    found = sorted(map(str, values))
    return ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")


if TYPE_CHECKING:  # types of PyTorch and Pillow, without importing them at run time
    Frames = NDArray[np.uint8] | Tensor | Sequence[Image] | Sequence[NDArray[np.uint8]] | Sequence[Tensor]
    VideoInput = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Frames | VideoSource
    """One video."""
