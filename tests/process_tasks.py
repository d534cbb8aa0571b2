"""What the tests have done in other processes: by name, so in a module of its own, which is quick to import."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path


def act(task: str) -> str:
    """Do what the task says: die, hang, fail, print, or answer in capitals."""
    if task == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "exit":
        os._exit(3)
    if task == "hang":
        time.sleep(86_400)
    if task == "fail":
        raise ValueError("what the function raised")
    if task == "print":
        print("not an answer", flush=True)
        sys.stdout.write("nor this")
    return task.upper()


def process_id(task: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def count_to(task: str) -> Iterator[int]:
    """Yield numbers from 0 to before the one that the task begins with; then do what it says."""
    number, _, then = task.partition(" ")
    yield from range(int(number))
    if then:
        act(then)


def die_once_at(file: str) -> Iterator[int]:
    """Yield numbers from 0 to 3; the first time, die after two of them."""
    for number in range(4):
        if number == 2 and not Path(file).exists():
            Path(file).touch()
            act("kill")
        yield number


def pids(task: int) -> Iterator[int]:
    yield os.getpid()
