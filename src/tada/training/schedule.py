"""Schedule of a training: epochs, batch size, warm-up and learning rate, from the recipe or the amount of data.

Where a recipe says null for ``epochs``, ``batch_size`` or ``warmup_epochs``, ``fitted`` fills in numbers before
training starts. A run's recipe.yaml holds these numbers, so a resumed run uses them too.
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
    """Limits by which ``fitted`` computes batch size and epochs from the number of clips."""

    batch_size: int
    """Largest batch size, in clips."""
    small_batch_size: int
    """Batch size below which few clips are not divided into more steps."""
    steps_per_epoch: int
    """Steps of an epoch of few clips, if each step then has ``small_batch_size`` clips or more."""
    epochs: int
    """Smallest number of epochs."""
    steps: int
    """Smallest number of steps of the whole training."""


class Numbers(NamedTuple):
    """The numbers that ``fitted`` fills in."""

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
    """The fields that both tasks' recipes have, and their ranges.

    Not a dataclass, since each recipe has its own order, defaults and docstrings of these fields.
    """

    FIT: ClassVar[Fit]
    """Limits of the numbers that ``fitted`` fills in for null."""
    BEFORE: ClassVar[Mapping[str, Any]] = {"last_batch": "drop"}
    """Fields that older runs' recipes lack -> values that do what tada did before it had these fields."""

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
    """The recipe with null replaced by numbers that fit ``num_clips`` clips (or videos, or windows).

    batch_size: an epoch is divided into equal steps of at most ``FIT.batch_size`` clips; few clips are divided into
    ``FIT.steps_per_epoch`` steps, or fewer so that each has ``FIT.small_batch_size`` clips. epochs: ``FIT.epochs``, or
    more to reach ``FIT.steps`` steps. warmup_epochs: a tenth of the epochs. Numbers in the recipe are not changed.

    Args:
        multiple_of: the batch size is a multiple of this times ``accumulate``: number of devices, or 2 for pairs.

    Raises:
        OptionError: the filled-in numbers break a rule of the recipe.
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
    """A line with epochs, steps, batch size and warm-up, and how the incomplete last batch is treated.

    Args:
        is_balanced: whether the clips of an epoch are drawn by class, so that every batch is full.
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
    """The pace of a ``fitted`` recipe; an epoch has ``num_parts`` batches, ``accumulate`` of which make a step."""
    steps_per_epoch = num_parts // recipe.accumulate
    return Pace(steps_per_epoch, epochs_between_tests(recipe.numbers.epochs, steps_per_epoch))


def between_tests_in_words(between: int) -> str:
    """A line that says after how many epochs held-out videos are tested."""
    return f"epochs are short: the held-out videos are tested after every {between} of them"


def epochs_between_tests(epochs: int, steps_per_epoch: int) -> int:
    """Number of epochs from one test of the held-out videos to the next: 1, or more if epochs have very few steps.

    It divides ``epochs``, so that the last epoch is tested.
    """
    between = max(_SHORT_EPOCH // steps_per_epoch, 1)
    return between if epochs % between == 0 else 1


def learning_rate_factor(
    epoch: float,
    *,
    epochs: int,
    warmup_epochs: float,
    warmup_start: float,
    end: float = 0.0,
    after_warmup: bool = False,
) -> float:
    """The learning rate at a (fractional) epoch, as a fraction of the peak.

    Half a cosine over all epochs, or over those after the warm-up, down to ``end``; during the warm-up, linear from
    ``warmup_start`` to the cosine's value at the end of the warm-up, as in the released code.
    """
    before = warmup_epochs if after_warmup else 0.0

    def cosine(epoch: float) -> float:
        part = (epoch - before) / (epochs - before) if before < epochs else 0.0
        return end + (1 - end) * (1 + math.cos(math.pi * part)) / 2

    if epoch < warmup_epochs:
        return warmup_start + (cosine(warmup_epochs) - warmup_start) * epoch / warmup_epochs
    return cosine(epoch)
