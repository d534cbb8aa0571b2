"""Resuming a recognizer's run: with its recipe, its videos, and its last saved state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tada.data.run_videos import RUN_LIST, KnownVideo, as_in_run, limited_as_run, read_run_list
from tada.errors import CheckpointError, OptionError
from tada.models.pretrained import absolute_source
from tada.recognition.recipe import Recipe
from tada.recognition.training_data import TrainingData
from tada.training.checkpoints import CHECKPOINT
from tada.training.recipe import recipe_of_run, recipe_yaml, resumed
from tada.training.run_folder import TrainingResult, finished_result, go_on, saved_state
from tada.training.schedule import learning_rate_factor


@dataclass(frozen=True, kw_only=True, slots=True)
class Before:
    """The state of a run after its earlier starts."""

    epochs: int = 0
    """Number of epochs in the run's recipe so far; 0 for a new run."""
    state: Path | None = None
    """The saved state to resume from; None if none was saved."""
    known: Sequence[KnownVideo] | None = None
    """The run's videos; None if it was interrupted before their list was written."""
    result: TrainingResult | None = None
    """The result, if the run is finished and needs no further training."""

    @property
    def is_begun(self) -> bool:
        """Whether there was an earlier start."""
        return self.epochs > 0


def resume_run(
    recipe: Recipe, data: TrainingData, out: Path, *, show_progress: bool, say: Callable[[str], None]
) -> tuple[Recipe, TrainingData, Before]:
    """Read a run's folder: the recipe and videos to resume it with, and its state.

    Raises:
        OptionError: the run has another recipe, or is finished and its state is missing.
        DataError: the run has other videos.
        CheckpointError: a file of the run is damaged.
    """
    epochs = recipe_of_run(out, Recipe).numbers.epochs
    recipe = of_same_run(recipe, out, say)
    state = saved_state(out, say)
    known = read_run_list(out)
    if known is None and state is not None:
        raise CheckpointError(
            f"{out} has lost its {RUN_LIST}, the list of its held-out videos: copy the run's folder again, or start "
            f"anew with --init {out} and another --out"
        )
    if known is not None:  # else it was interrupted before training began
        data = _restore_splits(data, known, out, seed=recipe.seed, show_progress=show_progress, say=say)
    result = finished_result(out)
    if result is not None and recipe.numbers.epochs != epochs:
        if state is None:
            raise OptionError(
                f"{out} is finished, and {CHECKPOINT}, needed to go on, is missing: start a new run with --init {out}"
            )
        result = None
    if result is not None:
        say(
            f"{out} is finished; a new run starts from its weights with --init {out}, and with --epochs above "
            f"{epochs} this one goes on"
        )
    return recipe, data, Before(epochs=epochs, state=state, known=known, result=result)


def of_same_run(recipe: Recipe, out: Path, say: Callable[[str], None] = print) -> Recipe:
    """The recipe with the run's numbers, or with more epochs.

    Raises:
        OptionError: the run has another recipe.
    """
    saved = recipe_of_run(out, Recipe)
    if absolute_source(saved.init) == absolute_source(recipe.init):
        recipe = replace(recipe, init=saved.init)
    clip = recipe.clip
    recipe = replace(recipe, clip=replace(clip, mean=clip.mean or saved.clip.mean, std=clip.std or saved.clip.std))
    return resumed(
        recipe,
        out,
        or_else=f"start a new run from its weights, with --init {out} and another --out",
        may_have_more_epochs=True,
        say=say,
    )


def _restore_splits(
    data: TrainingData,
    known: Sequence[KnownVideo],
    out: Path,
    *,
    seed: int,
    show_progress: bool,
    say: Callable[[str], None],
) -> TrainingData:
    """The videos in the run's splits, limited to the run's number of videos."""
    table, limit = data.table, data.limit
    if limit is None:
        table, limit = limited_as_run(table, known, seed=seed)
        if limit is not None:
            say(f"{out} was begun with --limit {limit}, and goes on with it: {len(table)} videos are used")
    table = as_in_run(table, known, out, is_drawn=data.is_drawn, show_progress=show_progress)
    return TrainingData(table=table, is_drawn=data.is_drawn, limit=limit)


def take_up(out: Path, recipe: Recipe, before: Before, write_list: Callable[[Path], None]) -> None:
    """Update the folder of a resumed run: the list of videos if it is of an older version, and the recipe."""
    if not any(row.content for row in before.known or ()):
        write_list(out)  # an older version's list has no hashes of the files
    if recipe.numbers.epochs != before.epochs:
        go_on(out, yaml_of_run(recipe))


def yaml_of_run(recipe: Recipe) -> str:
    """The recipe as YAML for a run's folder, with an absolute path in ``init``."""
    return recipe_yaml(replace(recipe, init=absolute_source(recipe.init)))


def _lowest(recipe: Recipe) -> str:
    return f"{recipe.learning_rate_end * recipe.peak_learning_rate:.2g}" if recipe.learning_rate_end else "zero"


def more_epochs_in_words(recipe: Recipe, before: int) -> str:
    """A line about the learning rate of a run that continues with more epochs than before."""
    epochs, _, warmup_epochs = recipe.numbers
    factor = learning_rate_factor(
        before,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        warmup_start=recipe.warmup_start,
        end=recipe.learning_rate_end,
        after_warmup=recipe.cosine_after_warmup,
    )
    return (
        f"{epochs} epochs in place of {before}: from here on the learning rate follows the curve of {epochs}, which "
        f"after epoch {before} is at {factor * recipe.peak_learning_rate:.2g}, where that of {before} is at "
        f"{_lowest(recipe)}; {epochs} epochs from the beginning give other weights"
    )
