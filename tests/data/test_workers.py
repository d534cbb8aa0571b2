"""A worker process that dies or hangs loses one task; no process is left running."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hang import HANG_SECONDS
from process_tasks import act, process_id
from tada.data import check, prepare
from tada.data.annotations import read_dataset
from tada.data.workers import Lost, in_processes

TESTS = Path(__file__).parents[1]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_task_is_done_once_whatever_dies() -> None:
    tasks = ["a", "segfault", "b", "exit", "print", "kill", "c", "d"]
    done = list(in_processes(act, tasks, num_processes=2, timeout_seconds=HANG_SECONDS))
    assert sorted(task for task, _ in done) == sorted(tasks)
    assert dict(done) == {
        "a": "A",
        "segfault": Lost("the decoder crashed (signal SIGSEGV)"),
        "b": "B",
        "exit": Lost("the decoder ended its process (exit code 3)"),
        "print": "PRINT",
        "kill": Lost("the decoder crashed (signal SIGKILL; was memory short?)"),
        "c": "C",
        "d": "D",
    }


def test_a_task_that_takes_too_long_is_lost() -> None:
    assert list(in_processes(act, ["hang"], num_processes=1, timeout_seconds=1.5)) == [
        ("hang", Lost("no answer within 1.5 s", is_late=True))
    ]


def test_what_the_function_raises_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="what the function raised"):
        list(in_processes(act, ["a", "fail", "b"], num_processes=1, timeout_seconds=HANG_SECONDS))


def test_no_tasks() -> None:
    assert list(in_processes(act, [], num_processes=4, timeout_seconds=1.0)) == []


def test_a_caller_who_stops_early_leaves_no_process() -> None:
    work = in_processes(process_id, range(1000), num_processes=2, timeout_seconds=HANG_SECONDS)
    pids = {next(work)[1] for _ in range(4)}
    work.close()  # type: ignore[attr-defined]  # a generator
    assert pids
    assert not any(isinstance(pid, int) and is_running(pid) for pid in pids)


def test_processes_end_when_the_caller_is_killed() -> None:
    code = (
        "from process_tasks import process_id\n"
        "from tada.data.workers import in_processes\n"
        "for _, pid in in_processes(process_id, range(100000), num_processes=1, timeout_seconds=600):\n"
        "    print(pid, flush=True)\n"
    )
    paths = os.pathsep.join([str(TESTS), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    ) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        caller.kill()
    for _ in range(10 * HANG_SECONDS):
        if not is_running(pid):
            break
        time.sleep(0.1)
    assert not is_running(pid)


@pytest.mark.parametrize("module", [check, prepare])
def test_work_that_fails_ends_its_processes_at_once(
    module: ModuleType, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the error is forgotten; else the garbage collector would end them, perhaps in one of their own threads."""
    begun: list[Generator[Any, None, None]] = []

    def watched(*args: Any, **options: Any) -> Generator[Any, None, None]:
        begun.append(in_processes(*args, **options))
        return begun[-1]

    def fail_after_one(items: Iterator[Any], *args: Any, **options: Any) -> Iterator[Any]:
        yield next(items)
        raise ValueError("a fault of the caller")

    monkeypatch.setattr(module, "in_processes", watched)
    monkeypatch.setattr(module, "track", fail_after_one)
    work = {check: check.check_dataset, prepare: prepare.prepare}[module]
    with pytest.raises(ValueError, match="a fault of the caller") as held:
        work(read_dataset(motion_videos), tmp_path / "out", num_processes=1, show_progress=False)
    assert held.value.__traceback__ is not None  # and with it the generator
    assert [inspect.getgeneratorstate(generator) for generator in begun] == [inspect.GEN_CLOSED]
