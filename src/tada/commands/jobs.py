"""Options of jobs, ``--out`` and ``--ray``, and what ``tada predict`` and ``extract`` do with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from tada.commands.arguments import say_aside
from tada.errors import UserError
from tada.system.signals import advise
from tada.system.terminal import say

if TYPE_CHECKING:
    from tada.data.workers import Pool
    from tada.jobs.run import Summary

MAX_FILE_MB = 4096
_LOCAL = "local"  # tada.jobs.run.LOCAL_RAY, which is too heavy to import here


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
        "--max-file-mb", type=PositiveInt, default=MAX_FILE_MB, help="largest file that is fetched from an address"
    )


@contextmanager
def pool_of(ray: str | None, seen: str) -> Iterator[Pool | None]:
    """What does the work of ``tada check`` and ``prepare``: the cluster of ``--ray``; None: this machine's processes.

    Args:
        seen: a folder that all nodes have to see.
    """
    if ray is None:
        yield None
        return
    from tada.jobs.run import check_ray

    check_ray()
    from tada.jobs.ray_connection import check_nodes, connected, shared_paths
    from tada.jobs.ray_tasks import on_cluster

    with connected(ray):
        check_nodes(shared_paths([seen]))
        yield on_cluster


def job_arguments(options: Namespace, *, batch_size: int | None = None) -> dict[str, Any]:
    """The arguments of ``predict_into`` and ``extract_into`` that both commands have."""
    from tada.jobs.run import Engine
    from tada.system.object_store import ObjectStore

    advise(lambda state: f"what was done is kept in {options.out}: the same command goes on")
    return {
        "fps": options.fps,
        "device": options.device,
        "store": ObjectStore(allowed=tuple(options.allow), max_file_bytes=options.max_file_mb * 10**6),
        "engine": Engine(
            ray=options.ray,
            num_workers=options.num_workers,
            batch_size=batch_size,
        ),
        "say": say_aside,
    }


def report_job(summary: Summary, out: Path) -> int:
    """Print the summary of a job.

    Returns:
        The exit code: 1 if there are videos without a result.
    """
    for line in summary.lines():
        say(line)
    arrays = ", arrays/*.safetensors" if (out / "arrays").exists() else ""
    say(f"they are in {out}: rows/*.parquet{arrays}, summary.json")
    return 1 if summary.without_result else 0


def check_no_others(options: Namespace, names: tuple[str, ...]) -> None:
    """Refuse options that do not go with ``--out``.

    Raises:
        UserError: one is given.
    """
    given = [f"--{name.replace('_', '-')}" for name in names if options[name] not in (None, False, "table")]
    if given:
        raise UserError(f"{given[0]} does not go with --out, which writes shards of rows: leave one of them out")
