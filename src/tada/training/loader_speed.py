"""Data loading time: the share of training that waits for clips, printed once and logged for every epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from tada.data.loader_timing import LoaderTimes
from tada.training.step_clock import StepClock

_MUCH = 0.2  # share of the time that is worth a hint
_ENOUGH_STEPS = 10  # for a share that is worth printing


def _times(trainer: L.Trainer) -> LoaderTimes:
    loader: Any = trainer.train_dataloader
    times: LoaderTimes = loader.times
    return times


class LoaderSpeed(Callback):
    """Logs the data loader's times of each epoch, and prints a summary once.

    The times are not in the run's metrics, since they differ between machines and days. The summary covers the first
    epochs that have more than ten steps together, without the first wait, in which the workers start.
    """

    def __init__(self, clock: StepClock, say: Callable[[str], None]) -> None:
        self.clock, self.say = clock, say
        self.is_said = False
        self.clip_seconds: list[float] = []
        self.waited_seconds: list[float] = []
        self.all_used_seconds = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _times(trainer).clear()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        times, used_seconds = _times(trainer), sum(self.clock.seconds)
        numbers = times.summary(used_seconds=used_seconds)
        for logger in trainer.loggers if numbers else ():
            logger.log_metrics({f"loader_{name}": value for name, value in numbers.items()}, step=trainer.global_step)
        if not self.is_said:
            self.clip_seconds += times.clip_seconds
            self.waited_seconds += times.waited_seconds
            self.all_used_seconds += used_seconds
            if len(self.waited_seconds) > _ENOUGH_STEPS:
                self._say()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.clip_seconds and not self.is_said:
            self._say()

    def _say(self) -> None:
        self.is_said = True
        median, slow = np.percentile(self.clip_seconds, [50, 95]) * 1000
        line = f"reading a clip takes {median:.0f} ms of one core, and of 100 clips 95 take at most {slow:.0f} ms"
        if len(self.waited_seconds) > _ENOUGH_STEPS:
            waited = sum(self.waited_seconds[1:])
            share = waited / max(waited + self.all_used_seconds, 1e-9)
            line += f"; training waits for clips {100 * share:.0f} % of the time"
            if share > _MUCH:
                line += "; more --num-workers, or a copy made by `tada prepare`, may help"
        self.say(line)
