"""Trainings under the device guard: on "cuda", while the host may only wait for it between epochs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from accelerator_guard import AcceleratorGuard, accelerator_guard
from tada.system.devices import Processes
from tada.training.step_clock import StepClock


class GuardedAccelerator(CPUAccelerator):
    """Lightning's CPU, which accepts a device of another name."""

    def setup_device(self, device: torch.device) -> None:
        pass


class StrictClock(StepClock):
    """Forbids to wait for the device from an epoch's first batch to its last, and within tests of held-out videos.

    The first of the trainer's callbacks. In the first batch things are made that stay.
    """

    guard: AcceleratorGuard
    is_strict = False

    def _set(self, is_strict: bool) -> None:
        if is_strict != self.is_strict:
            self.is_strict = is_strict
            self.guard._allowed += -1 if is_strict else 1

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any, **named: Any) -> None:
        super().on_train_batch_end(trainer, *arguments, **named)
        self._set(not trainer.is_last_batch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._set(False)

    def on_validation_batch_start(self, *arguments: Any, **named: Any) -> None:
        self._set(True)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._set(False)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._set(False)


@contextmanager
def on_guarded_device(*, has_bf16: bool = False) -> Iterator[AcceleratorGuard]:
    """Within the block trainings are on a device that is guarded."""
    with accelerator_guard() as guard, pytest.MonkeyPatch.context() as patch, guard.allowed():
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
        options = {"accelerator": GuardedAccelerator(), "devices": 1, "num_nodes": 1}
        patch.setattr(Processes, "lightning", lambda self: {**options, "plugins": []})
        patch.setattr("tada.training.trainer.strategy_for", lambda processes: SingleDeviceStrategy("cuda:0"))
        patch.setattr(StrictClock, "guard", guard, raising=False)
        for module in ("tada.training.trainer", "tada.recognition.training"):
            patch.setattr(f"{module}.StepClock", StrictClock)
        yield guard
