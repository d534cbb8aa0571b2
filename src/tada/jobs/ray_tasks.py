"""A function of each file of a data set on a Ray cluster, in place of ``tada.data.workers.in_processes``."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import ray.data
from ray.data import ActorPoolStrategy

from tada.data.workers import Lost, WorkerProcess
from tada.jobs.one_machine import ATTEMPTS
from tada.jobs.ray_connection import in_passes

Task = TypeVar("Task")
Result = TypeVar("Result")

_MOST_BLOCKS = 1000


def on_cluster(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    num_processes: int,
    timeout_seconds: float,
) -> Generator[tuple[Task, Result | Lost], None, None]:
    """Yield each task and ``function(task)``, in any order, as ``in_processes`` does, inside ``connected``.

    A task whose process dies is begun again twice; one whose node dies, as often as it takes.

    Args:
        num_processes: is not used: the cluster has as many as it has cores.

    Raises:
        UserError: an error that ``function`` raises.
        WorkerLostError: three passes in a row gave no result.
    """
    left = dict(enumerate(tasks))

    def one_pass() -> Iterator[tuple[Task, Result | Lost]]:
        items = [{"number": number, "task": pickle.dumps(task)} for number, task in left.items()]
        rows = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS)).flat_map(
            TaskRunner,
            fn_constructor_args=[function, timeout_seconds],
            num_cpus=1,
            compute=ActorPoolStrategy(min_size=1, max_size=len(items)),
        )
        for row in rows.iter_rows():
            if row["number"] in left:
                yield left.pop(row["number"]), pickle.loads(row["result"])

    yield from in_passes(one_pass, lambda: len(left), "file")


class TaskRunner:
    """An actor that calls the function, in a process of its own."""

    def __init__(self, function: Callable[[Any], Any], timeout_seconds: float) -> None:
        self._process: WorkerProcess[Any, Any] = WorkerProcess(function, timeout_seconds)

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for result in self._process.answers(pickle.loads(row["task"]), attempts=ATTEMPTS):
            yield {"number": row["number"], "result": pickle.dumps(result)}
