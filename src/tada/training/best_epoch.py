"""What the tests of held-out videos decide: whose epoch's weights are kept, and whether training goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tada.errors import CheckpointError
from tada.training.checkpoints import WholeFileCheckpoints

BEST = Path("resume", "best.ckpt")
"""Where a run's folder holds the state after the best epoch, if that is to be kept."""


class BestEpoch(Callback):
    """Knows the best of the epochs that were tested: the highest accuracy, and of equal ones the lowest loss.

    The state after an epoch is saved before its test, so a run that goes on from it tests again, and finds the same.
    Lightning's own callbacks count by one number, and their counts are not those of such a state. Where no loss is
    measured on held-out videos, of equal accuracies the earlier counts.
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
        """Watch.

        Args:
            file: receives the state after the best epoch, if ``keep``.
            accuracy: the name of the metric.
            stop_early: end after so many epochs without a better one.
            say: receives why training ended early.
        """
        self.file, self.accuracy, self.keep, self.stop_early = file, accuracy, keep, stop_early
        self.steps_per_epoch, self.say = steps_per_epoch, say
        self.epoch = 0
        """The best one, from 1; 0 before the first test."""
        self.metrics: dict[str, float] = {}
        """Of its test."""
        self.since = 0
        """The epoch from which those without a better one are counted."""
        self.epochs = 0
        """How many the run was to have, when its state was saved."""

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "metrics": dict(self.metrics), "since": self.since, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "score" in state_dict:  # of a localizer, by an earlier tada
            self._take_over(state_dict["score"])
            return
        self.epoch, self.metrics = state_dict["epoch"], state_dict["metrics"]
        self.since, self.epochs = state_dict["since"], state_dict["epochs"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over what a still earlier tada, which had Lightning's ModelCheckpoint for this, knew of its best."""
        for name, state in checkpoint["callbacks"].items():
            if name.startswith("ModelCheckpoint") and state.get("monitor") == self.accuracy:
                score = state["best_model_score"]
                self._take_over(-1.0 if score is None else float(score))

    def _take_over(self, score: float) -> None:
        """Know the best score so far, which is -1 before the first test, and not of which epoch it is."""
        if score >= 0:
            self.metrics = {self.accuracy: score}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epochs = trainer.max_epochs or 0
        if self.epochs and epochs > self.epochs:  # whoever asks for more wants them tried
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
                + ("" if self.keep else "; the weights are those of now, with --keep best they would be those of then")
            )

    def _score(self, metrics: dict[str, float]) -> tuple[float, float]:
        return metrics[self.accuracy], -metrics.get("val_loss", 0.0)

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
