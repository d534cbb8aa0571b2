"""The loader's own clock: whose time is counted as what, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from tada.data.annotations import read_dataset
from tada.data.timing import LoaderTimes, TimedCollate, TimedDataset
from tada.speed import LoaderSpeed
from test_clips import equal, loader


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
    assert times.summary() == {}
    got = []
    for batch in times.measured(batches()):
        got.append(batch)
        clock.now += 3.0  # the network works
    assert got == [f"batch {i}" for i in range(4)]
    assert times.summary() == {
        "clip_ms_p50": pytest.approx(25.0),  # of 20 20 20 20 30 40 50 60
        "clip_ms_p95": pytest.approx(56.5),
        "clips_per_second_per_core": pytest.approx(8 / 0.26),
        "clips_per_second": pytest.approx(8 / 16),
        "data_time_share": pytest.approx(0.25),
    }
    times.clear()
    assert times.summary() == {}


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
    numbers = measured.times.summary()
    assert len(measured.times.clip_seconds) == 12
    assert 0 < numbers["clip_ms_p50"] <= numbers["clip_ms_p95"]
    assert 0 < numbers["data_time_share"] <= 1


@pytest.mark.parametrize(("waited", "advice"), [(1.0, False), (9.0, True)])
def test_the_first_epoch_is_told_and_all_are_logged(waited: float, advice: bool) -> None:
    times = LoaderTimes()
    said: list[str] = []
    logged: list[tuple[dict[str, float], int]] = []
    logger = SimpleNamespace(log_metrics=lambda numbers, step: logged.append((numbers, step)))
    trainer: Any = SimpleNamespace(train_dataloader=SimpleNamespace(times=times), loggers=[logger], global_step=7)
    callback = LoaderSpeed(said.append)
    task: Any = torch.nn.Identity()
    for _ in range(2):
        callback.on_train_epoch_start(trainer, task)
        assert times.clip_seconds == []
        times.clip_seconds, times.waited_seconds, times.used_seconds = [0.02] * 9 + [0.04], waited, 10.0 - waited
        callback.on_train_epoch_end(trainer, task)
    (line,) = said
    assert line.startswith("a clip takes 20 ms of a core (95 of 100 at most 31 ms); training waits for clips ")
    assert f"{waited * 10:.0f} % of the time" in line
    assert ("tada prepare" in line) == advice
    assert [step for _, step in logged] == [7, 7]
    assert logged[0][0]["loader_data_time_share"] == pytest.approx(waited / 10)
