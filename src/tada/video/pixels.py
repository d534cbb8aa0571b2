"""From a decoded frame to RGB, as players show it."""

from __future__ import annotations

from typing import NamedTuple, Self

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter


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
    pixels = reformatter.reformat(frame, geometry.width, geometry.height, form, threads=1).to_ndarray()
    if has_alpha:
        weighted = pixels[..., :3].astype(np.uint16) * pixels[..., 3:]
        pixels = ((weighted + 127) // 255).astype(np.uint8)
    return np.rot90(pixels, geometry.quarter_turns)
