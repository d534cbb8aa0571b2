"""LightningModule of a detector's training, and its datasets: samples, losses, optimizer, tests after epochs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import Dataset

from tada.localization.annotations.table import SegmentTable
from tada.localization.detectors.actionformer import ActionFormerDetector
from tada.localization.detectors.bmn import BMNDetector
from tada.localization.detectors.nms import Detections
from tada.localization.detectors.samples import Sample, SampleBatch
from tada.localization.features.folder import FeatureFolder, VideoFeatures
from tada.localization.localizer import results_of
from tada.localization.metrics import detection_map
from tada.localization.recipe import LocalizationRecipe
from tada.training.module import TrainedModule
from tada.training.trainer import scheduled


class TrainingSamples(Dataset[Sample]):
    """Training samples: one of each piece, cropped anew in each epoch."""

    def __init__(
        self, detector: ActionFormerDetector | BMNDetector, table: SegmentTable, folder: FeatureFolder, *, seed: int
    ) -> None:
        self.detector, self.folder, self.seed = detector, folder, seed
        self.pieces = detector.pieces(table.videos)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """The sample of (epoch, index); indices beyond the number of pieces repeat these with other crops."""
        epoch, place = key
        piece = self.pieces[place % len(self.pieces)]
        rng = np.random.default_rng((self.seed, epoch, place))
        return self.detector.sample(piece, self.folder.read(piece.video.name), rng)


class TestFeatures(Dataset[VideoFeatures]):
    """Features of whole videos, for tests."""

    __test__ = False  # pytest: not a test, wherever it is imported

    def __init__(self, table: SegmentTable, folder: FeatureFolder) -> None:
        self.names = [video.name for video in table.videos]
        self.folder = folder

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: int) -> VideoFeatures:
        return self.folder.read(self.names[place])


class LocalizationTask(TrainedModule):
    """Losses, optimizer and validation of a detector."""

    def __init__(
        self,
        detector: ActionFormerDetector | BMNDetector,
        recipe: LocalizationRecipe,
        *,
        steps_per_epoch: int,
        tested: SegmentTable | None,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.tested = tested
        self.found: dict[str, Detections] = {}

    def on_train_batch_start(self, batch: SampleBatch, batch_idx: int) -> None:
        # Each step has its own seed for dropout, so that a resumed run draws the same numbers.
        torch.manual_seed(hash((self.recipe.seed, self.current_epoch, batch_idx, self.global_rank)))

    def training_step(self, batch: SampleBatch, batch_idx: int) -> Tensor:
        parts = self.detector.losses(batch)
        loss = parts["loss"]
        self.check_loss(loss, batch_idx, [])
        for name, value in parts.items():
            self.log(f"train_{name}", value, on_step=False, on_epoch=True, batch_size=len(batch.features))
        return loss

    def on_validation_epoch_start(self) -> None:
        self.found = {}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, VideoFeatures):
            return batch  # the detector moves the arrays that it needs
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def validation_step(self, batch: VideoFeatures, batch_idx: int) -> None:
        self.found[batch.card.video] = self.detector.detect(batch)

    def on_validation_epoch_end(self) -> None:
        assert self.tested is not None
        scores = detection_map(
            self.tested.ground_truth(),
            results_of(self.found, self.tested.heads),
            subset=self.tested.videos[0].split or "val",
            tiou_thresholds=self.recipe.tiou_thresholds,
        )
        self.log("val_map", scores.average, batch_size=1)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        parameters = dict(self.detector.named_parameters())
        # Kernels and matrices decay; norms, biases and scales do not.
        is_decayed = {name: p.ndim > 1 and not name.endswith(".scale") for name, p in parameters.items()}
        groups = [
            {
                "params": [p for name, p in parameters.items() if is_decayed[name]],
                "weight_decay": self.recipe.weight_decay,
            },
            {"params": [p for name, p in parameters.items() if not is_decayed[name]], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.recipe.learning_rate, fused=self.fuses or None)
        return scheduled(
            optimizer,
            steps_per_epoch=self.steps_per_epoch,
            epochs=self.recipe.numbers.epochs,
            warmup_epochs=self.recipe.numbers.warmup_epochs,
            warmup_start=0.01,
        )
