"""Write a copy of a video with class names, scores and a timeline drawn in; its sound and times are kept."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path

import av.error
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tada.errors import CorruptVideoError, OptionError
from tada.system.files import check_ending, write_whole, writing
from tada.video.captions import Captions, Lane
from tada.video.container import Limits
from tada.video.frames import OpenVideo
from tada.video.inputs import VideoSource, source_of
from tada.video.reader import MAX_FRAMES, MAX_PIXELS, Video
from tada.video.sound import Sound
from tada.video.writer import write_video

_SHORT_SIDE = 240  # smaller frames are enlarged to it, so that text has room
_LONG_SIDE = 1920  # larger frames are made smaller, so that browsers play them
_LEAST_WIDTH = 96  # in pixels; narrower frames have no room for text
_TICK = 1 / 90_000  # seconds: the unit in which the writer stores times
_KEYFRAME_INTERVAL = 60
_CRF = 21.0


def annotate_video(
    source: str | os.PathLike[str] | VideoSource,
    target: str | os.PathLike[str],
    lanes: Sequence[Lane],
    *,
    overwrite: bool = False,
    advance: Callable[[float], None] = lambda part: None,
) -> None:
    """Write an MP4 (H.264, AAC) that browsers play, with the source's frames, times and sound, and ``lanes`` drawn in.

    The file appears when it is complete, or not at all. Frames are processed one by one, and non-square pixels are
    made square. Sound that cannot be decoded is left out, with a warning. A class name that no installed font can draw
    is shown as a number; NAME.classes.txt beside NAME.mp4 lists these numbers and names.

    Args:
        advance: called after each frame with the fraction of the video written since the last call.

    Raises:
        VideoError: the source cannot be read to its end, or its times or sound cannot be stored in an MP4.
        OptionError: the target does not end in .mp4, exists without ``overwrite``, or is the source; or the source's
            frames have no times.
    """
    given, target = source_of(source), Path(target)
    path = given.name
    check_ending(target, ".mp4", "videos are written as MP4")
    if not given.has_times:
        raise OptionError(f"{path} does not say when its frames are shown: give predict their fps")
    if target.exists():
        if os.path.exists(path) and os.path.samefile(path, target):
            raise OptionError(f"{str(target)!r} is the video itself: give another name or folder")
        if not overwrite:
            raise OptionError(f"{str(target)!r} is there already: give another name, or overwrite=True")
    with given.open() as video, _open_sound(video) as sound:
        if sound is not None and sound.codec is not None and sound.start_seconds is None:
            warnings.warn(f"the sound of {path!r} ({sound.codec}) cannot be decoded and is left out", stacklevel=2)
        info = video.info
        width, height = _output_size(info.width, info.height, info.pixel_aspect)
        captions = Captions(lanes, width=width, height=height, duration_seconds=info.duration_seconds)

        def draw_frames() -> Iterator[NDArray[np.uint8]]:
            for seconds, frame in video:
                yield captions.draw(_resize_frame(frame, width, height), seconds)
                advance(1 / info.num_frames)

        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_video(
                target,
                draw_frames(),
                times_seconds=_separate_times(video),
                crf=_CRF,
                keyframe_interval_frames=_KEYFRAME_INTERVAL,
                fast_encode=True,
                sound=None if sound is None or sound.start_seconds is None else sound,
            )
        except (av.error.ArgumentError, av.error.InvalidDataError) as fault:  # an MP4 cannot hold them
            raise CorruptVideoError(
                f"{path!r}: its sound or its times are damaged and cannot be written into another file; convert it "
                "first",
                path,
            ) from fault
    if captions.legend:
        lines = "".join(f"{number}\t{name}\n" for number, name in captions.legend.items())
        write_whole(target.with_suffix(".classes.txt"), lines.encode())


@contextmanager
def _open_sound(video: OpenVideo) -> Iterator[Sound | None]:
    """Open the sound of a video file; None for frames in memory or in a folder."""
    if not isinstance(video, Video):
        yield None
        return
    limits = Limits(max_pixels=MAX_PIXELS, max_frames=MAX_FRAMES, timeout_seconds=30.0)
    with closing(Sound(video.info.path, limits)) as sound:
        yield sound


def _output_size(width: int, height: int, pixel_aspect: Fraction) -> tuple[int, int]:
    """Width and height of the output frames: even, with square pixels, neither tiny nor huge."""
    aspect = float(pixel_aspect)
    wide, high = width * max(aspect, 1.0), height / min(aspect, 1.0)  # no pixel is lost
    scale = 1.0
    if min(wide, high) < _SHORT_SIDE:
        scale = float(-(-_SHORT_SIDE // min(wide, high)))  # a whole number, so that pixels are only repeated
    scale = min(scale, _LONG_SIDE / max(wide, high))
    even_width, even_height = (2 * round(side * scale / 2) for side in (wide, high))
    return max(even_width, _LEAST_WIDTH), max(even_height, 2)


def _resize_frame(frame: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    if frame.shape[:2] == (height, width):
        return frame
    if height % frame.shape[0] == width % frame.shape[1] == 0:
        return frame.repeat(height // frame.shape[0], axis=0).repeat(width // frame.shape[1], axis=1)
    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0))


def _separate_times(video: OpenVideo) -> list[float]:
    """The frames' times, at least one tick of the writer apart: closer ones are delayed."""
    times: list[float] = []
    for seconds in video.times_seconds.tolist():
        times.append(max(seconds, times[-1] + _TICK) if times else seconds)
    return times
