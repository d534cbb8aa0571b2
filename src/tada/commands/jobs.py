"""Options of jobs, ``--out`` and ``--ray``, and what ``tada predict`` and ``extract`` do with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from tada.commands.arguments import say_aside
from tada.errors import OptionError, UserError
from tada.system.signals import advise
from tada.system.terminal import say

if TYPE_CHECKING:
    import pyarrow as pa

    from tada.data.workers import Pool
    from tada.jobs.work import AnswerWork, FeatureWork, Source

_LOCAL = "local"


def add_ray(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--ray",
        type=str | None,
        nargs="?",
        const=_LOCAL,
        default=None,
        metavar="ADDRESS",
        help="let a Ray cluster do the work; without ADDRESS, one of this machine alone",
    )


def add_job(parser: ArgumentParser) -> None:
    """Add the options of a job, but for its folder."""
    add_ray(parser)
    parser.add_argument(
        "--allow",
        type=str,
        nargs="+",
        default=[],
        metavar="PREFIX",
        help="from where addresses may be fetched, as s3://bucket/videos/",
    )
    parser.add_argument(
        "--max-file-mb", type=PositiveInt, default=4096, help="largest file that is fetched from an address"
    )


@contextmanager
def pool_of(ray: str | None, seen: str) -> Iterator[Pool]:
    """What does the work of ``tada check`` and ``prepare``: processes of this machine, or the cluster of ``--ray``.

    Args:
        seen: a folder that all nodes have to see.
    """
    from tada.data.workers import in_processes

    if ray is None:
        yield in_processes
        return
    from tada.jobs.run import check_ray

    check_ray()
    from tada.jobs.ray_connection import check_nodes, connected, shared_paths
    from tada.jobs.ray_tasks import on_cluster

    with connected(None if ray == _LOCAL else ray):
        check_nodes(shared_paths([seen]))
        yield on_cluster


def job_source(options: Namespace, fps: float | None) -> Source:
    """How the job's videos are opened."""
    from tada.jobs.work import Source
    from tada.system.object_store import ObjectStore

    return Source(store=ObjectStore(allowed=tuple(options.allow), max_file_bytes=options.max_file_mb * 10**6), fps=fps)


def check_parquet() -> None:
    """Check that pyarrow is installed.

    Raises:
        OptionError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise OptionError("shards of rows need pyarrow, which is not installed: pip install 'tada-video[ray]'")


def list_job_videos(names: list[str], source: Source) -> pa.Table:
    """The videos of a job, as ``tada.jobs.videos.list_videos``."""
    from tada.jobs.videos import list_videos

    return list_videos(names, source.store, say_aside)


def run_and_report(
    videos: pa.Table, work: AnswerWork | FeatureWork, out: Path, options: Namespace, *, batch_size: int
) -> int:
    """Run a job and print its summary.

    Returns:
        The exit code: 1 if there are videos without a result.
    """
    from tada.jobs.run import Engine, about_job, run_job

    advise(lambda state: f"what is done is in {out}: the same command goes on")
    address = None if options.ray == _LOCAL else options.ray
    engine = Engine(
        is_ray=options.ray is not None, ray_address=address, num_workers=options.num_workers, batch_size=batch_size
    )
    summary = run_job(videos, work, out, about=about_job(work), engine=engine)
    for line in summary.lines():
        say(line)
    say(f"they are in {out}: rows/*.parquet, summary.json")
    return 1 if summary.faults else 0


def check_no_others(options: Namespace, names: tuple[str, ...]) -> None:
    """Refuse options that do not go with ``--out``.

    Raises:
        UserError: one is given.
    """
    given = [f"--{name.replace('_', '-')}" for name in names if options[name] not in (None, False, "table")]
    if given:
        raise UserError(f"{given[0]} does not go with --out, which writes shards of rows: leave one of them out")
