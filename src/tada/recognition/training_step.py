"""Lightning module of a recognizer's training: the loss, the optimizer, and metrics on held-out videos.

Shapes: N clips or videos, V views, T frames, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

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
from tada.errors import DataError
from tada.models.parallel import shard
from tada.recognition.parameter_groups import parameter_groups
from tada.recognition.recipe import Recipe
from tada.recognition.trained_part import rest_in_evaluation
from tada.system.collectives import gathered
from tada.training.module import TrainedModule
from tada.training.trainer import scheduled
from tada.video.augment import draw_mixture
from tada.video.transforms import normalize


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


class RecognitionTask(TrainedModule):
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
        is_sharded: bool = False,
    ) -> None:
        """Set up.

        Args:
            class_counts: number of training clips of each class of each head, for ``balance: loss``.
            several_of: number of training clips if each may have several labels; 0: each has one.
            is_sharded: as for ``TrainedModule``.
        """
        super().__init__(is_sharded=is_sharded)
        self.model = model
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.head_sizes = head_sizes
        names = [f"val_{name}_top1" for name in head_sizes] if len(head_sizes) > 1 else ["val_top1"]
        tops = {
            # Without the checks of its arguments, which read them from the device.
            name: MulticlassAccuracy(size, average="micro", validate_args=False)
            for name, size in zip(names, head_sizes.values(), strict=True)
        }
        self.val_tops = nn.ModuleDict(tops)
        # Nan stays nan, and is told as such; another choice would look for it in every step.
        self.val_action_top1 = MeanMetric(nan_strategy="disable")
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.several = several_of > 0
        self.val_several: list[tuple[Tensor, Tensor]] = []
        """Probabilities and targets [N, K] of the tested batches, if videos may have several labels."""
        if self.several:
            self.val_tops = nn.ModuleDict()
        for head, counts in enumerate(class_counts):
            weights = positive_weights(counts, several_of) if self.several else class_weights(counts)
            # A buffer, so that it is on the device; not saved, since the data decide it.
            self.register_buffer(f"class_weights_{head}", torch.tensor(weights), persistent=False)
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
        super().on_save_checkpoint(checkpoint)
        checkpoint["tada"] = {"trained_from": self.about.trained_from, "labels": list(self.about.labels)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
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
        self.check_loss(loss, batch_idx, batch.paths)
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
            weights = self._class_weights(logits, head) if self.recipe.balance == "loss" else None
            return several_loss(logits, smooth, weights)
        if self.recipe.balance != "loss":
            return F.cross_entropy(logits, target, label_smoothing=smoothing)
        weights = self._class_weights(logits, head)
        of_clips = weights[target] if target.ndim == 1 else target @ weights
        # Weights are by clip, and the divisor is the number of clips, unlike cross_entropy's ``weight``, which weights
        # the classes of the smoothed target: so the loss does not depend on which clips share a batch or device.
        return (F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none") * of_clips).mean()

    def _class_weights(self, logits: Tensor, head: int) -> Tensor:
        """Loss weights of a head's classes, [K]."""
        return self.get_buffer(f"class_weights_{head}").to(logits)

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
                self._update_mean(
                    self.val_loss, several_loss(logits[0], batch.labels.to(logits[0].dtype)), len(batch.labels)
                )
                self.val_several.append((logits[0].float().sigmoid(), batch.labels))
                return
            losses = [F.cross_entropy(one, of) for one, of in zip(logits, batch.labels.unbind(1), strict=True)]
            self._update_mean(self.val_loss, torch.stack(losses).sum(), len(batch.labels))
            right = torch.ones(len(batch.labels), dtype=torch.bool, device=self.device)
            for metric, of_head, labels in zip(self._tops().values(), logits, batch.labels.unbind(1), strict=True):
                metric.update(of_head, labels)
                right &= of_head.argmax(1) == labels
            flags = right.float()
            self.val_action_top1.update(flags, weight=torch.ones_like(flags))

    def _update_mean(self, metric: MeanMetric, mean: Tensor, count: int) -> None:
        """Add the mean of so many values; the weight is made on the device, since the metric would copy a number."""
        metric.update(mean, weight=mean.new_full((), count))

    def on_validation_epoch_end(self) -> None:
        # Not in each step, since the processes may have different numbers of batches.
        self.num_tested = sum(gathered([self.num_tested]))
        for name, metric in self._tops().items():
            self.log(name, metric)
        if self.several:
            own = [(scores.cpu().numpy(), targets.cpu().numpy()) for scores, targets in self.val_several]
            tested, self.val_several = gathered(own), []
            empty = np.zeros((0, *self.head_sizes.values()))
            scores = np.concatenate([empty.astype(np.float32), *(scores for scores, _ in tested)])
            value = mean_average_precision(scores, np.concatenate([empty.astype(int), *(one for _, one in tested)]))
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
            optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=self.fuses or None)
        else:
            optimizer = torch.optim.AdamW(groups, fused=self.fuses or None)
        return scheduled(
            optimizer,
            steps_per_epoch=self.steps_per_epoch,
            epochs=recipe.numbers.epochs,
            warmup_epochs=recipe.numbers.warmup_epochs,
            warmup_start=recipe.warmup_start,
            end=recipe.learning_rate_end,
            after_warmup=recipe.cosine_after_warmup,
        )


class ShardedRecognitionTask(RecognitionTask):
    """``RecognitionTask`` with the network's weights sharded over the devices (FSDP)."""

    def configure_model(self) -> None:
        mesh = self.device_mesh
        assert mesh is not None
        if not isinstance(self.model, FSDPModule):
            shard(self.model, mesh["data_parallel"])
