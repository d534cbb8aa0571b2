"""The videos of a job on a Ray cluster: decoders on its CPUs, networks on its GPUs or CPUs, streaming through Ray Data.

Ray Data gives blocks of videos to the decoders, and their clips in batches to the networks, starts and ends actors as
the work needs them, holds decoders back where networks are slow, and does again what was lost with a node. Results come
to the process that started the job, which alone writes. What Ray Data gives twice is ignored there (``Assembly``), and
what it has not given at the end of a pass is done in another; so the exactly-once of a job does not rest on Ray's.

A decoder is an actor with a process of its own below it: a video that kills its decoder kills that process, not the
actor, so that it is known which video it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tada.data.workers import WorkerProcess
from tada.errors import UserError, VideoError
from tada.jobs.one_machine import ATTEMPTS, clip_of_job, clip_seconds
from tada.jobs.ray_connection import in_passes
from tada.jobs.videos import JobVideo, videos_in
from tada.jobs.work import Assembly, Done, Values, Views, Work
from tada.recognition.video_clips import VideoClip, default_batch_size

_MAX_BLOCK_VIDEOS = 64
_BLOCKS_OF_A_DECODER = 4
_BLOCK_BYTES = 8 * 2**20  # of clips: what a lost node has to do again


def do_on_cluster(videos: pa.Table, work: Work, *, batch_size: int | None) -> Generator[Done, None, None]:
    """Do the work for each video, in any order, each once.

    Raises:
        UserError: an error that is not of one video: a full disk of a node, a store that refuses.
        WorkerLostError: three passes in a row gave no result.
    """
    assembly = Assembly(work)
    left = videos

    def one_pass() -> Iterator[Done]:
        nonlocal left
        done: list[str] = []
        try:
            for found in _one_pass(left, work, assembly, batch_size):
                done.append(found.video.id)
                yield found
        finally:
            left = left.filter(pc.invert(pc.is_in(left.column("id"), pa.array(done, pa.string()))))

    yield from in_passes(one_pass, lambda: len(left), "video")


def _one_pass(videos: pa.Table, work: Work, assembly: Assembly, batch_size: int | None) -> Iterator[Done]:
    """Send the videos through the cluster once; some may be missing at the end."""
    import ray.data
    from ray.data import ActorPoolStrategy

    context = ray.data.DataContext.get_current()
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_gpus, num_cpus = (int(resources.get(name, 0)) for name in ("GPU", "CPU"))
    # Without GPUs each core has a decoder and a network with one thread, and the system shares it among them.
    cpus_of_each = 1.0 if num_gpus else 0.5
    most = max(1, num_cpus)
    # Each decoder gets several blocks, so that none has much to do when the others are at the end.
    rows_of_block = max(1, min(len(videos) // (_BLOCKS_OF_A_DECODER * most), _MAX_BLOCK_VIDEOS))
    blocks = [videos.slice(start, rows_of_block) for start in range(0, len(videos), rows_of_block)]
    context.target_max_block_size = max(_BLOCK_BYTES, 2 * math.prod(work.clip_shape()))
    # Actors are started again, and their tasks done again, as often as it takes: Ray Data's default.
    clips = ray.data.from_arrow(blocks).map_batches(
        Decoder,
        fn_constructor_args=[work],
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=cpus_of_each,
        compute=ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),
    )
    values = clips.map_batches(
        NetworkActor,
        fn_constructor_args=[work],
        batch_size=batch_size or default_batch_size(has_gpu=num_gpus > 0, has_workers=True),
        batch_format="pyarrow",
        num_gpus=1 if num_gpus else 0,
        num_cpus=0 if num_gpus else cpus_of_each,
        compute=ActorPoolStrategy(min_size=1, max_size=num_gpus or most, initial_size=num_gpus or most),
    )
    for batch in values.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        table: pa.Table = batch
        for row in table.to_pylist():
            done = assembly.add(JobVideo(row["id"], row["address"]), _clip_of(row), _values_of(row))
            if done is not None:
                yield done


def _clip_of(row: dict[str, Any]) -> VideoClip:
    fault = _fault_of(row) if row["fault"] else None
    return VideoClip(row["number"], row["num_clips"], row["start"], row["end"], fault=fault)


def _fault_of(row: dict[str, Any]) -> VideoError:
    fault = VideoError(row["message"], row["address"])
    fault.reason = row["fault"]
    return fault


def _values_of(row: dict[str, Any]) -> Values | None:
    return None if row["fault"] else np.frombuffer(row["values"], np.float32)


class Decoder:
    """An actor that decodes: rows of videos -> rows of their clips, some at a time."""

    def __init__(self, work: Work) -> None:
        self._process: WorkerProcess[JobVideo, VideoClip] = WorkerProcess(work.decode, clip_seconds(work))
        self._most_rows = max(1, _BLOCK_BYTES // math.prod(work.clip_shape()))

    def __call__(self, videos: pa.Table) -> Iterator[pa.Table]:
        rows = []
        for video in videos_in(videos):
            for found in self._process.answers(video, attempts=ATTEMPTS):
                rows.append(_row_of(video, clip_of_job(video, found)))
                if len(rows) == self._most_rows:
                    yield pa.Table.from_pylist(rows, _CLIP_SCHEMA)
                    rows = []
        yield pa.Table.from_pylist(rows, _CLIP_SCHEMA)


def _row_of(video: JobVideo, clip: VideoClip) -> dict[str, Any]:
    return {
        "id": video.id,
        "address": video.address,
        "number": clip.number,
        "num_clips": clip.num_clips,
        "start": clip.start_seconds,
        "end": clip.end_seconds,
        "fault": "" if clip.fault is None else clip.fault.reason,
        "message": "" if clip.fault is None else str(clip.fault),
        "views": clip.views.tobytes(),
    }


_CLIP_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("address", pa.string()),
        ("number", pa.int64()),
        ("num_clips", pa.int64()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("fault", pa.string()),
        ("message", pa.string()),
        ("views", pa.binary()),
    ]
)


class NetworkActor:
    """An actor with the network: rows of clips -> the same rows, with values in place of pixels."""

    def __init__(self, work: Work) -> None:
        import torch

        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        self._shape = work.clip_shape()
        self._fault: UserError | None = None
        try:
            self._network: Callable[[Views], Values] = work.network()
        except UserError as error:  # raised at the first batch: from here it would come as a dead actor, tried again
            self._fault = error

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._fault is not None:
            raise self._fault
        views = [
            np.frombuffer(cell.as_buffer(), np.uint8).reshape(self._shape)
            for cell, fault in zip(table.column("views"), table.column("fault").to_pylist(), strict=True)
            if not fault
        ]
        values = iter(self._network(np.stack(views)) if views else ())
        found = [b"" if fault else next(values).tobytes() for fault in table.column("fault").to_pylist()]
        return table.drop_columns(["views"]).append_column("values", pa.array(found, pa.binary()))
