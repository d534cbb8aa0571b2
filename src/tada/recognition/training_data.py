"""What a recognizer is trained on: which videos, which of them are held out, and whether they can teach it anything."""

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


# No slots: what is asked for often is kept.
@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The videos of a run."""

    table: VideoTable
    is_drawn: bool
    """Whether it was drawn here which videos are held out, and not told by the data or the user."""
    limit: int | None
    """Videos of each split that were left, where there are more."""

    @cached_property
    def training(self) -> VideoTable:
        """Those that are trained on."""
        return self.table.of_split("train")

    @cached_property
    def validation(self) -> VideoTable | None:
        """Those that are held out, if any are."""
        return self.table.of_split("val") if "val" in self.table.splits else None

    @property
    def num_held_out(self) -> int:
        """How many are held out."""
        return 0 if self.validation is None else len(self.validation)

    @property
    def heads(self) -> tuple[Head, ...]:
        """What is said of a video."""
        return self.table.heads

    @property
    def head_sizes(self) -> dict[str, int]:
        """Numbers of classes."""
        return {head.name: len(head.labels) for head in self.heads}

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return tuple(label for head in self.heads for label in head.labels)

    @property
    def accuracy(self) -> str:
        """What the number by which a test is judged is called in the logs."""
        if self.table.several:
            return "val_map"
        return "val_top1" if len(self.heads) == 1 else "val_action_top1"

    @property
    def classes_in_words(self) -> str:
        """As "3 classes", or "97 verbs and 300 nouns"."""
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
    """The videos that a call of ``train`` means; its arguments are described there.

    Raises:
        UserError: of the data, or of what is to be held out.
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
        table = _limited(table, limit, recipe.seed, say)
    if table.missing:
        say(f"{table.kind}: {table.coverage()} are there; `tada check` lists the others")
    if table.ignored:
        say(f"left out, beside the videos: {listed(table.ignored, quote=False)}")
    return TrainingData(table=table, is_drawn=is_drawn, limit=limit)


def _limited(whole: VideoTable, limit: int, seed: int, say: Callable[[str], None]) -> VideoTable:
    """Some videos of each split, of each class that is trained on.

    Raises:
        OptionError: they are too few for that.
    """
    table = whole.limited(limit, seed=seed)
    before, after = whole.of_split("train"), table.of_split("train")
    for i, head in enumerate(whole.heads):
        had_none = _without_videos(before, i)
        lost = [label for label in _without_videos(after, i) if label not in had_none]
        if lost:
            raise OptionError(
                f"--limit {limit} leaves no training video of {listed(lost)}: give a larger one, "
                f"{len(head.labels)} for the {len(head.labels)} classes or more"
            )
    say(f"--limit {limit}: {len(table)} of {len(whole)} videos are used, at most {limit} of each split")
    return table


def _without_videos(table: VideoTable, head: int = 0) -> list[str]:
    """The classes that no video has."""
    return [label for label, count in table.counts(head).items() if not count]


def check_can_learn(data: TrainingData, recipe: Recipe) -> None:
    """See whether a network can learn from the videos as the recipe wants it.

    Raises:
        DataError: there is nothing to tell apart, or of a class there is no video.
        OptionError: the recipe wants videos that are held out, or classes that exclude each other.
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
            "keep 'best' and stop_early go by held-out videos, and none are held out: hold some out (--val-fraction, "
            "--val-groups), or leave them away"
        )
    lacking = _without_videos(data.training) if data.table.several else []
    if lacking:
        raise DataError(f"no training video is of class {listed(lacking)}; take its column away, or add videos of it")


def augmentation(recipe: Recipe, heads: Sequence[Head]) -> Augmentation:
    """What is done to the recipe's training clips: the fields of ``Augmentation`` are its own, but for those of data.

    Args:
        heads: the names of the classes say what a mirrored clip shows.
    """
    of_data: dict[str, Any] = {
        "flip_swaps": [flip_swaps(head.labels) for head in heads],
        "reverse_swaps": [reverse_swaps(head.labels) for head in heads],
        "several": heads[0].several,
    }
    names = {field.name for field in fields(Augmentation)} - of_data.keys()
    of_recipe: dict[str, Any] = {name: getattr(recipe, name) for name in names}
    return Augmentation(**of_recipe, **of_data)
