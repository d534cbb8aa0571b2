"""Time grid of features: index -> seconds, and back.

Errors of a clip's length here are the most common reason why a localizer that trained well finds nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from tada.errors import DataError, OptionError

if TYPE_CHECKING:
    from tada.video.sliding_windows import SlidingWindows

Number = TypeVar("Number", float, NDArray[np.float64])


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureGrid:
    """Times of a video's features: feature g stands for ``start_seconds + g * stride_seconds``."""

    start_seconds: float
    """Middle of feature 0's clip."""
    stride_seconds: float
    """Time between two features."""
    window_seconds: float
    """Length of a feature's clip."""

    def __post_init__(self) -> None:
        values = (self.start_seconds, self.stride_seconds, self.window_seconds)
        if not all(map(math.isfinite, values)) or self.stride_seconds <= 0 or self.window_seconds < 0:
            raise OptionError(
                f"features at {self.start_seconds} s, every {self.stride_seconds} s, of {self.window_seconds} s each: "
                "all should be numbers, the second positive and the third 0 or more"
            )

    @classmethod
    def of_windows(cls, windows: SlidingWindows) -> FeatureGrid:
        """The grid of sliding windows: feature k stands for the middle of the video's k-th stride."""
        return cls(
            start_seconds=windows.stride_seconds / 2,
            stride_seconds=windows.stride_seconds,
            window_seconds=windows.window_seconds,
        )

    @classmethod
    def of_frames(cls, *, fps: float, stride: float, clip_frames: float, offset: float | None = None) -> FeatureGrid:
        """The grid of published features, given in frames.

        Args:
            fps: the frame rate, in frames per second.
            stride: frames from one feature to the next.
            clip_frames: length of a clip, in frames.
            offset: middle of the first clip, in frames; by default half a clip, for clips that start with frame 0.
        """
        for name, value in (("fps", fps), ("stride", stride), ("clip_frames", clip_frames)):
            if not 0 < value < math.inf:
                raise OptionError(f"{name}={value} should be a positive number")
        middle = clip_frames / 2 if offset is None else offset
        return cls(start_seconds=middle / fps, stride_seconds=stride / fps, window_seconds=clip_frames / fps)

    def seconds(self, index: Number) -> Number:
        """Time of a feature index, which may be fractional."""
        return self.start_seconds + index * self.stride_seconds

    def index(self, seconds: Number) -> Number:
        """Feature index of a time, fractional."""
        return (seconds - self.start_seconds) / self.stride_seconds

    def resized(self, num_features: int, length: int) -> FeatureGrid:
        """The grid after ``num_features`` were resized to ``length`` (linear, with ``align_corners=False``)."""
        ratio = num_features / length
        return FeatureGrid(
            start_seconds=self.start_seconds + (ratio / 2 - 0.5) * self.stride_seconds,
            stride_seconds=self.stride_seconds * ratio,
            window_seconds=max(self.window_seconds, self.stride_seconds * ratio),
        )

    def check_length(self, num_features: int, duration_seconds: float, what: str) -> None:
        """Check the number of features against the video's duration.

        Extractors differ in where the last clip ends: within the video, or up to a clip beyond its end.

        Raises:
            DataError: the last feature's time is well before or after the video's end.
        """
        last = self.seconds(float(num_features - 1))
        slack = self.window_seconds / 2 + 2 * self.stride_seconds + 0.5
        if abs(last + self.stride_seconds / 2 - duration_seconds) > slack:
            expected = max(1, round((duration_seconds - self.start_seconds) / self.stride_seconds))
            raise DataError(
                f"{what}: {num_features} features, expected about {expected} for {duration_seconds:.1f} s at one every "
                f"{self.stride_seconds:.4g} s; they look like one every {duration_seconds / num_features:.4g} s: give "
                "the grid they were made with, or extract them anew"
            )
