"""From a decoded frame to RGB, as players show it."""

from __future__ import annotations

from typing import NamedTuple, Self

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

_ROWS_AT_ONCE = 256


class Geometry(NamedTuple):
    """To what size the frames of a video are brought, and how they are turned."""

    width: int
    """As stored, in pixels."""
    height: int
    """As stored, in pixels."""
    quarter_turns: int
    """Counterclockwise, to show a frame."""

    @classmethod
    def of(cls, frame: av.VideoFrame, stored: tuple[int, int]) -> Self:
        """That of the first frame; ``stored`` is (width, height) by the header, which may say zero."""
        width, height = stored if all(stored) else (frame.width, frame.height)
        return cls(width, height, round(frame.rotation / 90) % 4)


def to_rgb(frame: av.VideoFrame, geometry: Geometry, reformatter: VideoReformatter) -> npt.NDArray[np.uint8]:
    """[H, W, 3], turned; alpha is composited on black."""
    has_alpha = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    form = "rgba" if has_alpha else "rgb24"
    converted = reformatter.reformat(frame, geometry.width, geometry.height, form, threads=1)
    pixels = _without_copy(converted, 4 if has_alpha else 3)
    if has_alpha:
        shown = np.empty((*pixels.shape[:2], 3), np.uint8)
        for row in range(0, len(pixels), _ROWS_AT_ONCE):  # 16 bits a color of a whole frame of 8K are 200 MB
            rows = pixels[row : row + _ROWS_AT_ONCE]
            weighted = rows[..., :3].astype(np.uint16) * rows[..., 3:]
            shown[row : row + _ROWS_AT_ONCE] = (weighted + 127) // 255
        pixels = shown
    return np.rot90(pixels, geometry.quarter_turns)


def _without_copy(frame: av.VideoFrame, channels: int) -> npt.NDArray[np.uint8]:
    """A packed frame's pixels, [H, W, channels], where they lie; the array keeps them there."""
    (plane,) = frame.planes
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    pixels: npt.NDArray[np.uint8] = rows[:, : plane.width * channels].reshape(plane.height, plane.width, channels)
    return pixels
