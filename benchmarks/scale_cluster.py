"""What the simulation and the formulas are about: machines and buffers, work, and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

Seconds = Callable[[Random], float]
"""Draws how long something takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """Machines of one kind, and how many workers each of them has."""

    count: int
    fetches: int
    """Files that one machine fetches at a time."""
    decoders: int
    """Processes, each on a core of its own."""
    networks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Machines, and the buffers between their workers."""

    nodes: Sequence[Nodes]
    batch: int
    """Videos in a network's batch, at most: it takes what is there."""
    fetched_buffer: int
    """Files on one machine's disk that wait for a decoder, at most."""
    decoded_buffer: int
    """Decoded videos of the whole cluster that wait for a network, at most."""
    results_buffer: int
    """Batches of rows that wait for the driver, at most."""
    shard_videos: int
    """Rows with which the driver writes a file."""

    def count(self, workers: str) -> int:
        """All "fetches", "decoders" or "networks" of the cluster."""
        return sum(kind.count * getattr(kind, workers) for kind in self.nodes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is to be done, and how long each step takes."""

    videos: int
    fetch: Seconds
    decode: Seconds
    """Of a video, all its clips."""
    network: Callable[[int], float]
    """Seconds of a batch of so many readable videos."""
    driver_batch_seconds: float
    """For the driver to receive one batch of rows."""
    shard_seconds: float
    """For the driver to write one file."""
    arrivals_per_second: float | None = None
    """None: all videos are there at the beginning. Otherwise they come one by one, at random."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """What goes wrong, and how often."""

    node_kills_per_hour: float = 0.0
    """Of one machine that is up."""
    node_back_seconds: float = 0.0
    """Until a killed machine works again."""
    driver_kills_per_hour: float = 0.0
    driver_back_seconds: float = 0.0
    unreadable: float = 0.0
    """Share of the videos that cannot be decoded: they become rows with a fault."""
    crash: float = 0.0
    """Share of decodings in which the process dies, half-way."""
    killers: float = 0.0
    """Share of the videos that kill their process each time: they are set aside after the third."""
    restart_seconds: float = 0.0
    """Until a decoder that died is there again."""


ATTEMPTS = 3
"""Decodings in which the process dies, before the video is set aside."""
