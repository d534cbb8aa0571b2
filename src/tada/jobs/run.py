"""Run a job: find what is left to do, do it here or on a cluster, and write it; the same call goes on later."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from tada.errors import OptionError, counted
from tada.jobs.videos import list_videos
from tada.jobs.work import AnswerWork, Done, FeatureWork, Network, Source, Work, row_schema
from tada.recognition.recognizer import Recognizer, load_recognizer
from tada.recognition.video_clips import ClipChoice, default_batch_size
from tada.system.calls import checked
from tada.system.devices import check_num_workers, default_num_workers, find_device
from tada.system.locks import holds
from tada.system.object_store import ObjectStore, is_address, masked
from tada.system.progress import Work as Progress
from tada.system.signals import last_chance
from tada.training.recipe import fps_of_run
from tada.video.numbered import check_fps
from tada.video.sliding_windows import SlidingWindows

if TYPE_CHECKING:
    import pyarrow as pa

LOCAL_RAY = "local"
"""Instead of an address: a Ray cluster of this machine alone, which ends with the job."""
ROWS_PER_SHARD = 10_000
SECONDS_PER_SHARD = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """Where the work of a job is done."""

    ray: str | None = None
    """Address of a Ray cluster; ``LOCAL_RAY``: one is started on this machine; None: processes do the work."""
    num_workers: int | None = None
    """Decoding processes of this machine, where Ray is not used; by default one for each core, at most eight."""
    batch_size: int | None = None
    """Clips that a network takes at once; by default 8 on a CPU, 32 on a GPU."""

    def __post_init__(self) -> None:
        """Raise OptionError for a number out of its range."""
        for name, least in (("num_workers", 0), ("batch_size", 1)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise OptionError(f"{name} = {number} should be at least {least}")


HERE = Engine()
"""This machine, without Ray."""
NO_STORE = ObjectStore(allowed=())
"""No addresses are allowed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a run of a job did. ``there_before`` + ``done`` + ``faults`` = ``videos``."""

    videos: int
    """Videos that the job names."""
    there_before: int
    """Of these, with a row from an earlier run."""
    faults_before: int
    """Of these rows, without a result."""
    done: int
    """With a result now."""
    faults: dict[str, int]
    """Without one now, by reason."""
    others: int
    """Rows of the folder whose videos the job does not name any more."""
    other_paths: int
    """Rows that were there, and are of videos at other paths than those that have their ids now."""
    seconds: float
    """Of work, without what was read and checked before."""

    @property
    def without_result(self) -> int:
        """Videos without a result, now or from an earlier run."""
        return self.faults_before + sum(self.faults.values())

    def lines(self) -> list[str]:
        """The summary in words."""
        failed = sum(self.faults.values())
        before = f" ({self.faults_before} of them without a result)" if self.faults_before else ""
        rate = f", {(self.done + failed) / self.seconds:.1f} videos/s" if self.seconds and self.done + failed else ""
        found = [
            f"{counted(self.videos, 'video')}: {self.there_before} were there{before}, {self.done} done now, {failed} "
            f"without a result{rate}"
        ]
        if self.faults:
            found.append("  " + ", ".join(f"{reason} {count}" for reason, count in self.faults.items()))
        if self.faults_before:
            found.append("to try those again that had no result, remove rows/faults-*.parquet")
        if self.other_paths:
            found.append(
                f"there were {counted(self.other_paths, 'row')} of videos at other paths: what has the same id is "
                "taken for the same video; for other videos give another folder, or other ids (a CSV with a column id)"
            )
        if self.others:
            found.append(f"{counted(self.others, 'row')} of videos that are not named now are kept")
        return found


@holds("out")
def run_job(
    videos: pa.Table,
    work: Work,
    out: Path,
    *,
    engine: Engine,
    rows_per_shard: int = ROWS_PER_SHARD,
    seconds_per_shard: float = SECONDS_PER_SHARD,
    show_progress: bool = True,
) -> Summary:
    """Do the work for each video that has no row in the folder yet, and write the rows.

    Args:
        videos: as from ``list_videos``.

    Raises:
        OptionError: the folder holds another job's results; or the cluster cannot be reached, or has other versions.
        OutputError: the folder cannot be written, or another process writes into it.
        StoreAccessError: an object store refuses us.
        UserError: another error that is not of one video.
    """
    import pyarrow.compute as pc

    from tada.jobs.shards import Shards, begin, check_same_job, known_videos, write_summary

    about = work.about()
    check_same_job(out, about)
    known = known_videos(out, has_arrays=about["kind"] == "features")
    left = videos.filter(pc.invert(pc.is_in(videos.column("id"), known.column("id").combine_chunks())))
    there_before = len(videos) - len(left)
    others = len(known) - there_before
    named = pc.is_in(known.column("id"), videos.column("id").combine_chunks())
    faults_before = pc.sum(pc.and_(named, known.column("is_fault"))).as_py() or 0
    num_done, faults, started = 0, Counter[str](), time.monotonic()
    if not len(left):
        begin(out, about)  # of a list without videos the folder is this job's, too
    else:
        work.source.store.check_access(filter(is_address, left.column("address").to_pylist()))
        with (
            _started(left, work, engine) as results,
            Progress("working", len(left), noun="videos", is_shown=show_progress) as progress,
            Shards(out, row_schema(work), rows_per_shard=rows_per_shard, seconds_per_shard=seconds_per_shard) as shards,
            last_chance(shards.write),
        ):
            begin(out, about)
            for done in results:
                shards.add(done)
                if done.result is None:
                    faults[done.fault] += 1
                else:
                    num_done += 1
                progress.advance(1)
    summary = Summary(
        videos=len(videos),
        there_before=there_before,
        faults_before=faults_before,
        done=num_done,
        faults=dict(faults.most_common()),
        others=others,
        other_paths=_count_other_paths(videos, known),
        seconds=time.monotonic() - started if len(left) else 0.0,
    )
    if num_done + sum(faults.values()) != len(left):
        raise RuntimeError(f"{summary} does not add up: a fault of tada's")
    write_summary(out, asdict(summary))
    return summary


def _count_other_paths(videos: pa.Table, known: pa.Table) -> int:
    """How many of the videos have a row with another path."""
    import pyarrow.compute as pc

    ids = known.column("id").combine_chunks()
    there = videos.filter(pc.is_in(videos.column("id"), ids))
    before = known.column("path").take(pc.index_in(there.column("id"), ids)).to_pylist()
    return sum(masked(now) != path for now, path in zip(there.column("address").to_pylist(), before, strict=True))


@contextmanager
def _started(videos: pa.Table, work: Work, engine: Engine) -> Iterator[Iterator[Done]]:
    """Start the engine, and check it; yield the results, which come as they are asked for."""
    if engine.ray is None:
        from tada.jobs.one_machine import do_here

        num_workers = default_num_workers() if engine.num_workers is None else check_num_workers(engine.num_workers)
        has_gpu = find_device(work.model.device) != "cpu"
        batch_size = engine.batch_size or default_batch_size(has_gpu=has_gpu, has_workers=True)
        results = do_here(videos, work, num_workers=num_workers, batch_size=batch_size)
        with closing(results):
            yield results
        return
    check_ray()
    from tada.jobs.ray_cluster import do_on_cluster
    from tada.jobs.ray_connection import check_nodes, connected, shared_paths

    with connected(engine.ray):
        check_nodes(shared_paths([work.model.run, *videos.column("address").to_pylist()]))
        results = do_on_cluster(videos, work, batch_size=engine.batch_size)
        with closing(results):
            yield results


def check_ray() -> None:
    """Check that Ray is installed.

    Raises:
        OptionError: it is not.
    """
    if find_spec("ray") is None:
        raise OptionError(
            "--ray needs Ray, which is not installed: pip install 'tada-video[ray]'; without --ray the processes of "
            "this machine do the work"
        )


# --- the two kinds of work ---


@checked(num_clips=1, top=1)
def predict_into(
    out: str | PathLike[str],
    run: str | PathLike[str],
    videos: Sequence[str | PathLike[str]],
    *,
    num_clips: int | None = None,
    window_seconds: float | None = None,
    top: int = 5,
    fps: float | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    device: str | None = None,
    store: ObjectStore = NO_STORE,
    engine: Engine = HERE,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> Summary:
    """Classify many videos, and write the answers into a folder of shards; go on where an earlier call stopped.

    Args:
        out: the folder; see ``tada.jobs.shards``.
        run: as in ``load_recognizer``.
        videos: files, folders, patterns, CSV and Parquet files, addresses: see ``tada.jobs.videos.list_videos``.
        num_clips: this and ``window_seconds`` as for ``Recognizer.predict``.
        top: classes that are named for each video and clip.
        fps: rate of folders of frames, in frames per second; by default the rate in training.
        store: from where addresses may be fetched.
        engine: where the work is done.
        say: called with notices.

    Raises:
        UserError: as ``run_job``, ``list_videos`` and ``load_recognizer``.
    """
    check_parquet()
    source = Source(store=store, fps=fps_of_run(run) if fps is None else check_fps(fps))
    listed = list_videos([fspath(video) for video in videos], store, say)
    dtype = torch.bfloat16 if precision == "bf16" else None
    recognizer = load_recognizer(run, device=device, dtype=dtype)
    model = Network.of(recognizer, fspath(run), device=device, precision=precision)
    choice = ClipChoice(spec=recognizer.clip, num_clips=num_clips, window_seconds=window_seconds)
    work = AnswerWork.of(recognizer, model, source, choice, top=top)
    return run_job(listed, work, Path(out), engine=engine, show_progress=show_progress)


@checked()
def extract_into(
    out: str | PathLike[str],
    recognizer: Recognizer,
    run: str | PathLike[str],
    videos: Sequence[str | PathLike[str]],
    windows: SlidingWindows,
    *,
    fps: float | None = None,
    device: str | None = None,
    store: ObjectStore = NO_STORE,
    engine: Engine = HERE,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> Summary:
    """Extract the features of many videos into a folder of shards; go on where an earlier call stopped.

    Args:
        recognizer: the network of ``run``.
        run: where other processes load it from; of a localizer, the recognizer in it.
        windows: clips of the features.
        out: this and the other arguments as for ``predict_into``.

    Raises:
        UserError: as ``predict_into``.
    """
    check_parquet()
    source = Source(store=store, fps=fps_of_run(run) if fps is None else check_fps(fps))
    listed = list_videos([fspath(video) for video in videos], store, say)
    model = Network.of(recognizer, fspath(run), device=device)
    work = FeatureWork.of(recognizer, model, source, windows)
    return run_job(listed, work, Path(out), engine=engine, show_progress=show_progress)


def check_parquet() -> None:
    """Check that pyarrow is installed.

    Raises:
        OptionError: it is not.
    """
    if find_spec("pyarrow") is None:
        raise OptionError("shards of rows need pyarrow, which is not installed: pip install 'tada-video[parquet]'")
