"""Lightning module of a recognizer's training: the loss, the optimizer, and metrics on held-out videos.

Shapes: N clips or videos, V views, T frames, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from tada.data.balance import class_weights, positive_weights
from tada.data.clips import Batch
from tada.data.multi_label import mean_average_precision
from tada.data.views import ViewBatch
from tada.errors import DataError, UserError
from tada.models.parallel import shard
from tada.recognition.parameter_groups import parameter_groups
from tada.recognition.recipe import Recipe
from tada.recognition.trained_part import rest_in_evaluation
from tada.system.collectives import gathered, on_any
from tada.system.files import write_whole
from tada.training.checkpoints import CHECKPOINT
from tada.training.run_folder import NON_FINITE_FILE
from tada.training.trainer import scheduled
from tada.video.augment import draw_mixture
from tada.video.transforms import normalize


class NonFiniteLossError(UserError):
    """The loss is infinite or nan. The step was not taken, and the run may be resumed from its last saved state."""


class About(NamedTuple):
    """Facts about a run that are saved in its states."""

    trained_from: str
    """As in ``ModelCard``."""
    labels: tuple[str, ...]
    """Names of the classes, in the order of the logits."""


def several_loss(logits: Tensor, targets: Tensor, positive_weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy [N, K], summed over the classes and averaged over the clips.

    It is summed so that the gradient of a class does not depend on the number of classes.
    """
    of_all = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=positive_weights, reduction="none")
    return of_all.sum(1).mean()


class RecognitionTask(L.LightningModule):
    """The loss, the optimizer and the metrics.

    The network's logits are those of all heads, concatenated, [N, K]; the loss is the sum over the heads, as in the
    released code (``BaseHeadx2``). If clips may have several labels, it is ``several_loss``.
    """

    # There may be fewer validation videos than processes.
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        steps_per_epoch: int,
        head_sizes: Mapping[str, int],
        class_counts: Sequence[Sequence[int]] = (),
        several_of: int = 0,
    ) -> None:
        """Set up.

        Args:
            class_counts: number of training clips of each class of each head, for ``balance: loss``.
            several_of: number of training clips if each may have several labels; 0: each has one.
        """
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.head_sizes = head_sizes
        names = [f"val_{name}_top1" for name in head_sizes] if len(head_sizes) > 1 else ["val_top1"]
        tops = {
            name: MulticlassAccuracy(size, average="micro")
            for name, size in zip(names, head_sizes.values(), strict=True)
        }
        self.val_tops = nn.ModuleDict(tops)
        self.val_action_top1 = MeanMetric()
        self.val_loss = MeanMetric(nan_strategy="disable")  # nan stays nan, and is told as such
        self.several = several_of > 0
        self.val_several: list[tuple[list[float], list[int]]] = []
        """Probabilities and targets of the tested videos, if they may have several labels."""
        if self.several:
            self.val_tops = nn.ModuleDict()
            self.class_weights = [torch.tensor(positive_weights(counts, several_of)) for counts in class_counts]
        else:
            self.class_weights = [torch.tensor(class_weights(counts)) for counts in class_counts]
        self.num_tested = 0
        """Held-out videos that were read in the last test, over all processes."""
        self.about = About("", ())

    def train(self, mode: bool = True) -> RecognitionTask:
        """Set training mode, except for frozen modules."""
        super().train(mode)
        if mode:
            rest_in_evaluation(self.model)
        return self

    def on_fit_start(self) -> None:
        self.train()  # again, since norms may have been replaced by synchronized ones

    def on_train_start(self) -> None:
        # The rate in a saved state was computed for the number of epochs then, which may have been raised since.
        for scheduler in self.trainer.lr_scheduler_configs:
            curve = cast(torch.optim.lr_scheduler.LambdaLR, scheduler.scheduler)
            for group, peak, factor in zip(curve.optimizer.param_groups, curve.base_lrs, curve.lr_lambdas, strict=True):
                group["lr"] = peak * factor(curve.last_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tada"] = {"trained_from": self.about.trained_from, "labels": list(self.about.labels)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("tada")
        if saved is None:  # saved by an older version
            return
        if saved["labels"] != list(self.about.labels):
            raise DataError(
                "the classes of the data come in another order than those of the saved state: resume with the data in "
                "the form (folder, CSV or published list) in which the run was started"
            )
        self.about = self.about._replace(trained_from=saved["trained_from"])

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout is seeded for each step, so that a resumed run repeats the uninterrupted one.
        torch.manual_seed(hash((self.recipe.seed, self.current_epoch, batch_idx, self.global_rank)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        recipe = self.recipe
        clips = self._normalized(batch.clips)
        rng = np.random.default_rng((recipe.seed, self.current_epoch, batch_idx, 0))
        mixture = draw_mixture(
            mixup_alpha=recipe.mixup_alpha,
            cutmix_alpha=recipe.cutmix_alpha,
            cutmix_probability=recipe.cutmix_probability,
            rng=rng,
        )
        targets = [
            labels if mixture is None else mixture.targets(self._one_hot(labels, size).to(clips.dtype), clips)
            for labels, size in zip(self._split_labels(batch.labels), self.head_sizes.values(), strict=True)
        ]
        logits = self._split_logits(self.model(clips if mixture is None else mixture.clips(clips)))
        losses = [
            self._loss(of_head, target, head)
            for head, (of_head, target) in enumerate(zip(logits, targets, strict=True))
        ]
        loss = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
        self._check_finite(loss, batch, batch_idx)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.labels), sync_dist=True)
        return loss

    def _split_labels(self, labels: Tensor) -> Sequence[Tensor]:
        """Labels [N, heads] -> [N] of each head; several labels [N, K] stay one tensor."""
        return [labels] if self.several else labels.unbind(1)

    def _one_hot(self, labels: Tensor, size: int) -> Tensor:
        return labels if self.several else F.one_hot(labels, size)

    def _loss(self, logits: Tensor, target: Tensor, head: int) -> Tensor:
        """The loss of one head; a target is a class [N], or class probabilities [N, K]."""
        smoothing = self.recipe.label_smoothing
        if self.several:
            # Each class is a binary classification, so smoothing spreads over its two outcomes.
            smooth = target.to(logits.dtype) * (1 - smoothing) + smoothing / 2
            weights = self.class_weights[head].to(logits) if self.recipe.balance == "loss" else None
            return several_loss(logits, smooth, weights)
        if self.recipe.balance != "loss":
            return F.cross_entropy(logits, target, label_smoothing=smoothing)
        weights = self.class_weights[head].to(logits)
        of_clips = weights[target] if target.ndim == 1 else target @ weights
        # Weights are by clip, and the divisor is the number of clips, unlike cross_entropy's ``weight``, which weights
        # the classes of the smoothed target: so the loss does not depend on which clips share a batch or device.
        return (F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none") * of_clips).mean()

    def _check_finite(self, loss: Tensor, batch: Batch, batch_idx: int) -> None:
        """Stop all processes before the step if any loss is not finite; the error names the videos."""
        fine = bool(torch.isfinite(loss))
        if not on_any(not fine, self.device):
            return
        paths = gathered([] if fine else batch.paths)
        value = gathered([] if fine else [loss.item()])[0]
        more = f" and {len(paths) - 5} more, all in non_finite_batch.txt" if len(paths) > 5 else ""
        if self.trainer.is_global_zero:
            file = Path(self.trainer.default_root_dir) / NON_FINITE_FILE
            write_whole(file, ("\n".join(paths) + "\n").encode(errors="surrogateescape"))
        raise NonFiniteLossError(
            f"the loss is {value} in epoch {self.current_epoch + 1}, batch {batch_idx + 1}: lower "
            f"learning_rate, or set clip_gradient_norm{state_to_resume(self.trainer)}. The batch's videos: "
            f"{', '.join(paths[:5])}{more}"
        )

    def _normalized(self, clips: Tensor) -> Tensor:
        dtype = torch.float64 if self.recipe.precision == "fp64" else torch.float32
        return normalize(clips, *self.recipe.clip.normalization, dtype=dtype)

    def _split_logits(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Logits [N, K] -> logits of each head."""
        return torch.split(logits, list(self.head_sizes.values()), dim=1)

    def on_validation_start(self) -> None:
        if self.trainer.world_size > 1 and not self.recipe.sync_batch_norm:
            # Each device has its own batch norms; those of the first are saved, so test with them.
            for buffer in self.model.buffers():
                dist.broadcast(buffer, src=0)

    def on_validation_epoch_start(self) -> None:
        self.num_tested = 0
        self.val_several = []

    def _tops(self) -> dict[str, MulticlassAccuracy]:
        return cast(dict[str, MulticlassAccuracy], self.val_tops)

    def validation_step(self, batch: ViewBatch, batch_idx: int) -> None:
        if len(batch.labels):
            self.num_tested += len(batch.labels)
            logits = self._split_logits(self.model(self._normalized(batch.views[:, 0])))
            if self.several:
                self.val_loss.update(
                    several_loss(logits[0], batch.labels.to(logits[0].dtype)), weight=len(batch.labels)
                )
                self.val_several += zip(logits[0].float().sigmoid().tolist(), batch.labels.tolist(), strict=True)
                return
            losses = [F.cross_entropy(one, of) for one, of in zip(logits, batch.labels.unbind(1), strict=True)]
            self.val_loss.update(torch.stack(losses).sum(), weight=len(batch.labels))
            right = torch.ones(len(batch.labels), dtype=torch.bool, device=self.device)
            for metric, of_head, labels in zip(self._tops().values(), logits, batch.labels.unbind(1), strict=True):
                metric.update(of_head, labels)
                right &= of_head.argmax(1) == labels
            self.val_action_top1.update(right.float())

    def on_validation_epoch_end(self) -> None:
        # Not in each step, since the processes may have different numbers of batches.
        self.num_tested = sum(gathered([self.num_tested]))
        for name, metric in self._tops().items():
            self.log(name, metric)
        if self.several:
            tested, self.val_several = gathered(self.val_several), []
            scores = np.array([scores for scores, _ in tested], np.float32).reshape(len(tested), -1)
            value = mean_average_precision(scores, np.array([targets for _, targets in tested]).reshape(scores.shape))
            self.log("val_map", value, rank_zero_only=False, sync_dist=False)
        self.log("val_loss", self.val_loss)
        if len(self.head_sizes) > 1:
            self.log("val_action_top1", self.val_action_top1)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        recipe = self.recipe
        groups = parameter_groups(
            self.model,
            rate=recipe.peak_learning_rate,
            head_factor=recipe.head_learning_rate_factor,
            added_factor=recipe.tada_learning_rate_factor,
            layer_decay=recipe.layer_decay,
            weight_decay=recipe.weight_decay,
            rule=recipe.parameter_rule,
        )
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups)
        return scheduled(
            optimizer,
            steps_per_epoch=self.steps_per_epoch,
            epochs=recipe.numbers.epochs,
            warmup_epochs=recipe.numbers.warmup_epochs,
            warmup_start=recipe.warmup_start,
            end=recipe.learning_rate_end,
            after_warmup=recipe.cosine_after_warmup,
        )


def state_to_resume(trainer: L.Trainer) -> str:
    """The end of an error message: that the saved state can be resumed; empty if there is none."""
    return "; the last saved state can be resumed" if Path(trainer.default_root_dir, CHECKPOINT).exists() else ""


class ShardedRecognitionTask(RecognitionTask):
    """``RecognitionTask`` with the network's weights sharded over the devices (FSDP)."""

    def configure_model(self) -> None:
        mesh = self.device_mesh
        assert mesh is not None
        if not isinstance(self.model, FSDPModule):
            shard(self.model, mesh["data_parallel"])
