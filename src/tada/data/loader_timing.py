"""Speed of data loading: the CPU time of one clip, and how long training waits for batches.

The time of a clip is the CPU time of its thread for opening, decoding and augmenting it, whatever else the machine does
meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from torch.utils.data import Dataset

Sample = TypeVar("Sample")
Batch = TypeVar("Batch")


class TimedDataset(Dataset[tuple[Any, float]]):
    """A data set that returns each sample with the CPU seconds it took."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> tuple[Any, float]:
        started = time.thread_time()
        return self.dataset[key], time.thread_time() - started


class TimedCollate(Generic[Sample, Batch]):
    """Collates samples of a ``TimedDataset`` to a batch and a list of their times."""

    def __init__(self, collate: Callable[[Sequence[Sample]], Batch]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[tuple[Sample, float]]) -> tuple[Batch, list[float]]:
        return self.collate([sample for sample, _ in samples]), [seconds for _, seconds in samples]


class LoaderTimes:
    """Times of a loader's clips and of waiting for its batches, since the last ``clear``."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all times."""
        self.clip_seconds: list[float] = []
        self.waited_seconds: list[float] = []

    def measured(self, batches: Iterator[tuple[Batch, list[float]]]) -> Iterator[Batch]:
        """Yield the batches without their times, which are recorded."""
        while True:
            asked = time.perf_counter()
            found = next(batches, None)
            if found is None:
                return
            batch, clip_seconds = found
            self.waited_seconds.append(time.perf_counter() - asked)
            self.clip_seconds += clip_seconds
            yield batch

    def summary(self, *, used_seconds: float) -> dict[str, float]:
        """Numbers for a log; empty if there was no batch.

        ``clip_ms_p50``, ``clip_ms_p95``: median and 95th percentile of a clip's CPU time.
        ``clips_per_second_per_core``: what one worker on one core can load. ``clips_per_second``: what was loaded.
        ``data_time_share``: fraction of the time in which training waited for clips.

        Args:
            used_seconds: time of the training steps meanwhile. The time between two batches is not used for it, since
                a loop may prefetch batches.
        """
        if not self.clip_seconds:
            return {}
        median, slow = np.percentile(self.clip_seconds, [50, 95]) * 1000
        waited = sum(self.waited_seconds)
        seconds = max(waited + used_seconds, 1e-9)
        return {
            "clip_ms_p50": float(median),
            "clip_ms_p95": float(slow),
            "clips_per_second_per_core": len(self.clip_seconds) / max(sum(self.clip_seconds), 1e-9),
            "clips_per_second": len(self.clip_seconds) / seconds,
            "data_time_share": waited / seconds,
        }
