"""Iterators in processes: their items come in the order of the tasks, whatever dies, and few are held in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hang import HANG_SECONDS
from process_tasks import count_to, die_once_at, pids
from tada.data.worker_streams import iterators_in_processes
from tada.data.workers import Lost


def run(tasks: list[str], *, num_processes: int = 2, attempts: int = 1) -> list[tuple[str, int | Lost]]:
    return list(
        iterators_in_processes(
            count_to, tasks, num_processes=num_processes, timeout_seconds=HANG_SECONDS, max_held=4, attempts=attempts
        )
    )


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_items_come_in_the_order_of_the_tasks(num_processes: int) -> None:
    lengths = [3, 0, 1, 7, 0, 2, 5, 1]
    found = run([str(length) for length in lengths], num_processes=num_processes)
    assert found == [(str(length), i) for length in lengths for i in range(length)]


def test_no_tasks() -> None:
    assert run([]) == []


def test_a_process_that_dies_loses_its_task_alone() -> None:
    crashed = Lost("the decoder crashed (signal SIGSEGV)")
    assert run(["1", "2 segfault", "1"]) == [
        ("1", 0),
        ("2 segfault", 0),
        ("2 segfault", 1),
        ("2 segfault", crashed),
        ("1", 0),
    ]


def test_a_task_whose_process_dies_gives_all_its_items_again(tmp_path: Path) -> None:
    tasks = [str(tmp_path / "once"), str(tmp_path / "other")]
    found = iterators_in_processes(
        die_once_at, tasks, num_processes=1, timeout_seconds=HANG_SECONDS, max_held=2, attempts=2
    )
    once, other = tasks
    given = list(found)
    assert [number for task, number in given if task == once] == [0, 1, 0, 1, 2, 3]
    assert [number for task, number in given if task == other] == [0, 1, 0, 1, 2, 3]
    assert len(given) == 12


def test_one_that_always_kills_its_process_is_lost_after_the_last_attempt() -> None:
    assert run(["0 segfault"], attempts=3) == [("0 segfault", Lost("the decoder crashed (signal SIGSEGV), 3 times"))]


def test_a_task_that_hangs_is_not_begun_again() -> None:
    found = iterators_in_processes(count_to, ["1 hang"], num_processes=1, timeout_seconds=1.5, max_held=1, attempts=3)
    assert list(found) == [("1 hang", 0), ("1 hang", Lost("no answer within 1.5 s", is_late=True))]


def test_what_the_function_raises_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="what the function raised"):
        run(["1", "0 fail"])


def test_what_the_tasks_raise_reaches_the_caller() -> None:
    def tasks() -> Iterator[str]:
        yield "1"
        raise LookupError("no more of them")

    found = iterators_in_processes(count_to, tasks(), num_processes=2, timeout_seconds=HANG_SECONDS, max_held=4)
    assert next(found) == ("1", 0)  # what comes before it is not lost
    with pytest.raises(LookupError, match="no more of them"):
        next(found)


def test_tasks_are_read_as_they_are_needed() -> None:
    read = []

    def tasks() -> Iterator[str]:
        for number in range(1000):
            read.append(number)
            yield "1"

    found = iterators_in_processes(count_to, tasks(), num_processes=2, timeout_seconds=HANG_SECONDS, max_held=5)
    for _ in range(10):
        next(found)
    found.close()
    assert len(read) <= 10 + 5 + 2


def test_what_stays_here_runs_in_this_process() -> None:
    found = iterators_in_processes(
        pids, [0, 1], num_processes=2, timeout_seconds=HANG_SECONDS, max_held=4, stays_here=lambda task: task == 0
    )
    (_, here), (_, there) = found
    assert here == os.getpid() != there


def test_a_caller_who_stops_early_leaves_no_process() -> None:
    found = iterators_in_processes(pids, range(1000), num_processes=2, timeout_seconds=HANG_SECONDS, max_held=4)
    seen = {pid for _, pid in (next(found), next(found))}
    found.close()
    for pid in seen:
        assert isinstance(pid, int)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
