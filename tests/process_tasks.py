"""What the tests have done in other processes: by name, so in a module of its own, which is quick to import."""

from __future__ import annotations

import os
import signal
import sys
import time


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
