"""Training a recogniser: the recipe becomes a model, a loop (Lightning's) and the folder of a run.

A run's folder holds::

    recipe.yaml         what was trained, and how
    videos.csv          which videos were trained on and which were held out
    model.safetensors   the weights, written at the end (with model.json: labels, clip specification, checksum)
    metrics.json        how it ended
    logs/               numbers of every epoch: CSV, and TensorBoard
    resume/last.ckpt    the state from which an interrupted run continues, bit for bit
    unreadable.csv      videos that could not be read, where some were allowed

Shapes: N clips or videos, V views, T frames, K classes.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import pickle
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from tada.data.annotations import VideoTable, hold_out, hold_out_groups, read_dataset
from tada.data.clips import (
    Augmentation,
    Batch,
    ResumableBatches,
    ResumableLoader,
    TestVideos,
    TrainingClips,
    Unreadable,
    ViewBatch,
    Views,
    test_loader,
)
from tada.errors import CheckpointError, DataError, OptionError, UserError
from tada.models import create_model
from tada.models.initial import start_from
from tada.models.weights import ModelCard, packaged, packaged_names, save_model
from tada.recipe import Recipe, load_recipe, recipe_yaml
from tada.video.transforms import flip_swaps, normalise, reverse_swaps


class NonFiniteLossError(UserError):
    """The loss is no number any more; the weights before the step are those of the last saved state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """How a run ended."""

    run: Path
    """The run's folder, for `tada.load`."""
    metrics: dict[str, float]
    """Of the last epoch: train_loss, and val_top1 (one centre view) where videos were held out."""
    seconds: float
    """Wall time of the training loop."""


def train(
    recipe: Recipe,
    data: Path | VideoTable,
    out: Path,
    *,
    root: Path | None = None,
    val_fraction: float = 0.2,
    val_groups: Sequence[str] = (),
    resume: bool = False,
    skip_unreadable: int = 0,
    num_workers: int | None = None,
    save_every_steps: int | None = None,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> TrainingResult:
    """Train a model on a folder of class folders or a CSV of clips, and leave it in the folder ``out``.

    Args:
        data: what ``tada.data.annotations.read_dataset`` takes, or a table it has read.
        root: the folder that paths of a CSV start from; by default the CSV's own.
        val_fraction: part of each class held out for validation where the data has no split of its own; 0 for none.
        val_groups: hold out these values of the CSV's group column instead.
        resume: continue the run in ``out`` from its last saved state, to the same numbers as if never stopped.
        skip_unreadable: how many videos may turn out unreadable; they are listed. One more stops the run.
        num_workers: processes that decode; by default one for each core, at most eight.
        save_every_steps: optimiser steps between saved states; by default those of an epoch, at most 200.
        say: receives a line for each thing worth knowing.

    Raises:
        UserError: of the data, the recipe, a video, or a folder that is already in use; each says the way out.
    """
    table = data if isinstance(data, VideoTable) else read_dataset(data, root=root)
    table = _with_splits(table, val_fraction=val_fraction, val_groups=val_groups, seed=recipe.seed)
    training = table.of_split("train")
    validation = table.of_split("val") if "val" in table.splits else None
    if table.ignored:
        say(f"left out, beside the videos: {', '.join(table.ignored[:5])} ({len(table.ignored)} in all)")
    checkpoint = out / "resume" / "last.ckpt"
    if resume:
        _check_same_run(out, recipe, table, checkpoint)
    elif out.exists() and any(out.iterdir()):
        raise OptionError(f"{out} is not empty: choose another folder with --out, or continue its run with --resume")

    L.seed_everything(recipe.seed, verbose=False)
    model = create_model(
        recipe.model, num_classes=len(table.labels), num_frames=recipe.clip.num_frames, **recipe.model_options
    )
    trained_from = initialise(model, recipe.model, recipe.init, say=say)
    augmentation = Augmentation(
        short_side_range=recipe.short_side_range,
        flip_probability=recipe.flip_probability,
        flip_swaps=flip_swaps(table.labels),
        reverse_probability=recipe.reverse_probability,
        reverse_swaps=reverse_swaps(table.labels),
        color_strength=recipe.color_strength,
        color_shuffle_probability=recipe.color_shuffle_probability,
        grayscale_probability=recipe.grayscale_probability,
        invert_probability=recipe.invert_probability,
    )
    batches = ResumableBatches(
        len(training), batch_size=recipe.batch_size, accumulate=recipe.accumulate, seed=recipe.seed
    )
    num_workers = min(os.cpu_count() or 1, 8) if num_workers is None else num_workers
    clips = TrainingClips(training, recipe.clip, augmentation, seed=recipe.seed)
    loader = ResumableLoader(clips, batches, num_workers=num_workers)
    val_loader = None
    if validation is not None:
        val_videos = TestVideos(validation, recipe.clip, Views())
        val_loader = test_loader(val_videos, clips_per_batch=recipe.batch_size, num_workers=num_workers)
    num_held_out = 0 if validation is None else len(validation)
    say(f"{len(training)} training and {num_held_out} validation videos of {len(table.labels)} classes")
    say(f"{recipe.model}: {sum(p.numel() for p in model.parameters()):,} parameters, starting from {trained_from}")

    if not resume:
        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")
        _write_videos(table, out / "videos.csv")
    steps_per_epoch = len(batches) // recipe.accumulate
    task = RecognitionTask(model, recipe, steps_per_epoch=steps_per_epoch)
    save_every_steps = save_every_steps or min(steps_per_epoch, 200)
    unreadable = UnreadableVideos(allowed=skip_unreadable)
    lines = EpochLines(say)
    trainer = make_trainer(
        recipe, out, [unreadable, lines], save_every_steps=save_every_steps, show_progress=show_progress
    )
    started = time.perf_counter()
    with quiet():
        trainer.fit(
            task,
            loader,
            val_loader,
            ckpt_path=str(checkpoint) if resume else None,
            weights_only=True,
        )
    seconds = time.perf_counter() - started
    if trainer.interrupted:
        raise KeyboardInterrupt
    unreadable.write(out / "unreadable.csv")
    card = ModelCard(
        model=recipe.model,
        options=recipe.model_options,
        labels=table.labels,
        clip=recipe.clip,
        metrics=lines.metrics,
        trained_from=trained_from,
    )
    save_model(out, model, card)
    (out / "metrics.json").write_text(json.dumps(lines.metrics | {"seconds": seconds}, indent=2) + "\n")
    return TrainingResult(run=out, metrics=lines.metrics, seconds=seconds)


def initialise(model: nn.Module, name: str, init: str, *, say: Callable[[str], None] = print) -> str:
    """Give a new model the weights a recipe's ``init`` names, all but its classifier; say in words what they are.

    Args:
        say: receives what became of the weights, where they come from a file, a run or the hub.

    Raises:
        OptionError: ``init`` is "motion" and no such weights ship for this model, or names nothing that is there.
        CheckpointError: weights that do not fit.
    """
    if init == "none" or (init == "auto" and f"{name}_motion" not in packaged_names()):
        return "random weights"
    if init in ("auto", "motion"):
        start_from(model, name, str(packaged(f"{name}_motion")))
        return "weights learned on generated motion"
    report = start_from(model, name, init)
    say(str(report))
    return report.source


def learning_rate_factor(epoch: float, *, epochs: int, warmup_epochs: float, warmup_start: float) -> float:
    """The learning rate at a (fractional) epoch, as a part of the peak.

    Half a cosine over all epochs; during the warm-up a line from ``warmup_start`` up to the cosine's value at its
    end, as in the released code.
    """
    if epoch < warmup_epochs:
        end = (1 + math.cos(math.pi * warmup_epochs / epochs)) / 2
        return warmup_start + (end - warmup_start) * epoch / warmup_epochs
    return (1 + math.cos(math.pi * epoch / epochs)) / 2


class RecognitionTask(L.LightningModule):
    """The loss, its optimiser and what is measured on the way."""

    def __init__(self, model: nn.Module, recipe: Recipe, *, steps_per_epoch: int) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        num_classes = int(model.head.out_features)  # type: ignore[arg-type, union-attr]
        self.val_top1 = MulticlassAccuracy(num_classes, average="micro")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout draws from the step's own seed: a resumed run draws what the uninterrupted one would have.
        torch.manual_seed(hash((self.recipe.seed, self.current_epoch, batch_idx, self.global_rank)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self.model(normalise(batch.clips))
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.recipe.label_smoothing)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss.item()} in epoch {self.current_epoch + 1}, batch {batch_idx + 1}: lower "
                "learning_rate, or set clip_gradient_norm; the last saved state can be resumed"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: ViewBatch, batch_idx: int) -> None:
        if len(batch.labels):
            logits = self.model(normalise(batch.views[:, 0]))
            self.val_top1.update(logits, batch.labels)
            self.log("val_top1", self.val_top1, batch_size=len(batch.labels))

    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        recipe = self.recipe
        groups: list[dict[str, Any]] = []
        for is_head in (False, True):
            rate = recipe.learning_rate * (recipe.head_learning_rate_factor if is_head else 1.0)
            parameters = [p for name, p in self.model.named_parameters() if name.startswith("head.") == is_head]
            decayed = [p for p in parameters if p.ndim > 1]
            others = [p for p in parameters if p.ndim <= 1]  # norms and biases
            groups.append({"params": decayed, "lr": rate, "weight_decay": recipe.weight_decay})
            groups.append({"params": others, "lr": rate, "weight_decay": 0.0})
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factor(self, step: int) -> float:
        return learning_rate_factor(
            step / self.steps_per_epoch,
            epochs=self.recipe.epochs,
            warmup_epochs=self.recipe.warmup_epochs,
            warmup_start=self.recipe.warmup_start,
        )


class UnreadableVideos(Callback):
    """Collects the videos that could not be read, and stops the run when there are more than allowed."""

    def __init__(self, *, allowed: int) -> None:
        self.allowed = allowed
        self.found: dict[str, str] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.add(batch.unreadable)

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: ViewBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.add(batch.unreadable)

    def add(self, videos: Sequence[Unreadable]) -> None:
        """Note them.

        Raises:
            DataError: they are more than allowed.
        """
        self.found.update(videos)
        if len(self.found) > self.allowed:
            count = f"{len(self.found)} unreadable video{'s' if len(self.found) > 1 else ''}"
            last = next(reversed(self.found.values()))
            raise DataError(f"{last} ({count}, {self.allowed} allowed; --skip-unreadable N allows N)")

    def write(self, path: Path) -> None:
        """Write the list, where there is one."""
        if self.found:
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("path", "reason"), *self.found.items()])


class EpochLines(Callback):
    """Says how each epoch went, and keeps the numbers of the last."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.metrics: dict[str, float] = {}
        self.started = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in sorted(self.metrics.items()))
        seconds = time.perf_counter() - self.started
        self.say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {numbers}  ({seconds:.1f} s)")


class WholeFileCheckpoints(TorchCheckpointIO):
    """Writes a state whole or not at all: whoever reads it meets the old one or the new one.

    Differs from Lightning's own, which may leave a part of a file where its temporary folder is on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path} is damaged and cannot be read: start anew without --resume") from error
        return state


class LoopRecipe(Protocol):
    """What the training loop needs of a recipe."""

    @property
    def epochs(self) -> int: ...

    @property
    def accumulate(self) -> int: ...

    @property
    def ema_decay(self) -> float | None: ...

    @property
    def clip_gradient_norm(self) -> float | None: ...

    @property
    def precision(self) -> Literal["fp32", "bf16"]: ...


def make_trainer(
    recipe: LoopRecipe, out: Path, callbacks: list[Callback], *, save_every_steps: int, show_progress: bool
) -> L.Trainer:
    """The loop of a run in the folder ``out``: its logs, its state to resume from, its averaged weights."""
    (out / "logs").mkdir(parents=True, exist_ok=True)
    start = f"start_{len(list((out / 'logs').iterdir()))}"  # a resumed run adds a folder
    if recipe.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=recipe.ema_decay))
    if show_progress:
        callbacks.append(RichProgressBar(leave=False))
    callbacks.append(
        ModelCheckpoint(
            dirpath=out / "resume",
            filename="last",
            every_n_train_steps=save_every_steps,
            save_top_k=1,
            enable_version_counter=False,
        )
    )
    with quiet():
        return L.Trainer(
            default_root_dir=out,
            max_epochs=recipe.epochs,
            accelerator="auto",
            devices=1,
            precision="bf16-mixed" if recipe.precision == "bf16" else "32-true",
            accumulate_grad_batches=recipe.accumulate,
            gradient_clip_val=recipe.clip_gradient_norm,
            callbacks=callbacks,
            plugins=[WholeFileCheckpoints()],
            logger=[
                CSVLogger(out / "logs", name="", version=start),
                TensorBoardLogger(out / "logs", name="", version=start),
            ],
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=show_progress,
            enable_model_summary=False,
        )


class quiet(warnings.catch_warnings):
    """Keep Lightning's advice on settings that are chosen here out of the user's sight."""

    def __enter__(self) -> None:
        super().__enter__()
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", module=r"lightning\.")


def _with_splits(table: VideoTable, *, val_fraction: float, val_groups: Sequence[str], seed: int) -> VideoTable:
    """The data's own split where it has one; else a part of it is held out."""
    if val_groups:
        return hold_out_groups(table, val_groups)
    if table.splits:
        return table
    if val_fraction == 0:
        return replace(table, videos=tuple(replace(video, split="train") for video in table.videos))
    return hold_out(table, fraction=val_fraction, seed=seed)


def _check_same_run(out: Path, recipe: Recipe, table: VideoTable, checkpoint: Path) -> None:
    if not checkpoint.exists():
        raise CheckpointError(f"{out} has no saved state (resume/last.ckpt): start anew without --resume")
    saved = asdict(load_recipe(out / "recipe.yaml"))
    changed = [name for name, value in asdict(recipe).items() if saved[name] != value]
    if changed:
        raise OptionError(f"{out} was started with another {', '.join(changed)}: resume with {out / 'recipe.yaml'}")
    before = read_dataset(out / "videos.csv", root=Path("/"))
    if before.fingerprint() != table.fingerprint():
        raise DataError(f"the videos, labels or splits are not those that {out} was started with (videos.csv there)")


def _write_videos(table: VideoTable, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for video in table.videos:
            writer.writerow([video.path, table.labels[video.label], video.split or ""])
