"""The videos of a job on this machine: decoded in processes, seen by the network in this one."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from tada.data.worker_streams import iterators_in_processes
from tada.data.workers import Lost
from tada.jobs.videos import JobVideo, videos_in
from tada.jobs.work import Assembly, Done, Values, Views, Work
from tada.recognition.video_clips import CLIP_SECONDS, VideoClip, clip_of, most_held
from tada.system.files import remove_dead_parts
from tada.system.object_store import masked

ATTEMPTS = 3
"""How often a video is begun whose process dies; then it is set aside."""
_FETCH_SECONDS = 3600.0


def clip_seconds(work: Work) -> float:
    """Longest time for a process to yield a clip; the first one of an address is fetched in that time, too."""
    return CLIP_SECONDS + (_FETCH_SECONDS if work.source.store.allowed else 0.0)


def do_here(videos: pa.Table, work: Work, *, num_workers: int, batch_size: int) -> Generator[Done, None, None]:
    """Do the work for each video, in order.

    Args:
        videos: as from ``list_videos``.
        num_workers: processes that decode, at least 1.
        batch_size: clips that the network takes at once.
    """
    network, assembly = work.network(), Assembly(work)
    decoded = iterators_in_processes(
        work.decode,
        videos_in(videos),
        num_processes=max(num_workers, 1),
        timeout_seconds=clip_seconds(work),
        max_held=min(2 * batch_size + num_workers, most_held(math.prod(work.clip_shape()))),
        attempts=ATTEMPTS,
    )
    with _without_leftovers(work), closing(decoded):
        batch: list[tuple[JobVideo, VideoClip]] = []
        waiting = 0
        for video, found in decoded:
            clip = clip_of_job(video, found)
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


def clip_of_job(video: JobVideo, found: VideoClip | Lost) -> VideoClip:
    """As ``clip_of``; the error of a lost video shows no secret of its address."""
    return clip_of(masked(video.address), found)
