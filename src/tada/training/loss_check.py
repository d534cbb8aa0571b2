"""The check that every loss is finite: a run ends before a step with another, and names its videos.

On a CPU the loss is read before the backward pass. On a GPU the host would have to wait for it in every step, so there
the check is in two halves. The device skips the update of a step whose loss is not finite in any process: fused
optimizers take such a flag (``found_inf``, made for gradient scalers). And the host reads the flag a step later, or
before a state is saved, and ends the run. So no weights and no saved state hold such a step, on either.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import lightning as L
import torch
from torch import Tensor

from tada.errors import UserError
from tada.system.accelerator import HostNumbers
from tada.system.collectives import gathered, max_over_ranks
from tada.system.files import write_whole
from tada.training.checkpoints import CHECKPOINT
from tada.training.run_folder import NON_FINITE_FILE


class NonFiniteLossError(UserError):
    """The loss is infinite or nan. The step was not taken, and the run may be resumed from its last saved state."""


class LossOfBatch(NamedTuple):
    """Which batch a loss is of."""

    epoch: int
    """From 0."""
    batch: int
    """In the epoch, from 0."""
    paths: list[str]
    """The videos of the batch in this process; empty if they have no paths."""


class LossCheck:
    """Checks the losses of a run.

    Args:
        at_once: read every loss at once on a GPU, too, for optimizers that cannot skip a step.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
        self._losses: HostNumbers[LossOfBatch] = HostNumbers()
        self._is_bad: Tensor | None = None
        """Float, 1 where a loss of this optimizer step is not finite in any process; on the device."""

    def note(self, loss: Tensor, of: LossOfBatch, task: L.LightningModule) -> None:
        """Note the loss of a batch, before its backward pass. All processes must call this.

        Raises:
            NonFiniteLossError: it is not finite in any process; on a GPU, that of the batch before.
        """
        loss = loss.detach()
        is_bad = max_over_ranks((~loss.isfinite()).float())
        self._is_bad = is_bad if self._is_bad is None else torch.maximum(self._is_bad, is_bad)
        known = self._losses.add(torch.stack([is_bad.to(loss.dtype), loss]), of)
        self._raise_for([*known, *self._losses.rest()] if self.at_once else known, task)

    def skip_bad_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Have the device skip the step that follows if a loss of it is not finite."""
        if getattr(optimizer, "_step_supports_amp_scaling", False):  # as gradient scalers ask: it is fused
            skipping: Any = optimizer
            skipping.found_inf, skipping.grad_scale = self._is_bad, None
        self._is_bad = None

    def settle(self, task: L.LightningModule) -> None:
        """Wait for all losses noted so far. All processes must call this.

        Raises:
            NonFiniteLossError: one of them is not finite.
        """
        self._raise_for(self._losses.rest(), task)

    def _raise_for(self, known: list[tuple[Tensor, LossOfBatch]], task: L.LightningModule) -> None:
        for numbers, of in known:
            is_bad, loss = numbers.tolist()
            if is_bad:
                self._losses.clear()
                _raise(loss, of, task.trainer)


def _raise(loss: float, of: LossOfBatch, trainer: L.Trainer) -> NoReturn:
    """Raise the error, in all processes."""
    fine = math.isfinite(loss)
    paths = gathered([] if fine else of.paths)
    value = gathered([] if fine else [loss])[0]
    videos = ""
    if paths:
        more = f" and {len(paths) - 5} more, all in {NON_FINITE_FILE}" if len(paths) > 5 else ""
        videos = f". The batch's videos: {', '.join(paths[:5])}{more}"
        if trainer.is_global_zero:
            file = Path(trainer.default_root_dir) / NON_FINITE_FILE
            write_whole(file, ("\n".join(paths) + "\n").encode(errors="surrogateescape"))
    has_state = Path(trainer.default_root_dir, CHECKPOINT).exists()
    raise NonFiniteLossError(
        f"the loss is {value} in epoch {of.epoch + 1}, batch {of.batch + 1}: lower learning_rate, or set "
        f"clip_gradient_norm{'; the last saved state can be resumed' if has_state else ''}{videos}"
    )
