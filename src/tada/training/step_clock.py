"""Step time, from the batch on the device to the end of the optimizer's update; measured once for all callbacks."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback


class StepClock(Callback):
    """Measures the training time of each batch. Callbacks that read it must follow it in the trainer's list."""

    def __init__(self, *, waits: bool = False) -> None:
        """Start without times.

        Args:
            waits: wait for the GPU after each batch. Otherwise the host goes on while the GPU computes: times of single
                steps then mean nothing, but their sum does, since the host is at most a step ahead.
        """
        self.waits = waits
        self.seconds: list[float] = []
        """Time of each batch of this epoch."""
        self._started = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._wait(pl_module.device)
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._wait(pl_module.device)
        self.seconds.append(time.perf_counter() - self._started)

    def _wait(self, device: torch.device) -> None:
        if self.waits and device.type == "cuda":
            torch.cuda.synchronize(device)
