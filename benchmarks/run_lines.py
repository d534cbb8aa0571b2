"""Benchmarks of many trainings: each run becomes a line of a file, several run side by side, and any may be stopped."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from tada.errors import UserError
from tada.models.weights import CARD_FILE


def positive(text: str) -> int:
    """A number of the command line."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number of at least 1")
    return int(text)


def output_folder(text: str) -> Path:
    """A folder of the command line: one that is there, or a name for one."""
    path = Path(text)
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise argparse.ArgumentTypeError(f"'{place}' is a file; name a folder")
    return path


def output_file(text: str) -> Path:
    """A file of the command line: one that is there, or a name for one."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"'{path}' is a folder; name a file")
    output_folder(str(path.parent))
    return path


def trained_model(text: str) -> Path:
    """The folder of motion weights on the command line."""
    path = Path(text)
    if not (path / CARD_FILE).is_file():
        raise argparse.ArgumentTypeError(f"{path} holds no trained model; benchmarks/motion_weights.py makes one")
    return path


@contextmanager
def ends_in_a_line() -> Iterator[None]:
    """What a user can do wrong ends the benchmark with its line alone. A decorator, too."""
    try:
        yield
    except UserError as error:
        raise SystemExit(str(error)) from error


def read_runs(file: Path, fault: Callable[[dict[str, Any]], str | None] = lambda run: None) -> list[dict[str, Any]]:
    """The lines of a file of runs; none if it does not exist.

    Args:
        fault: says what is wrong with a line, if anything is.
    """
    runs = []
    for number, line in enumerate(file.read_bytes().splitlines() if file.exists() else [], 1):
        if not line.strip():
            continue
        try:
            run = json.loads(line)
            found = fault(run) if isinstance(run, dict) else "no object"
        except ValueError as error:
            found = str(error)
        if found is not None:
            raise SystemExit(
                f"{file} line {number} is no run ({found}); remove the line: a call without --report runs it again"
            )
        runs.append(run)
    return runs


def fault_of_counts(run: dict[str, Any]) -> str | None:
    """What is wrong with a line that says how many of its test clips were right."""
    if any(type(run.get(key)) is not int for key in ("run", "right", "count")):
        return "'run', 'right' and 'count' should be whole numbers"
    if run["run"] < 0 or not 0 <= run["right"] <= run["count"] or not run["count"]:
        return f"run {run['run']}: {run['right']} of {run['count']} cannot be"
    return None


def run_all(
    run: Callable[..., dict[str, Any]],
    jobs: Sequence[tuple[Any, ...]],
    file: Path,
    *,
    num_workers: int,
    in_words: Callable[[dict[str, Any]], str] = str,
) -> None:
    """Run jobs in processes; add the line of each to the file as soon as it is done, and print it.

    Args:
        run: makes a line of the arguments that a job holds.
        in_words: what is printed of a line.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _workers(num_workers) as pool:
        begun = [pool.submit(run, *job) for job in jobs]
        for number, job in enumerate(as_completed(begun), 1):
            line = job.result()
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
            print(f"{number} of {len(begun)}: {in_words(line)}", flush=True)


@contextmanager
def _workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for jobs that take minutes; an error, Ctrl-C or SIGTERM ends them at once."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_leave_interrupts) as pool:
        try:
            yield pool
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in active_children():
                worker.kill()
            if isinstance(error, KeyboardInterrupt):
                raise SystemExit("stopped; what was run is kept, and the same command goes on") from None
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def _leave_interrupts() -> None:
    """Ctrl-C goes to all processes of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
