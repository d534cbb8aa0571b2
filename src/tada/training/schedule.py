"""How long training goes, and in which steps: numbers that a recipe gives, or that follow from how much data there is.

Where a recipe says null for ``epochs``, ``batch_size`` or ``warmup_epochs``, ``fitted`` puts numbers in their place
before training starts. A run's recipe.yaml holds these numbers, so a run that is resumed has them too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

from tada.data.epochs import LastBatch, steps_of_epoch
from tada.errors import OptionError, counted

_SHORT_EPOCH = 4  # steps
_MOST_UNSAVED = 200  # steps


def require(holds: bool, name: str, rule: str) -> None:
    """Raise OptionError where a field of a recipe breaks its rule."""
    if not holds:
        raise OptionError(f"the recipe's {name} must be {rule}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How the steps of training follow from the number of clips; ``fitted`` says how."""

    batch_size: int
    """Clips of a step, at most."""
    small_batch_size: int
    """Clips of a step from which on little data is not cut into smaller steps."""
    steps_per_epoch: int
    """Steps that an epoch of little data has, if they do not get smaller than that."""
    epochs: int
    """Epochs, at least."""
    steps: int
    """Steps of the whole training, at least."""


class Numbers(NamedTuple):
    """What ``fitted`` fills in."""

    epochs: int
    batch_size: int
    warmup_epochs: float


class Pace(NamedTuple):
    """How often held-out videos are tested and the state is saved."""

    steps_per_epoch: int
    test_every_epochs: int

    @property
    def save_every_steps(self) -> int:
        """Optimizer steps between saved states: those between two tests, at most 200."""
        return min(self.steps_per_epoch * self.test_every_epochs, _MOST_UNSAVED)


class Schedule:
    """The fields of every recipe, and their ranges.

    No dataclass: the order of the fields, their defaults and what they mean in words are each recipe's own.
    """

    FIT: ClassVar[Fit]
    """What ``fitted`` puts in the place of null."""
    BEFORE: ClassVar[Mapping[str, Any]] = {"last_batch": "drop"}
    """What was done before there were fields for it: the values of those that an older run's recipe lacks."""

    epochs: int | None
    batch_size: int | None
    accumulate: int
    learning_rate: float
    warmup_epochs: float | None
    weight_decay: float
    label_smoothing: float
    ema_decay: float | None
    clip_gradient_norm: float | None
    seed: int

    def __post_init__(self) -> None:
        """Raise OptionError where a field is out of its range."""
        require(self.epochs is None or self.epochs >= 1, "epochs", "1 or more")
        require(self.accumulate >= 1, "accumulate", "1 or more")
        for name in ("epochs", "batch_size", "accumulate", "seed"):
            value = getattr(self, name)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            require(value is None or is_whole, name, f"a whole number, not {value!r}")
        require(0 <= self.seed < 2**32, "seed", "from 0 to 4294967295, which is what NumPy takes")
        require(self.batch_size is None or self.batch_size >= 1, "batch_size", "1 or more")
        require(
            self.batch_size is None or self.batch_size % self.accumulate == 0,
            "batch_size",
            f"a multiple of accumulate ({self.accumulate})",
        )
        require(self.learning_rate > 0, "learning_rate", "positive")
        require(self.warmup_epochs is None or self.warmup_epochs >= 0, "warmup_epochs", "0 or more")
        require(
            self.warmup_epochs is None or self.epochs is None or self.warmup_epochs <= self.epochs,
            "warmup_epochs",
            f"between 0 and epochs ({self.epochs}), or null, which is a tenth of them",
        )
        require(self.weight_decay >= 0, "weight_decay", "0 or more")
        require(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)")
        require(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", "null or between 0 and 1")
        require(self.clip_gradient_norm is None or self.clip_gradient_norm > 0, "clip_gradient_norm", "positive")
        require(self.seed >= 0, "seed", "0 or more")

    @property
    def numbers(self) -> Numbers:
        """Epochs, batch size and epochs of warm-up of a recipe that was ``fitted``."""
        assert self.epochs is not None
        assert self.batch_size is not None
        assert self.warmup_epochs is not None
        return Numbers(self.epochs, self.batch_size, self.warmup_epochs)


AnySchedule = TypeVar("AnySchedule", bound=Schedule)


def fitted(recipe: AnySchedule, num_clips: int, *, multiple_of: int = 1) -> AnySchedule:
    """A recipe with numbers where it says null, for so many clips (or what else training sees one of).

    batch_size: an epoch is cut into equal steps of at most ``FIT.batch_size`` clips; few clips are cut into
    ``FIT.steps_per_epoch`` steps, or as many as leave ``FIT.small_batch_size`` clips to each. epochs: ``FIT.epochs``,
    or as many as make ``FIT.steps`` steps. warmup_epochs: a tenth of the epochs. What the recipe says stays.

    Args:
        multiple_of: the batch can be divided by this, beside ``accumulate``: devices, pairs.

    Raises:
        OptionError: the recipe's numbers and these do not go together.
    """
    fit = recipe.FIT
    batch_size, epochs, warmup_epochs = recipe.batch_size, recipe.epochs, recipe.warmup_epochs
    if batch_size is None:
        multiple = recipe.accumulate * multiple_of
        few = min(fit.steps_per_epoch, num_clips // fit.small_batch_size)
        steps = max(math.ceil(num_clips / fit.batch_size), few, 1)
        batch_size = math.ceil(num_clips / steps / multiple) * multiple
    if epochs is None:
        epochs = max(fit.epochs, math.ceil(fit.steps / math.ceil(num_clips / batch_size)))
    if warmup_epochs is None:
        warmup_epochs = epochs / 10
    return replace(recipe, batch_size=batch_size, epochs=epochs, warmup_epochs=warmup_epochs)  # type: ignore[type-var]  # a dataclass


def in_words(
    numbers: Numbers, num_clips: int, last_batch: LastBatch, *, noun: str = "clip", is_balanced: bool = False
) -> str:
    """A line that says in which steps so many clips are trained on, and what becomes of those left over.

    Args:
        is_balanced: the clips of an epoch are drawn by class, so that none are left over.
    """
    epochs, batch_size, warmup_epochs = numbers
    steps = steps_of_epoch(num_clips, batch_size, last_batch)
    line = (
        f"{counted(epochs, 'epoch')} of {counted(steps, 'step')}, {counted(batch_size, noun)} in each; "
        f"warm-up {counted(warmup_epochs, 'epoch')}"
    )
    left, lacking = num_clips % batch_size, -num_clips % batch_size
    if is_balanced:
        return line
    if left and last_batch == "drop":
        line += f"; each epoch leaves {left} of the {num_clips} {noun}s out (--last-batch fill: none)"
    elif lacking:
        line += f"; {counted(lacking, noun)} once more to fill the last step"
    return line


def pace_of(recipe: Schedule, num_parts: int) -> Pace:
    """The pace of a recipe that was ``fitted``, whose epoch comes in so many batches (``accumulate`` to a step)."""
    steps_per_epoch = num_parts // recipe.accumulate
    return Pace(steps_per_epoch, epochs_between_tests(recipe.numbers.epochs, steps_per_epoch))


def between_tests_in_words(between: int) -> str:
    """That held-out clips are not tested after each epoch, in a line."""
    return f"epochs are short: the held-out videos are tested after every {between} of them"


def epochs_between_tests(epochs: int, steps_per_epoch: int) -> int:
    """After how many epochs held-out clips are tested, and the state is saved: after each, or some very short ones.

    The last epoch's end is always such a time.
    """
    between = max(_SHORT_EPOCH // steps_per_epoch, 1)
    return between if epochs % between == 0 else 1


def learning_rate_factor(epoch: float, *, epochs: int, warmup_epochs: float, warmup_start: float) -> float:
    """The learning rate at a (fractional) epoch, as a part of the peak.

    Half a cosine over all epochs; during the warm-up a line from ``warmup_start`` up to the cosine's value at its
    end, as in the released code.
    """
    if epoch < warmup_epochs:
        end = (1 + math.cos(math.pi * warmup_epochs / epochs)) / 2
        return warmup_start + (end - warmup_start) * epoch / warmup_epochs
    return (1 + math.cos(math.pi * epoch / epochs)) / 2
