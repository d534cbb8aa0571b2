"""Many short files on one machine: predictions and jobs against `tada evaluate`, and how long the network waits.

    python benchmarks/many_videos.py --out OUT [--videos-per-class 100] [--rounds 5]

Draws videos of the twenty motions that the shipped weights know (80x64 pixels, 16 frames) into OUT/videos. In each
round, in an order drawn anew, they are answered by `evaluate` (the yardstick), by ``predict_all`` with a thread or
decoding processes, by a job (`tada predict --out`) with processes and by one on Ray on this machine. All use
``--num-workers`` decoders. Rates are from the first answer to the last, without the start of processes. The network
waits in that time where it is not called. Prints a table, writes OUT/many_videos.json.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tada
from run_lines import ends_in_a_line, output_folder, positive
from tada.data.motion import MOTIONS, STROKES, write_motion_videos
from tada.jobs import run as jobs
from tada.jobs.run import LOCAL_RAY, Engine, predict_into
from tada.jobs.work import Done
from tada.recognition.recognizer import Recognizer, load_recognizer
from tada.system.accelerator import HostCopy
from timing import Spread, show, write_report

RUN = "tada2d_tiny_motion"


@dataclass
class Clock:
    """When answers came, and how long the network took."""

    network_seconds: float = 0.0
    times: list[float] = field(default_factory=list)

    def note(self) -> None:
        if not self.times:
            self.network_seconds = 0.0
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """From the first answer to the last."""
        return self.times[-1] - self.times[0]


@ends_in_a_line()
def main() -> None:
    """Draw, measure in rounds, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=output_folder, default=Path("runs/many_videos"))
    parser.add_argument("--videos-per-class", type=positive, default=100)
    parser.add_argument("--num-workers", type=positive, default=2)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = arguments.out / "videos"
    if not folder.exists():
        write_motion_videos(folder, videos_per_class=arguments.videos_per_class, seed=0, motions=(*MOTIONS, *STROKES))
    files = sorted(folder.rglob("*.mp4"))
    recognizer = load_recognizer(RUN)
    workers = arguments.num_workers
    rows: dict[str, Callable[[], Clock]] = {
        "evaluate": lambda: evaluate(folder, workers),
        "predict_all, a thread": lambda: predict(recognizer, files, 0),
        "predict_all, processes": lambda: predict(recognizer, files, workers),
        "job, processes": lambda: job(folder, arguments.out / "job", Engine(num_workers=workers)),
        "job, Ray": lambda: job(folder, arguments.out / "job", Engine(ray=LOCAL_RAY)),
    }
    rates: dict[str, list[float]] = {name: [] for name in rows}
    waits: dict[str, list[float]] = {name: [] for name in rows}
    dice = random.Random(0)
    for _ in range(arguments.rounds):
        for name in dice.sample(list(rows), len(rows)):
            clock = rows[name]()
            rates[name].append((len(clock.times) - 1) / clock.seconds)
            waits[name].append(1 - clock.network_seconds / clock.seconds)
            print(f"{name}: {rates[name][-1]:.1f} videos/s", flush=True)
    show(
        f"{len(files)} files, {workers} decoders, medians and quartiles of {arguments.rounds} rounds",
        ["", "videos/s", "of evaluate", "network waits"],
        [
            [
                name,
                Spread.of(rates[name]).text(1),
                Spread.of_ratio(rates[name], rates["evaluate"]).text(),
                "" if "Ray" in name else f"{100 * Spread.of(waits[name]).median:.0f} %",
            ]
            for name in rows
        ],
    )
    arguments.json = arguments.json or arguments.out / "many_videos.json"
    write_report(arguments, "many_videos", torch.device("cpu"), files=len(files), videos_per_second=rates, waits=waits)


@contextmanager
def timed_network(clock: Clock) -> Iterator[None]:
    """Count the seconds of all calls of the network."""
    real = Recognizer.start_scores

    def start_scores(self: Recognizer, views: Tensor) -> HostCopy:
        started = time.perf_counter()
        found = real(self, views)
        clock.network_seconds += time.perf_counter() - started
        return found

    Recognizer.start_scores = start_scores  # type: ignore[method-assign]
    try:
        yield
    finally:
        Recognizer.start_scores = real  # type: ignore[method-assign]


def evaluate(folder: Path, num_workers: int) -> Clock:
    """`tada evaluate`; its answers come in batches, each when the network has seen it."""
    from tada.recognition import evaluation

    clock = Clock()
    real = evaluation._votes

    def votes_of(*args: Any, **options: Any) -> Any:
        votes = real(*args, **options)
        for _ in votes:
            clock.note()
        return votes

    evaluation._votes = votes_of
    try:
        with timed_network(clock):
            tada.evaluate(RUN, folder, num_workers=num_workers, show_progress=False, say=lambda line: None)
    finally:
        evaluation._votes = real
    return clock


def predict(recognizer: Recognizer, files: list[Path], num_workers: int) -> Clock:
    """``Recognizer.predict_all``."""
    clock = Clock()
    with timed_network(clock):
        for _ in recognizer.predict_all(files, num_workers=num_workers):
            clock.note()
    return clock


def job(folder: Path, out: Path, engine: Engine) -> Clock:
    """``predict_into`` a new folder."""
    shutil.rmtree(out, ignore_errors=True)
    clock = Clock()
    real = jobs._started

    @contextmanager
    def started(*args: Any) -> Iterator[Iterator[Done]]:
        with real(*args) as results:
            yield noted(results)

    def noted(results: Iterator[Done]) -> Iterator[Done]:
        for done in results:
            clock.note()
            yield done

    jobs._started = started
    try:
        with timed_network(clock):
            predict_into(out, RUN, [folder], engine=engine, show_progress=False, say=lambda line: None)
    finally:
        jobs._started = real
    return clock


if __name__ == "__main__":
    main()
