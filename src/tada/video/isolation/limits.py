"""What decoding a stranger's video may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodingLimits:
    """What decoding a video may cost; beyond a limit it is given up, with an error that says whose limit it is."""

    max_seconds: float
    """Longest video, in seconds of its own time."""
    max_memory_megabytes: float
    """Memory, in MB, where the system can limit it."""
    decode_seconds: float
    """Time for all of a video that is read while it is open, in seconds."""
    owner: str
    """Whose limits they are, in messages: "this server"."""

    @property
    def max_bytes(self) -> int:
        """Memory, in bytes."""
        return int(self.max_memory_megabytes * 1e6)
