"""Training a recognizer: from a recipe and videos to the folder of a run.

A run's folder holds::

    recipe.yaml         the recipe
    videos.csv          which videos were trained on and which were held out
    model.safetensors   the weights, written at the end (with model.json: labels, clip specification, checksum)
    metrics.json        final metrics
    logs/               metrics of every epoch: CSV, and TensorBoard
    resume/last.ckpt    the state from which an interrupted run continues, bit for bit
    unreadable.csv      unreadable videos, if some were allowed
    non_finite_batch.txt    the videos of a batch whose loss was not finite, if that ended the run
    commands.txt        the commands that started and continued it
    validation/         the test on the held-out videos, as `tada evaluate` writes it
    curves.png          loss, accuracy and learning rate over the epochs
    report.html         curves, test, data, recipe and commands in one page
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
from torch import nn

from tada.data.balance import balance_in_words, classes_of
from tada.data.clips import ResumableBatches, ResumableLoader, TrainingClips
from tada.data.loader import VideoLoader
from tada.data.recordings import shared_recordings
from tada.data.run_videos import write_run_list
from tada.data.table import VideoTable
from tada.data.views import TestVideos, Views, test_loader
from tada.errors import OptionError
from tada.models import check_clips_of, create_model, with_normalization
from tada.models.parallel import checkpoint_blocks, synchronize_batch_norms, whole_weights
from tada.models.pretrained import RANDOM_WEIGHTS, initialize, start_in_words
from tada.recognition.parameter_groups import check_rule
from tada.recognition.recipe import Recipe
from tada.recognition.resumed_run import Before, more_epochs_in_words, resume_run, take_up, yaml_of_run
from tada.recognition.run_outputs import accuracies_in_words, finite_metrics, save_network, with_last_loss, write_page
from tada.recognition.trained_part import train_only
from tada.recognition.training_call import check_divisible, machine_of_call, mixes, recipe_of_call, with_precision
from tada.recognition.training_data import TrainingData, augmentation, check_can_learn, training_data
from tada.recognition.training_step import About, RecognitionTask, ShardedRecognitionTask
from tada.system.calls import checked
from tada.system.collectives import leaving_together
from tada.system.compiling import told_if_not_compiled
from tada.system.devices import Machine, Processes, check_num_workers, default_num_workers
from tada.system.locks import holds
from tada.training.best_epoch import BEST, BestEpoch
from tada.training.checkpoints import steps_of_state
from tada.training.dry_run import try_training
from tada.training.loader_speed import LoaderSpeed
from tada.training.loggers import check_logger
from tada.training.recipe import recipe_yaml
from tada.training.run_folder import TrainingResult, check_free, end_run, was_begun, within_run
from tada.training.run_page import tested_epochs
from tada.training.schedule import Pace, between_tests_in_words, fitted, in_words, pace_of
from tada.training.step_clock import StepClock
from tada.training.trainer import EpochLines, SameRun, UnreadableVideos, fit, make_trainer


@checked(skip_unreadable=0, limit=1, num_workers=0, save_every_steps=1)
@holds("out", unless="dry_run")
def train(
    recipe: Recipe | str | PathLike[str] | None,
    data: str | PathLike[str] | VideoTable,
    out: str | PathLike[str],
    *,
    root: str | PathLike[str] | None = None,
    fold: int = 1,
    val_fraction: float = 0.2,
    val_groups: Sequence[str] = (),
    resume: bool = False,
    skip_unreadable: int = 0,
    num_workers: int | None = None,
    save_every_steps: int | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    device: Literal["cpu", "cuda", "mps"] | None = None,
    machine: Machine | None = None,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
    **changes: Any,
) -> TrainingResult:
    """Train a model on labeled videos, and save it in the folder ``out``.

        tada.train(None, "clips", "runs/first")
        tada.train("quickstart", "clips.csv", "runs/second", epochs=3, clip={"num_frames": 4})

    Args:
        recipe: a recipe, the name of one that comes with tada, or a YAML file. None: the defaults, or the resumed
            run's recipe.
        data: what ``tada.data.annotations.read_dataset`` takes, or a table it has read.
        root: the folder that a CSV's paths are relative to, or that holds a published list's videos; by default the
            folder of the CSV or list.
        fold: which of the three splits of UCF101 and HMDB51.
        val_fraction: fraction of each class held out for validation, if the data has no splits; 0: none.
        val_groups: hold out these values of the CSV's group column instead.
        resume: continue the run in ``out`` from its last saved state, to the same numbers as if never stopped.
        skip_unreadable: number of unreadable videos that are skipped and listed; one more stops the run.
        num_workers: processes that decode, for each device; by default one for each core, at most eight.
        save_every_steps: optimizer steps between saved states; by default one epoch (several if they are short), at
            most 200 steps.
        limit: largest number of videos of each split, for a try. A resumed run keeps its own.
        dry_run: check everything, train two steps and discard them, print the memory and time that the training
            would take, and write nothing.
        device: "cpu", "cuda" or "mps" (Apple's chips); by default a GPU where there is one.
        machine: instead of ``device``: the number of devices and how they are used. A run may be resumed with others.
        say: called with each line of the output.
        changes: fields of the recipe to change, as in ``tada.training.recipe.changed``.

    Raises:
        UnknownNameError: no recipe, field or argument has the name; the message suggests the nearest.
        UserError: a mistake in the data, the recipe or a video, or the folder is in use; the message says a way out.
        OutputError: the folder cannot be written, or another process writes into it.
    """
    if not 0 <= val_fraction < 1:
        raise OptionError(f"val_fraction must be 0 or more and less than 1, not {val_fraction:g}")
    out = Path(out)
    arguments = [p.name for p in inspect.signature(train).parameters.values() if p.kind is p.KEYWORD_ONLY]
    recipe = recipe_of_call(recipe, changes, out if resume else None, arguments=arguments)
    machine = machine_of_call(device, machine)
    check_logger(machine.logger)
    processes = machine.processes()
    say, show_progress = processes.speaker(say), show_progress and processes.is_first

    videos = training_data(
        data, recipe, root=root, fold=fold, val_fraction=val_fraction, val_groups=val_groups, limit=limit, say=say
    )
    before = Before()
    if resume and was_begun(out):
        recipe, videos, before = resume_run(recipe, videos, out, show_progress=show_progress, say=say)
        if before.result is not None:
            return before.result
    elif processes.is_first and not resume:
        check_free(out)
    recipe = with_precision(recipe, processes.device_type)
    recipe = replace(recipe, clip=with_normalization(recipe.clip, recipe.model))
    check_can_learn(videos, recipe)
    recipe = fitted(recipe, len(videos.training), multiple_of=processes.world * (2 if mixes(recipe) else 1))
    check_divisible(recipe, machine, processes.world)

    L.seed_everything(recipe.seed, verbose=False)
    network = _make_network(recipe, videos, is_resumed=before.state is not None, say=say)
    num_workers = default_num_workers(processes.devices) if num_workers is None else check_num_workers(num_workers)
    loader, val_loader = _make_loaders(recipe, videos, processes, num_workers=num_workers, say=say)
    pace = pace_of(recipe, len(loader.batches))
    for line in _plan_in_words(recipe, videos, network, before, pace):
        say(line)
    if machine.checkpoint_gradients:
        checkpoint_blocks(network.model)
    building = told_if_not_compiled() if machine.compile else nullcontext()
    if machine.compile:
        network.model.compile()  # at its first call, and in place: names of weights stay
    task = _make_task(recipe, videos, network, pace, is_sharded=machine.strategy == "fsdp")
    same_run = SameRun(hashlib.sha256((recipe_yaml(recipe) + videos.table.fingerprint()).encode()).hexdigest())
    unreadable = UnreadableVideos(allowed=skip_unreadable)
    if dry_run:
        with building:
            try_training(
                out,
                task,
                recipe,
                loader,
                val_loader,
                [same_run, unreadable],
                processes=processes,
                num_held_out=videos.num_held_out,
                num_tests=recipe.numbers.epochs // pace.test_every_epochs,
                steps_done=0 if before.state is None else steps_of_state(before.state),
                say=say,
            )
        return TrainingResult(run=out, metrics={}, seconds=0.0)

    lines = EpochLines(say, told=tested_epochs(out) if before.is_begun else ())
    best = BestEpoch(
        out / BEST,
        accuracy=videos.accuracy,
        keep=recipe.keep == "best",
        stop_early=recipe.stop_early,
        steps_per_epoch=pace.steps_per_epoch,
        say=say,
    )
    clock = StepClock()
    write_list = partial(write_run_list, videos.table, say=say, show_progress=show_progress)
    if before.is_begun and processes.is_first:
        take_up(out, recipe, before, write_list)
    folder = within_run(out, yaml_of_run(recipe), write_list, goes_on=before.is_begun)
    with folder if processes.is_first else nullcontext():
        trainer = make_trainer(
            recipe,
            out,
            [same_run, unreadable, lines, best, LoaderSpeed(clock, say)],
            processes=processes,
            pace=pace,
            save_every_steps=save_every_steps,
            clock=clock,
            show_progress=show_progress,
            say=say,
        )
        device_used = trainer.strategy.root_device
        if processes.world > 1 and recipe.sync_batch_norm:
            synchronize_batch_norms(network.model, on_cpu=device_used.type == "cpu")
        with leaving_together():
            with building:
                fit(trainer, task, loader, val_loader, state=before.state)
            weights = whole_weights(network.model) if machine.strategy == "fsdp" else network.model.state_dict()

    metrics, seconds = lines.metrics, lines.seconds
    if best.keep and best.epoch:
        metrics = best.metrics | {"kept_epoch": float(best.epoch)}
        say(f"kept: the weights after epoch {best.epoch}, the best of those tested by {best.accuracy}")
    metrics = finite_metrics(metrics, say)
    if processes.is_first:
        if "kept_epoch" in metrics:
            weights = best.weights("model")
        else:
            metrics = with_last_loss(metrics, out)
        unreadable.write(out / "unreadable.csv")
        save_network(out, weights, recipe, videos, metrics, trained_from=task.about.trained_from)
    for line in accuracies_in_words(metrics, videos.validation, task.num_tested):
        say(line)
    if processes.is_first:
        write_page(
            out,
            recipe,
            videos,
            network=f"{recipe.model}, {network.num_parameters:,} parameters",
            trained_from=task.about.trained_from,
            seconds=seconds,
            steps_per_epoch=pace.steps_per_epoch,
            device=str(device_used),
            num_workers=num_workers,
            show_progress=show_progress,
            say=say,
        )
    return end_run(out, metrics, seconds=seconds, is_first=processes.is_first)


class _Network(NamedTuple):
    """The network before training."""

    model: nn.Module
    trained_from: str
    """The origin of its initial weights, in words."""
    part_in_words: str
    """A line about the trained part; empty if all of it is trained."""

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def _make_network(recipe: Recipe, videos: TrainingData, *, is_resumed: bool, say: Callable[[str], None]) -> _Network:
    """Make the recipe's network, and load its initial weights unless a saved state will replace them."""
    model = create_model(
        recipe.model,
        num_classes=sum(videos.head_sizes.values()),
        num_frames=recipe.clip.num_frames,
        **recipe.model_options,
    )
    clip = recipe.clip
    check_clips_of(model, clip.num_frames, clip.crop, recipe.train_crop or clip.crop)
    part_in_words = train_only(model, recipe.train, recipe.model)
    check_rule(model, recipe.model, layer_decay=recipe.layer_decay, rule=recipe.parameter_rule)
    if is_resumed:  # a saved state has all weights, so the file of initial weights is not needed
        return _Network(model, start_in_words(recipe.model, recipe.init), part_in_words)
    return _Network(model, initialize(model, recipe.model, recipe.init, clip=recipe.clip, say=say), part_in_words)


def _make_loaders(
    recipe: Recipe, videos: TrainingData, processes: Processes, *, num_workers: int, say: Callable[[str], None]
) -> tuple[ResumableLoader, VideoLoader | None]:
    """The loader of training clips, and the loader of held-out videos, if there are any."""
    batches = ResumableBatches(
        len(videos.training),
        batch_size=recipe.numbers.batch_size,
        last_batch=recipe.last_batch,
        accumulate=recipe.accumulate,
        seed=recipe.seed,
        rank=processes.rank,
        world=processes.world,
        classes=classes_of(videos.training) if recipe.balance == "sampling" else None,
    )
    clips = TrainingClips(videos.training, recipe.clip, augmentation(recipe, videos.heads), seed=recipe.seed)
    loader = ResumableLoader(clips, batches, num_workers=num_workers, say=say)
    if videos.validation is None:
        return loader, None
    val_loader = test_loader(
        TestVideos(videos.validation, recipe.clip, Views()),
        clips_per_batch=max(recipe.numbers.batch_size // (recipe.accumulate * processes.world), 1),
        num_workers=num_workers,
        rank=processes.rank,
        world=processes.world,
        say=say,
    )
    return loader, val_loader


def _plan_in_words(
    recipe: Recipe, videos: TrainingData, network: _Network, before: Before, pace: Pace
) -> Iterator[str]:
    """Lines about the training that begins: data, network, initial weights, schedule."""
    training, numbers = videos.training, recipe.numbers
    several = ", any number of them in each" if videos.table.several else ""
    yield f"{len(training)} training and {videos.num_held_out} validation videos of {videos.classes_in_words}{several}"
    start = f"starting from {network.trained_from}" if before.state is None else f"going on from {before.state}"
    yield f"{recipe.model}: {network.num_parameters:,} parameters, {start}"
    if recipe.precision == "bf16":
        yield "convolutions and matrix products compute in bf16 (--precision fp32: in fp32)"
    if network.part_in_words:
        yield network.part_in_words
        if network.trained_from == RANDOM_WEIGHTS:
            yield "the frozen part has random weights: give trained ones with --init"
    if videos.is_drawn and (advice := shared_recordings(videos.table)):
        yield advice
    yield in_words(numbers, len(training), recipe.last_batch, is_balanced=recipe.balance == "sampling")
    if balance := balance_in_words(training, recipe.balance, numbers.batch_size * pace.steps_per_epoch):
        yield balance
    if recipe.keep == "best":
        yield (
            f"--keep best: the weights after the epoch with the best {videos.accuracy} are kept, so this number "
            "overestimates the accuracy on other videos: test on others to know it"
        )
    if before.is_begun and numbers.epochs > before.epochs:
        yield more_epochs_in_words(recipe, before.epochs)
    if recipe.peak_learning_rate != recipe.learning_rate:
        yield (
            f"learning_rate {recipe.learning_rate:g} is meant for batches of {recipe.learning_rate_batch}; for "
            f"{numbers.batch_size} it is scaled to {recipe.peak_learning_rate:g}"
        )
    if videos.validation is not None and pace.test_every_epochs > 1:
        yield between_tests_in_words(pace.test_every_epochs)


def _make_task(
    recipe: Recipe, videos: TrainingData, network: _Network, pace: Pace, *, is_sharded: bool
) -> RecognitionTask:
    """The Lightning module that trains this network on these videos."""
    kind = ShardedRecognitionTask if is_sharded else RecognitionTask
    task = kind(
        network.model,
        recipe,
        steps_per_epoch=pace.steps_per_epoch,
        head_sizes=videos.head_sizes,
        class_counts=[list(videos.training.counts(head).values()) for head in range(len(videos.heads))],
        several_of=len(videos.training) if videos.table.several else 0,
        is_sharded=is_sharded,
    )
    task.about = About(network.trained_from, videos.labels)
    return task
