"""Training a localizer on features: the recipe becomes a detector, a loop (Lightning's) and the folder of a run.

A run's folder holds::

    recipe.yaml             what was trained, and how
    data.json               on which features and segments
    videos.csv              on which videos, by content, and which were held out
    localizer.safetensors   the detector's weights: of the epoch with the best mean average precision
    localizer.json          its shape, labels, time grid, thresholds and checksum
    backbone/               the network that made the features, where it was one of ours
    metrics.json            how it ended
    logs/                   numbers of every epoch: CSV, and TensorBoard
    resume/                 the state from which an interrupted run continues, and the best epoch's
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tada.data.clips import ResumableBatches, ResumableLoader
from tada.data.table import listed
from tada.errors import DataError, OptionError
from tada.files import write_whole
from tada.localization.annotations import (
    SegmentTable,
    UntrimmedVideo,
    check_for_training,
    named_like,
    read_segments,
    with_durations,
    with_splits,
)
from tada.localization.detections import Detections
from tada.localization.detectors import ActionFormerDetector, BMNDetector, Sample, SampleBatch, new_detector
from tada.localization.extraction import backbone_hash
from tada.localization.features import FeatureFolder, VideoFeatures
from tada.localization.forms import read_names
from tada.localization.localizer import Localizer, LocalizerCard, results_of, save_localizer
from tada.localization.metrics import best_thresholds, detection_map
from tada.localization.naming import can_name, check_naming, scores_for
from tada.localization.recipe import LocalizationRecipe
from tada.localization.trained_videos import VIDEOS_FILE, TrainedVideos, check_no_leak, write_trained_videos
from tada.loop import CHECKPOINT, EpochLines, WholeFileCheckpoints, make_trainer, own_sigterm, quiet, scheduled
from tada.machine import Machine
from tada.predict import Recognizer
from tada.recipe import read_recipe, recipe_yaml
from tada.recognition import NonFiniteLossError

RECIPE_FILE = "recipe.yaml"
BEST = Path("resume", "best.ckpt")
_SHORTEST_STEPS = 2
_ENOUGH_VIDEOS, _MOST_VIDEOS = 5, 100  # that thresholds of classes without validation are learned from


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalizationResult:
    """How a run ended."""

    run: Path
    """The run's folder, for `tada.load`."""
    metrics: dict[str, float]
    """train_loss of the last epoch; val_map of the best, where videos were held out."""
    seconds: float
    """Wall time of the training loop."""


class TrainingSamples(Dataset[Sample]):
    """One sample of each piece, another crop in each epoch."""

    def __init__(
        self, detector: ActionFormerDetector | BMNDetector, table: SegmentTable, folder: FeatureFolder, *, seed: int
    ) -> None:
        self.detector, self.folder, self.seed = detector, folder, seed
        self.pieces = detector.pieces(table.videos)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """The sample of (epoch, piece)."""
        epoch, place = key
        piece = self.pieces[place]
        rng = np.random.default_rng((self.seed, epoch, place))
        return self.detector.sample(piece, self.folder.read(piece.video.name), rng)


class TestFeatures(Dataset[VideoFeatures]):
    """Whole videos."""

    __test__ = False  # pytest: not a test, wherever it is imported

    def __init__(self, table: SegmentTable, folder: FeatureFolder) -> None:
        self.names = [video.name for video in table.videos]
        self.folder = folder

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: int) -> VideoFeatures:
        return self.folder.read(self.names[place])


class LocalizationTask(L.LightningModule):
    """The loss, its optimiser and what is measured on the way."""

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
        # Dropout draws from the step's own seed: a resumed run draws what the uninterrupted one would have.
        torch.manual_seed(hash((self.recipe.seed, self.current_epoch, batch_idx, self.global_rank)))

    def training_step(self, batch: SampleBatch, batch_idx: int) -> Tensor:
        parts = self.detector.losses(batch)
        loss = parts["loss"]
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss.item()} in epoch {self.current_epoch + 1}, batch {batch_idx + 1}: lower "
                "learning_rate, or set clip_gradient_norm; the last saved state can be resumed"
            )
        for name, value in parts.items():
            self.log(f"train_{name}", value, on_step=False, on_epoch=True, batch_size=len(batch.features))
        return loss

    def on_validation_epoch_start(self) -> None:
        self.found = {}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, VideoFeatures):
            return batch  # the detector takes what it needs of it
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def validation_step(self, batch: VideoFeatures, batch_idx: int) -> None:
        self.found[batch.card.video] = self.detector.detect(batch)

    def on_validation_epoch_end(self) -> None:
        assert self.tested is not None
        scores = detection_map(
            self.tested.ground_truth(),
            results_of(self.found, self.tested.label_sets),
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
        optimizer = torch.optim.AdamW(groups, lr=self.recipe.learning_rate)
        return scheduled(
            optimizer,
            steps_per_epoch=self.steps_per_epoch,
            epochs=self.recipe.epochs,
            warmup_epochs=self.recipe.warmup_epochs,
            warmup_start=0.01,
        )


class BestEpoch(Callback):
    """Keeps the state of the epoch with the highest mean average precision."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.score = -1.0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        score = float(trainer.callback_metrics["val_map"])
        if score > self.score:
            self.score = score
            trainer.save_checkpoint(self.file)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score = state["score"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over what an older tada, which had Lightning's ModelCheckpoint for this, knew of its best epoch."""
        for name, state in checkpoint["callbacks"].items():
            if name.startswith("ModelCheckpoint") and state.get("monitor") == "val_map":
                score = state["best_model_score"]
                self.score = self.score if score is None else float(score)


class MissedValidation(Callback):
    """Tests, when a run goes on, the epoch after whose last step it was interrupted; the loop would pass it over."""

    def __init__(self) -> None:
        self.num_validated = 0
        """Epochs that have been tested."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.num_validated += 1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.num_validated < trainer.current_epoch:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.state_key not in checkpoint["callbacks"]:  # of an older tada, which did not count
            self.num_validated = sys.maxsize

    def state_dict(self) -> dict[str, Any]:
        return {"num_validated": self.num_validated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_validated = state["num_validated"]


def prepare_table(
    table: SegmentTable,
    folder: FeatureFolder,
    *,
    val_fraction: float,
    seed: int,
    skip_missing: int,
    say: Callable[[str], None],
) -> SegmentTable:
    """Match annotations with features, and refuse what would waste hours.

    Raises:
        DataError: annotated videos without features, or with those of another content; a length that contradicts the
            duration; no segments in a split; a video in two splits.
    """
    table = with_splits(named_like(table, folder.places()), val_fraction=val_fraction, seed=seed)
    example = next(iter(folder.cards))
    missing = {
        video.name: f"{table.name}: the video {video.name!r} has no features in {str(folder.folder)!r} (there lies "
        f"{example!r}): extract them, or take its rows away"
        for video in table.videos
        if video.segments and video.name not in folder.cards
    }
    table = table.without(missing, allowed=skip_missing, say=say)
    table = replace(table, videos=tuple(video for video in table.videos if video.name in folder.cards))
    folder.check_sources(video.name for video in table.videos)
    check_no_leak(table, folder)
    for card in folder.cards.values():
        card.grid.check_length(card.num_features, card.duration_seconds, f"features of {card.video!r}")
    table = with_durations(table, {name: card.duration_seconds for name, card in folder.cards.items()})
    check_for_training(table, say)
    lengths = [s.seconds for video in table.of_split("train").videos for s in video.segments]
    if np.percentile(lengths, 25) < _SHORTEST_STEPS * folder.grid.stride_seconds:
        say(
            f"a fourth of the segments lasts less than two features ({folder.grid.stride_seconds:.3f} s apart): "
            "extract with a smaller --stride-seconds"
        )
    return table


def train_localizer(
    recipe: LocalizationRecipe,
    features: Path,
    segments: Path | SegmentTable,
    out: Path,
    *,
    backbone: Recognizer | None = None,
    classifier: Path | None = None,
    val_fraction: float = 0.2,
    resume: bool = False,
    skip_missing: int = 0,
    leave_out: Path | None = None,
    num_workers: int = 0,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> LocalizationResult:
    """Train a detector on a folder of features and an annotation file, and leave it in the folder ``out``.

    After each epoch the held-out videos are tested, with the averaged weights where there are some; the best epoch by
    mean average precision is kept. Choosing by that score makes it a little too good: report a third split's.

    Args:
        features: a folder that ``tada extract`` or ``import_features`` wrote.
        segments: what ``read_segments`` takes, or a table it has read.
        backbone: the network that made the features; saved with the run, so that it can localize in videos.
        classifier: as for ``evaluate_localizer``, for the validation.
        val_fraction: part of the videos held out where the annotations have no splits.
        resume: continue the run in ``out`` from its last saved state.
        skip_missing: how many annotated videos may have no features; they are named, and left out.
        leave_out: a list of videos that do not count, as for ``evaluate_localizer``.

    Raises:
        UserError: of the data, the recipe, or a folder that is already in use; each says the way out.
    """
    table = segments if isinstance(segments, SegmentTable) else read_segments(segments)
    table = table if leave_out is None else table.leaving_out(read_names(leave_out))
    folder = FeatureFolder(features, classifier=scores_for(recipe, classifier))
    if backbone is not None and backbone_hash(backbone.model) != folder.backbone:
        raise DataError(
            f"{str(features)!r} holds features of another backbone ({folder.backbone[:12]}) than the one given: "
            "extract them with it, into a new folder"
        )
    table = prepare_table(
        table, folder, val_fraction=val_fraction, seed=recipe.seed, skip_missing=skip_missing, say=say
    )
    check_out(out, resume=resume)
    is_begun = resume and _check_same_run(out, recipe, table, folder)
    state = out / CHECKPOINT if is_begun and (out / CHECKPOINT).exists() else None
    if is_begun and state is None:
        say(f"{out} was interrupted before its first saved state: it starts from its beginning")
    L.seed_everything(recipe.seed, verbose=False)
    training = table.of_split("train")
    tested = next((table.of_split(split) for split in ("val", "test") if split in table.splits), None)
    detector = new_detector(recipe, training, folder)
    samples = TrainingSamples(detector, training, folder, seed=recipe.seed)
    if not len(samples):
        raise DataError(f"{table.name}: no training window holds a whole segment; see whether their times are seconds")
    batch_size = min(recipe.batch_size, len(samples) // recipe.accumulate * recipe.accumulate) or len(samples)
    accumulate = recipe.accumulate if batch_size % recipe.accumulate == 0 else 1
    batches = ResumableBatches(
        len(samples), batch_size=batch_size, last_batch="drop", accumulate=accumulate, seed=recipe.seed
    )
    loader = ResumableLoader(samples, batches, num_workers=num_workers, collate=detector.collate)
    test_loader = None
    if tested is not None:
        if recipe.names_by_scores:
            check_naming(folder, tested.videos, table.label_sets)
        test_loader = DataLoader(TestFeatures(tested, folder), batch_size=None, num_workers=num_workers)
    num_tested = 0 if tested is None else len(tested)
    classes = " and ".join(f"{len(s.classes)} {s.name} classes" for s in table.label_sets)
    say(f"{training.num_segments} segments in {len(training)} training videos, {num_tested} held out; {classes}")
    size = sum(p.numel() for p in detector.parameters())
    say(
        f"{recipe.detector}: {size:,} parameters on {folder.channels} channels every {folder.grid.stride_seconds:.3f} s"
    )
    if not is_begun:
        out.mkdir(parents=True, exist_ok=True)
        about = {"features": folder.key, "segments": table.fingerprint()}
        write_whole(out / "data.json", (json.dumps(about, indent=2) + "\n").encode())
        write_trained_videos(out, table, folder)
        write_whole(out / RECIPE_FILE, recipe_yaml(recipe).encode())  # last: with it, the run has begun
    steps_per_epoch = len(batches) // accumulate
    task = LocalizationTask(detector, recipe, steps_per_epoch=steps_per_epoch, tested=tested)
    lines = EpochLines(say)
    best = BestEpoch(out / BEST) if tested is not None else None
    callbacks: list[Callback] = [lines] if best is None else [lines, best, MissedValidation()]
    machine = Machine()  # detectors are small: one device
    trainer = make_trainer(
        replace(recipe, accumulate=accumulate, batch_size=batch_size),
        out,
        callbacks,
        machine=machine,
        processes=machine.processes(),
        save_every_steps=min(steps_per_epoch, 200),
        show_progress=show_progress,
    )
    started = time.perf_counter()
    with own_sigterm(), quiet():
        trainer.fit(task, loader, test_loader, ckpt_path=None if state is None else str(state), weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    seconds = time.perf_counter() - started
    metrics = dict(lines.metrics)
    if best is not None:
        task.load_state_dict(WholeFileCheckpoints().load_checkpoint(best.file)["state_dict"])
        metrics["val_map"] = best.score
    card = LocalizerCard(
        detector=recipe.detector,
        shape=detector.shape(),
        label_sets=table.label_sets,
        grid=folder.grid,
        feature_settings=next(iter(folder.cards.values())).settings,
        backbone=folder.backbone,
        thresholds={},
        metrics=metrics,
    )
    localizer = Localizer(detector, card, recipe, backbone=backbone)
    if tested is not None:
        localizer.card = replace(card, thresholds=thresholds_of(localizer, folder, tested, training))
    save_localizer(out, localizer)
    (out / "metrics.json").write_text(json.dumps(metrics | {"seconds": seconds}, indent=2) + "\n")
    return LocalizationResult(run=out, metrics=metrics, seconds=seconds)


def thresholds_of(
    localizer: Localizer, folder: FeatureFolder, tested: SegmentTable, training: SegmentTable
) -> dict[str, float]:
    """The score from which on each class is shown: where F1 is highest on the tested videos.

    Where a class has no examples there, or none is found, all that these videos can tell is which scores wrong ones
    reach. Then some training videos with the class are counted too: their right detections, however sure of themselves,
    have to stand above those wrong ones.
    """

    def best(videos: Sequence[UntrimmedVideo], found: Mapping[str, Detections]) -> dict[str, float]:
        truth = replace(tested, videos=tuple(replace(video, split="val") for video in videos)).ground_truth()
        return best_thresholds(truth, results_of(found, tested.label_sets), subset="val")

    def detected(videos: Sequence[UntrimmedVideo]) -> dict[str, Detections]:
        return {video.name: localizer.detect(folder.read(video.name)) for video in videos}

    found = detected(tested.videos)
    thresholds = best(tested.videos, found)
    added: list[UntrimmedVideo] = []
    examples: Counter[str] = Counter()
    for video in training.videos:
        lacking = {training.label_of(segment) for segment in video.segments} - thresholds.keys()
        if len(added) == _MOST_VIDEOS or all(examples[label] >= _ENOUGH_VIDEOS for label in lacking):
            continue
        if localizer.recipe.names_by_scores and not can_name(folder, video, tested.label_sets):
            continue
        added.append(video)
        examples.update(lacking)
    joint = best([*tested.videos, *added], found | detected(added)) if added else {}
    return {label: value for label, value in joint.items() if label in examples} | thresholds


def check_out(out: Path, *, resume: bool) -> None:
    """Refuse to write a new run into a folder that holds something, or to resume what is no run.

    Raises:
        OptionError: it does, or it is none.
    """
    if resume and not out.is_dir():
        raise OptionError(f"{out} is no folder, so there is no run to resume: begin it without --resume")
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"{out} is not empty: choose another folder with --out, or continue its run with --resume")


def _check_same_run(out: Path, recipe: LocalizationRecipe, table: SegmentTable, folder: FeatureFolder) -> bool:
    """Whether a run has begun in a folder, with this recipe and these data.

    Raises:
        OptionError: with another recipe, or the folder holds something else.
        DataError: with other data.
    """
    if not (out / RECIPE_FILE).exists():
        others = sorted({path.name for path in out.iterdir()} - {"data.json", VIDEOS_FILE})
        if [name for name in others if not name.endswith(".part")]:
            raise OptionError(f"{out} holds no run of `tada localize train` (no {RECIPE_FILE}), but {listed(others)}")
        return False
    saved = asdict(read_recipe(out / RECIPE_FILE, LocalizationRecipe))
    changed = [name for name, value in asdict(recipe).items() if saved[name] != value]
    if changed:
        raise OptionError(f"{out} was started with another {', '.join(changed)}: resume with {out / RECIPE_FILE}")
    before = json.loads((out / "data.json").read_text(encoding="utf-8"))
    if before != {"features": folder.key, "segments": table.fingerprint()}:
        raise DataError(f"the features or segments are not those that {out} was started with: start anew")
    replaced = TrainedVideos(out).changed(table, folder)
    if replaced:
        raise DataError(
            f"the video {replaced[0]!r} is not the one that {out} was started with ({VIDEOS_FILE} there): it was "
            "replaced since; start anew without --resume, into another folder"
        )
    return True
