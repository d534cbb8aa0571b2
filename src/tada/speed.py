"""Whether training waits for its data: told once, and logged for every epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from tada.data.timing import LoaderTimes

_MUCH = 0.2  # of the time


def _times(trainer: L.Trainer) -> LoaderTimes:
    loader: Any = trainer.train_dataloader
    times: LoaderTimes = loader.times
    return times


class LoaderSpeed(Callback):
    """Logs the loader's times of each epoch, beside the run's other numbers, and says those of the first.

    They are no part of the run's metrics: they differ from machine to machine, and from day to day.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.is_said = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _times(trainer).clear()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        numbers = _times(trainer).summary()
        if not numbers:
            return
        for logger in trainer.loggers:
            logger.log_metrics({f"loader_{name}": value for name, value in numbers.items()}, step=trainer.global_step)
        if not self.is_said:
            self.is_said = True
            share = numbers["data_time_share"]
            advice = "; more --num-workers, or a copy made by `tada prepare`, may help" if share > _MUCH else ""
            self.say(
                f"a clip takes {numbers['clip_ms_p50']:.0f} ms of a core (95 of 100 at most "
                f"{numbers['clip_ms_p95']:.0f} ms); training waits for clips {100 * share:.0f} % of the time{advice}"
            )
