"""The videos of a job on this machine: decoded in processes, seen by the network in this one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from tada.data.worker_streams import iterators_in_processes
from tada.data.workers import Lost
from tada.errors import DecoderLostError
from tada.jobs.videos import JobVideo, videos_in
from tada.jobs.work import Assembly, Done, Values, Views, Work
from tada.recognition.video_clips import CLIP_SECONDS, VideoClip
from tada.system.files import remove_dead_parts
from tada.system.object_store import masked

ATTEMPTS = 3
"""How often a video is begun whose process dies; then it is set aside."""
_FETCH_SECONDS = 3600.0
HELD_BYTES = 512 * 2**20
"""Clips that wait for a network, at most."""


def clip_seconds(work: Work) -> float:
    """Longest time for a process to yield a clip; the first one of an address is fetched in that time, too."""
    return CLIP_SECONDS + (_FETCH_SECONDS if work.source.store.allowed else 0.0)


def batch_size_of(*, has_gpu: bool) -> int:
    """Clips that a network takes at once by default: a CPU gains nothing from more."""
    return 32 if has_gpu else 8


def do_here(videos: pa.Table, work: Work, *, num_workers: int, batch_size: int) -> Generator[Done, None, None]:
    """Do the work for each video, in order.

    Args:
        videos: as from ``list_videos``.
        num_workers: processes that decode, at least 1.
        batch_size: clips that the network takes at once.
    """
    network, assembly = work.network(), Assembly(work)
    most = max(1, HELD_BYTES // int(np.prod(work.clip_shape())))
    decoded = iterators_in_processes(
        work.decode,
        videos_in(videos),
        num_processes=max(num_workers, 1),
        timeout_seconds=clip_seconds(work),
        max_held=min(2 * batch_size + num_workers, most),
        attempts=ATTEMPTS,
    )
    with _without_leftovers(work), closing(decoded):
        batch: list[tuple[JobVideo, VideoClip]] = []
        waiting = 0
        for video, found in decoded:
            clip = VideoClip(fault=lost(video, found)) if isinstance(found, Lost) else found
            batch.append((video, clip))
            waiting += clip.fault is None
            if waiting == batch_size:
                yield from _see(batch, network, assembly)
                batch, waiting = [], 0
        yield from _see(batch, network, assembly)


@contextmanager
def _without_leftovers(work: Work) -> Iterator[None]:
    """Remove, at the end, the fetched files of decoding processes that were killed."""
    try:
        yield
    finally:
        if work.source.store.allowed:
            remove_dead_parts(Path(tempfile.gettempdir()))


def _see(
    batch: Sequence[tuple[JobVideo, VideoClip]], network: Callable[[Views], Values], assembly: Assembly
) -> Iterator[Done]:
    """Let the network see a batch; yield the videos that are done with it."""
    views = [clip.views for _, clip in batch if clip.fault is None]
    values = iter(network(np.stack(views)) if views else ())
    for video, clip in batch:
        done = assembly.add(video, clip.without_views(), None if clip.fault is not None else next(values))
        if done is not None:
            yield done


def lost(video: JobVideo, found: Lost) -> DecoderLostError:
    """The fault of a video whose process has died each time, or took too long."""
    name = masked(video.address)
    return DecoderLostError(f"{name!r}: {found.reason}; leave it out, or convert it with another program", name)
