"""Training data of a recognizer: its videos, the held-out ones, and checks that it can learn from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from tada.data.annotations import read_dataset
from tada.data.clips import Augmentation
from tada.data.hold_out import with_splits
from tada.data.table import Head, VideoTable, with_fps
from tada.errors import DataError, OptionError, listed
from tada.recognition.recipe import Recipe
from tada.video.transforms import flip_swaps, reverse_swaps


# No slots, which cached_property does not work with.
@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The videos of a run."""

    table: VideoTable
    is_drawn: bool
    """Whether the held-out videos were drawn at random, rather than given by the data or the user."""
    limit: int | None
    """Largest number of videos of each split (``--limit``); None: all."""

    @cached_property
    def training(self) -> VideoTable:
        """The training videos."""
        return self.table.of_split("train")

    @cached_property
    def validation(self) -> VideoTable | None:
        """The held-out videos; None if there are none."""
        return self.table.of_split("val") if "val" in self.table.splits else None

    @property
    def num_held_out(self) -> int:
        """Number of held-out videos."""
        return 0 if self.validation is None else len(self.validation)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The classification heads, with their class names."""
        return self.table.heads

    @property
    def head_sizes(self) -> dict[str, int]:
        """Head -> its number of classes."""
        return {head.name: len(head.labels) for head in self.heads}

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return tuple(label for head in self.heads for label in head.labels)

    @property
    def accuracy(self) -> str:
        """Name in the logs of the metric that decides which epoch is best."""
        if self.table.several:
            return "val_map"
        return "val_top1" if len(self.heads) == 1 else "val_action_top1"

    @property
    def classes_in_words(self) -> str:
        """The numbers of classes in words: "3 classes", "97 verbs and 300 nouns"."""
        kinds = ["classes"] if len(self.heads) == 1 else [f"{head.name}s" for head in self.heads]
        return " and ".join(f"{len(head.labels)} {kind}" for head, kind in zip(self.heads, kinds, strict=True))


def training_data(
    data: str | PathLike[str] | VideoTable,
    recipe: Recipe,
    *,
    root: str | PathLike[str] | None,
    fold: int,
    val_fraction: float,
    val_groups: Sequence[str],
    limit: int | None,
    say: Callable[[str], None],
) -> TrainingData:
    """Read the videos of a call of ``train``, whose docstring explains the arguments, and hold some out.

    Raises:
        UserError: a mistake in the data, or the videos to hold out do not exist.
    """
    if not isinstance(data, VideoTable):
        data = read_dataset(Path(data), root=None if root is None else Path(root), fold=fold)
    table = data
    if recipe.fps is not None and not table.has_frames:
        say(f"fps {recipe.fps:g} is for folders of frames, and there is none: files have times of their own")
    elif recipe.fps is not None:
        table = with_fps(table, recipe.fps)
    is_drawn = not (table.splits or val_groups)
    table = with_splits(table, val_fraction=val_fraction, val_groups=val_groups, seed=recipe.seed)
    if limit is not None:
        table = _limit_videos(table, limit, recipe.seed, say)
    if table.missing:
        say(f"{table.kind}: {table.coverage()} are there; `tada check` lists the others")
    if table.ignored:
        say(f"left out, beside the videos: {listed(table.ignored, quote=False)}")
    return TrainingData(table=table, is_drawn=is_drawn, limit=limit)


def _limit_videos(whole: VideoTable, limit: int, seed: int, say: Callable[[str], None]) -> VideoTable:
    """At most ``limit`` videos of each split, including each training class.

    Raises:
        OptionError: ``limit`` is too small for that.
    """
    table = whole.limited(limit, seed=seed)
    before, after = whole.of_split("train"), table.of_split("train")
    for i, head in enumerate(whole.heads):
        had_none = _classes_without_videos(before, i)
        lost = [label for label in _classes_without_videos(after, i) if label not in had_none]
        if lost:
            raise OptionError(
                f"--limit {limit} leaves no training video of {listed(lost)}: give a larger one, "
                f"{len(head.labels)} for the {len(head.labels)} classes or more"
            )
    say(f"--limit {limit}: {len(table)} of {len(whole)} videos are used, at most {limit} of each split")
    return table


def _classes_without_videos(table: VideoTable, head: int = 0) -> list[str]:
    """The classes without videos."""
    return [label for label, count in table.counts(head).items() if not count]


def check_can_learn(data: TrainingData, recipe: Recipe) -> None:
    """Check that a network can learn from the videos with this recipe.

    Raises:
        DataError: a head has one class only, or a class has no training video.
        OptionError: the recipe needs held-out videos, or videos with one label each.
    """
    for head in data.heads:
        if len(head.labels) < 2:
            raise DataError(
                f"all videos are of one {head.name} class, {head.labels[0]!r}: a network learns to tell two or more "
                "apart; add videos of another"
            )
    if data.table.several and recipe.balance == "sampling":
        raise OptionError(
            "balance 'sampling' shows as many clips of each class, and here a clip may have several: use balance 'loss'"
        )
    if data.validation is None and (recipe.keep == "best" or recipe.stop_early is not None):
        raise OptionError(
            "keep 'best' and stop_early need held-out videos, and there are none: hold some out (--val-fraction, "
            "--val-groups), or leave these options out"
        )
    lacking = _classes_without_videos(data.training) if data.table.several else []
    if lacking:
        raise DataError(f"no training video is of class {listed(lacking)}; take its column away, or add videos of it")


def augmentation(recipe: Recipe, heads: Sequence[Head]) -> Augmentation:
    """The augmentation of training clips, from the recipe's fields and the classes.

    Args:
        heads: their class names decide which classes swap in a mirrored or reversed clip.
    """
    of_data: dict[str, Any] = {
        "flip_swaps": [flip_swaps(head.labels) for head in heads],
        "reverse_swaps": [reverse_swaps(head.labels) for head in heads],
        "several": heads[0].several,
    }
    names = {field.name for field in fields(Augmentation)} - of_data.keys()
    of_recipe: dict[str, Any] = {name: getattr(recipe, name) for name in names}
    return Augmentation(**of_recipe, **of_data)
