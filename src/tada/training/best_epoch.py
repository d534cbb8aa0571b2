"""Choice of the best epoch by the tests of held-out videos, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tada.errors import CheckpointError
from tada.training.checkpoints import WholeFileCheckpoints

BEST = Path("resume", "best.ckpt")
"""File in a run's folder of the state after the best epoch, if the recipe keeps that epoch."""


class BestEpoch(Callback):
    """Finds the best tested epoch: the one of highest accuracy, and among equal accuracies the one of lowest loss.

    The state after an epoch is saved before its test, so a run that is resumed from it repeats the test, with the same
    result. Lightning's own callbacks compare one number only, and their saved state misses that test. Without a loss
    on held-out videos, the earliest epoch of equal accuracy is the best.
    """

    def __init__(
        self,
        file: Path,
        *,
        accuracy: str,
        steps_per_epoch: int,
        keep: bool = True,
        stop_early: int | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Start without a best epoch.

        Args:
            file: where the state after the best epoch is written, if ``keep``.
            accuracy: the name of the metric.
            stop_early: stop training after this many epochs without a better one; None: never.
            say: prints why training stopped early.
        """
        self.file, self.accuracy, self.keep, self.stop_early = file, accuracy, keep, stop_early
        self.steps_per_epoch, self.say = steps_per_epoch, say
        self.epoch = 0
        """The best epoch, counted from 1; 0 before the first test."""
        self.metrics: dict[str, float] = {}
        """The metrics of its test."""
        self.since = 0
        """The epoch after which epochs without improvement are counted for ``stop_early``."""
        self.epochs = 0
        """Number of epochs that the run was set to train for when its state was saved."""

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "metrics": dict(self.metrics), "since": self.since, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "score" in state_dict:  # a localizer's state, saved by an earlier version of tada
            self._set_score(state_dict["score"])
            return
        self.epoch, self.metrics = state_dict["epoch"], state_dict["metrics"]
        self.since, self.epochs = state_dict["since"], state_dict["epochs"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the best score from a state of a still older version, which used Lightning's ModelCheckpoint."""
        for name, state in checkpoint["callbacks"].items():
            if name.startswith("ModelCheckpoint") and state.get("monitor") == self.accuracy:
                score = state["best_model_score"]
                self._set_score(-1.0 if score is None else float(score))

    def _set_score(self, score: float) -> None:
        """Set the best score so far (-1 before the first test), whose epoch is not known."""
        if score >= 0:
            self.metrics = {self.accuracy: score}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epochs = trainer.max_epochs or 0
        if self.epochs and epochs > self.epochs:  # a user who raises --epochs wants these to be trained
            self.since = max(self.since, trainer.global_step // self.steps_per_epoch)
        self.epochs = epochs

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.global_step // self.steps_per_epoch
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        if not self.metrics or self._score(metrics) > self._score(self.metrics):
            self.epoch, self.since, self.metrics = epoch, epoch, metrics
            if self.keep:
                trainer.save_checkpoint(self.file)
        elif self.stop_early is not None and self.stop_early <= epoch - self.since and epoch < self.epochs:
            trainer.should_stop = True
            self.say(
                f"training ends after epoch {epoch} of {trainer.max_epochs}: no better {self.accuracy} since epoch "
                f"{self.epoch} ({self.metrics[self.accuracy]:.3f})"
                + ("" if self.keep else "; the last epoch's weights are kept (--keep best keeps the best epoch's)")
            )

    def _score(self, metrics: dict[str, float]) -> tuple[float, float]:
        loss = metrics.get("val_loss", 0.0)
        return metrics[self.accuracy], -loss if math.isfinite(loss) else -math.inf

    def weights(self, network: str) -> dict[str, Tensor]:
        """The network's weights after the best epoch, on the CPU.

        Args:
            network: which attribute of the Lightning module it is.

        Raises:
            CheckpointError: the file is damaged or gone.
        """
        try:
            state = WholeFileCheckpoints().load_checkpoint(self.file)
        except CheckpointError as error:
            raise CheckpointError(
                f"{str(self.file)!r}, the state after the best epoch ({self.epoch}), is damaged or gone: train anew"
            ) from error
        prefix = f"{network}."
        return {name.removeprefix(prefix): v for name, v in state["state_dict"].items() if name.startswith(prefix)}
