"""Limits of a server: what a request may cost."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tada.errors import OptionError
from tada.video.isolation.limits import DecodingLimits

MOST_CLIPS = 100
"""Largest number of clips of a video, or of each window, that a request may ask for."""
LEAST_WINDOW_SECONDS = 0.1
"""Shortest window that a request may ask for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a request may cost. A request beyond a limit gets an error in one line; the others go on."""

    max_megabytes: float = 500.0
    """Largest video file, in MB."""
    max_video_seconds: float = 600.0
    """Longest video, in seconds of its own time."""
    max_memory_megabytes: float = 2048.0
    """Memory for decoding one video, in MB."""
    decode_seconds: float = 30.0
    """Time for decoding one video, in seconds."""
    upload_seconds: float = 300.0
    """Time for one upload, in seconds."""
    answer_seconds: float = 300.0
    """Time from the end of the upload to the answer, in seconds."""
    concurrent: int = 4
    """Videos that are processed at a time."""
    max_waiting: int = 64
    """Requests that may wait for these; one more is refused with 503."""
    max_batch: int = 16
    """Clips that pass the network at a time."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, least = getattr(self, entry.name), 0 if entry.name == "max_waiting" else 1
            if isinstance(entry.default, float) and not 0 < value < float("inf"):
                raise OptionError(f"{entry.name}={value} should be a positive number")
            if isinstance(entry.default, int) and value < least:
                raise OptionError(f"{entry.name}={value} should be {least} or more")

    @property
    def decoding(self) -> DecodingLimits:
        """What decoding one video may cost."""
        return DecodingLimits(
            max_seconds=self.max_video_seconds,
            max_memory_megabytes=self.max_memory_megabytes,
            decode_seconds=self.decode_seconds,
            owner="this server",
        )

    @property
    def max_bytes(self) -> int:
        """Largest video file, in bytes."""
        return int(self.max_megabytes * 1e6)
