"""Run a job: find what is left to do, do it here or on a cluster, and write it; the same call goes on later."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tada.errors import OptionError, counted
from tada.jobs.work import AnswerWork, Done, FeatureWork, Network, Source, Work, row_schema
from tada.localization.features.extraction import backbone_hash, clip_outputs
from tada.recognition.recognizer import Recognizer
from tada.recognition.video_clips import ClipChoice
from tada.system.devices import check_num_workers, default_num_workers
from tada.system.locks import holds
from tada.system.object_store import is_address
from tada.system.progress import Work as Progress
from tada.video.sliding_windows import SlidingWindows

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_SHARD = 10_000
SECONDS_PER_SHARD = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """Where the work of a job is done."""

    is_ray: bool = False
    ray_address: str | None = None
    """Address of a Ray cluster; None: one is started on this machine."""
    num_workers: int | None = None
    """Decoding processes of this machine, where Ray is not used; by default one for each core, at most eight."""
    batch_size: int = 8
    """Clips that a network takes at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a run of a job did. ``there_before`` + ``done`` + ``faults`` = ``videos``."""

    videos: int
    """Videos that the job names."""
    there_before: int
    """Of these, with a row from an earlier run."""
    done: int
    """With a result now."""
    faults: dict[str, int]
    """Without one, by reason."""
    others: int
    """Rows of the folder whose videos the job does not name any more."""
    seconds: float
    """Of work, without what was read and checked before."""

    def lines(self) -> list[str]:
        """The summary in words."""
        failed = sum(self.faults.values())
        rate = f", {(self.done + failed) / self.seconds:.1f} videos/s" if self.seconds and self.done + failed else ""
        found = [
            f"{counted(self.videos, 'video')}: {self.there_before} were there, {self.done} done now, {failed} without "
            f"a result{rate}"
        ]
        if self.faults:
            found.append("  " + ", ".join(f"{reason} {count}" for reason, count in self.faults.items()))
        if self.others:
            found.append(f"{counted(self.others, 'row')} of videos that are not named now are kept")
        return found


@holds("out")
def run_job(
    videos: pa.Table,
    work: Work,
    out: Path,
    *,
    about: dict[str, Any],
    engine: Engine,
    rows_per_shard: int = ROWS_PER_SHARD,
    seconds_per_shard: float = SECONDS_PER_SHARD,
    show_progress: bool = True,
) -> Summary:
    """Do the work for each video that has no row in the folder yet, and write the rows.

    Args:
        videos: as from ``list_videos``.
        about: plain values that all rows of the folder depend on, for job.json.

    Raises:
        OptionError: the folder holds another job's results; or the cluster cannot be reached, or has other versions.
        OutputError: the folder cannot be written, or another process writes into it.
        StoreAccessError: an object store refuses us.
        UserError: another error that is not of one video.
    """
    import pyarrow.compute as pc

    from tada.jobs.shards import Shards, begin, check_same_job, ids_of, write_summary

    check_same_job(out, about)
    known = ids_of(out)
    left = videos.filter(pc.invert(pc.is_in(videos.column("id"), known)))
    there_before = len(videos) - len(left)
    others = len(known) - there_before
    num_done, faults, started = 0, Counter[str](), time.monotonic()
    if len(left):
        work.source.store.check_access(filter(is_address, left.column("address").to_pylist()))
        with (
            _started(left, work, engine) as results,
            Progress("working", len(left), noun="videos", is_shown=show_progress) as progress,
            Shards(out, row_schema(work), rows_per_shard=rows_per_shard, seconds_per_shard=seconds_per_shard) as shards,
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
        done=num_done,
        faults=dict(faults.most_common()),
        others=others,
        seconds=time.monotonic() - started if len(left) else 0.0,
    )
    if num_done + sum(faults.values()) != len(left):
        raise RuntimeError(f"{summary} does not add up: a fault of tada's")
    write_summary(out, asdict(summary))
    return summary


@contextmanager
def _started(videos: pa.Table, work: Work, engine: Engine) -> Iterator[Iterator[Done]]:
    """Start the engine, and check it; yield the results, which come as they are asked for."""
    if not engine.is_ray:
        from tada.jobs.one_machine import do_here

        num_workers = default_num_workers() if engine.num_workers is None else check_num_workers(engine.num_workers)
        results = do_here(videos, work, num_workers=num_workers, batch_size=engine.batch_size)
        with closing(results):
            yield results
        return
    check_ray()
    from tada.jobs.ray_cluster import do_on_cluster
    from tada.jobs.ray_connection import check_nodes, connected, shared_paths

    with connected(engine.ray_address):
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


# --- the work of the commands ---


def answer_work(
    recognizer: Recognizer, run: str, source: Source, choice: ClipChoice, *, top: int, is_bf16: bool = False
) -> AnswerWork:
    """The work of ``tada predict``."""
    return AnswerWork(
        source=source,
        model=_network_of(recognizer, run, is_bf16),
        choice=choice,
        labels=recognizer.answers,
        thresholds=recognizer.card.thresholds,
        top=top,
    )


def feature_work(
    recognizer: Recognizer, run: str, source: Source, windows: SlidingWindows, *, is_bf16: bool = False
) -> FeatureWork:
    """The work of ``tada extract``."""
    import torch

    spec = recognizer.clip
    frame = torch.zeros(1, windows.num_crops, spec.num_frames, spec.crop, spec.crop, 3, dtype=torch.uint8)
    return FeatureWork(
        source=source,
        model=_network_of(recognizer, run, is_bf16),
        spec=spec,
        windows=windows,
        score_labels=tuple((head.name, head.labels) for head in recognizer.heads),
        num_features=clip_outputs(recognizer, frame)[0].shape[1],
    )


def _network_of(recognizer: Recognizer, run: str, is_bf16: bool) -> Network:
    return Network(
        run=os.path.abspath(run) if os.path.exists(run) else run,
        weights_sha256=backbone_hash(recognizer.model),
        is_bf16=is_bf16,
    )


def about_job(work: AnswerWork | FeatureWork) -> dict[str, Any]:
    """What all rows of a job's folder depend on, as plain values."""
    about: dict[str, Any] = {
        "format": 1,
        "weights": work.model.weights_sha256,
        "precision": "bf16" if work.model.is_bf16 else "fp32",
        "fps": work.source.fps,
    }
    if isinstance(work, AnswerWork):
        return {
            "kind": "answers",
            **about,
            "clip": asdict(work.choice.spec),
            "clips": work.choice.num_clips,
            "window_seconds": work.choice.window_seconds,
            "top": work.top,
        }
    return {
        "kind": "features",
        **about,
        "clip": asdict(work.spec),
        **asdict(work.windows),
        "score_labels": {head: list(labels) for head, labels in work.score_labels},
    }
