"""The loader's timing: waiting for data and using it are measured and reported."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
from test_clips import equal, loader
from torch.utils.data import Dataset

from tada.data.annotations import read_dataset
from tada.data.loader_timing import LoaderTimes, TimedCollate, TimedDataset
from tada.training.loader_speed import LoaderSpeed
from tada.training.step_clock import StepClock


class Clock:
    """A clock that only goes on when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(time, "thread_time", clock)
    return clock


def test_waiting_and_using_are_told_apart(clock: Clock) -> None:
    def batches() -> Iterator[tuple[str, list[float]]]:
        for i in range(4):
            clock.now += 1.0  # the loader works
            yield f"batch {i}", [0.02, 0.03 + i / 100]

    times = LoaderTimes()
    assert times.summary(used_seconds=0.0) == {}
    got = []
    for batch in times.measured(batches()):
        got.append(batch)
        clock.now += 3.0  # the network works
    assert got == [f"batch {i}" for i in range(4)]
    assert times.waited_seconds == [1.0] * 4
    assert times.summary(used_seconds=12.0) == {
        "clip_ms_p50": pytest.approx(25.0),  # of 20 20 20 20 30 40 50 60
        "clip_ms_p95": pytest.approx(56.5),
        "clips_per_second_per_core": pytest.approx(8 / 0.26),
        "clips_per_second": pytest.approx(8 / 16),
        "data_time_share": pytest.approx(0.25),
    }
    times.clear()
    assert times.summary(used_seconds=0.0) == {}


def test_each_sample_brings_its_own_time(clock: Clock) -> None:
    class Slow(Dataset[int]):
        def __getitem__(self, key: int) -> int:
            clock.now += key
            return 10 * key

    timed = TimedDataset(Slow())
    collate: TimedCollate[int, list[int]] = TimedCollate(list)
    assert collate([timed[1], timed[3]]) == ([10, 30], [1.0, 3.0])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_measures_itself_and_gives_the_same_batches(motion_videos: Path, num_workers: int) -> None:
    table = read_dataset(motion_videos)
    measured, plain = loader(table, num_workers=num_workers), loader(table)
    assert all(map(equal, measured, plain))
    numbers = measured.times.summary(used_seconds=1.0)
    assert len(measured.times.clip_seconds) == 12
    assert 0 < numbers["clip_ms_p50"] <= numbers["clip_ms_p95"]
    assert 0 < numbers["data_time_share"] <= 1


def epoch(
    callback: LoaderSpeed, clock: Clock, trainer: Any, *, steps: int, waits_seconds: float, step_seconds: float
) -> None:
    """An epoch as Lightning runs it: the second batch is asked for before the first step, and so on."""
    task: Any = lightning.LightningModule()
    times = trainer.train_dataloader.times

    def batches() -> Iterator[tuple[int, list[float]]]:
        for i in range(steps):
            clock.now += waits_seconds
            yield i, [0.02] * 9 + [0.04]

    callback.clock.on_train_epoch_start(trainer, task)
    callback.on_train_epoch_start(trainer, task)
    assert times.clip_seconds == []
    handed_out = times.measured(batches())
    batch = next(handed_out)
    for i in range(steps):
        following = next(handed_out, None)
        callback.clock.on_train_batch_start(trainer, task, batch, i)
        clock.now += step_seconds
        callback.clock.on_train_batch_end(trainer, task, None, batch, i)
        batch = following
    clock.now += 1000.0  # validation
    callback.on_train_epoch_end(trainer, task)


def trainer_of(times: LoaderTimes, logged: list[tuple[dict[str, float], int]]) -> Any:
    logger = SimpleNamespace(log_metrics=lambda numbers, step: logged.append((numbers, step)))
    return SimpleNamespace(train_dataloader=SimpleNamespace(times=times), loggers=[logger], global_step=7)


@pytest.mark.parametrize(("waited", "advice"), [(1.0, False), (9.0, True)])
def test_the_first_epoch_is_told_and_all_are_logged(clock: Clock, waited: float, advice: bool) -> None:
    said: list[str] = []
    logged: list[tuple[dict[str, float], int]] = []
    trainer = trainer_of(LoaderTimes(), logged)
    callback = LoaderSpeed(StepClock(), said.append)
    for _ in range(2):
        epoch(callback, clock, trainer, steps=20, waits_seconds=waited, step_seconds=10.0 - waited)
    callback.on_train_end(trainer, lightning.LightningModule())
    (line,) = said
    assert line.startswith(
        "reading a clip takes 20 ms of one core, and of 100 clips 95 take at most 40 ms; training waits "
    )
    share = 19 * waited / (19 * waited + 20 * (10 - waited))
    assert f"clips {100 * share:.0f} % of the time" in line
    assert ("tada prepare" in line) == advice
    assert [step for _, step in logged] == [7, 7]
    assert logged[0][0]["loader_data_time_share"] == pytest.approx(waited / 10)


@pytest.mark.parametrize(("steps", "epochs_until_told"), [(1, 11), (4, 3), (10, 2), (11, 1)])
def test_short_epochs_are_told_when_there_are_enough(clock: Clock, steps: int, epochs_until_told: int) -> None:
    """After one step all that is known is how long the workers took to start: "waits 100 % of the time"."""
    said: list[str] = []
    callback = LoaderSpeed(StepClock(), said.append)
    trainer = trainer_of(LoaderTimes(), [])
    for number in range(1, epochs_until_told + 1):
        assert said == [], f"before epoch {number}"
        epoch(callback, clock, trainer, steps=steps, waits_seconds=1.0, step_seconds=4.0)
    (line,) = said
    assert re.search(r"training waits for clips (19|20) % of the time$", line)


def test_a_few_steps_say_nothing_about_waiting(clock: Clock) -> None:
    said: list[str] = []
    callback = LoaderSpeed(StepClock(), said.append)
    trainer = trainer_of(LoaderTimes(), [])
    epoch(callback, clock, trainer, steps=3, waits_seconds=1.0, step_seconds=4.0)
    callback.on_train_end(trainer, lightning.LightningModule())
    assert said == ["reading a clip takes 20 ms of one core, and of 100 clips 95 take at most 40 ms"]
