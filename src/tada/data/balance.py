"""Class balancing: an order that draws each class equally often, or loss weights that are larger for rare classes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tada.data.table import VideoTable
from tada.errors import counted

_UNEQUAL = 5  # the largest class to the smallest, in clips; from this ratio on the user is told


def classes_of(table: VideoTable) -> list[tuple[int, ...]]:
    """The class of each video; with several heads, the tuple of their classes counts as one."""
    return [video.labels for video in table.videos]


def balanced_order(classes: Sequence[tuple[int, ...]], num_drawn: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw ``num_drawn`` samples in random order, the same number of each class (some classes one more).

    All samples of a small class are drawn before any is repeated. The i-th repetition of a sample has the key
    sample + i * number of all samples, for which ``TrainingClips`` draws another crop. Of a large class, each call
    draws another random part.

    Args:
        classes: the class of each sample.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for place, found in enumerate(classes):
        places.setdefault(found, []).append(place)
    share, left = divmod(num_drawn, len(places))
    with_more = set(rng.permutation(len(places))[:left].tolist())
    drawn = []
    for number, found in enumerate(sorted(places)):
        own, count = np.array(places[found], np.int64), share + (number in with_more)
        rounds = [rng.permutation(own) + i * len(classes) for i in range(math.ceil(count / len(own)))]
        drawn += rounds and [np.concatenate(rounds)[:count]]
    order: NDArray[np.int64] = rng.permutation(np.concatenate(drawn))
    return order


def class_weights(counts: Sequence[int]) -> list[float]:
    """Loss weight of a clip of each class: all classes have the same total weight, and the mean over clips is 1.

    The weight of a class without clips is 0.
    """
    present = sum(count > 0 for count in counts)
    return [sum(counts) / (present * count) if count else 0.0 for count in counts]


def positive_weights(counts: Sequence[int], num_clips: int) -> list[float]:
    """Loss weight of the positive clips of each class: together they weigh as much as the negative ones.

    The weight of a class that no clip has, or all have, is 1.
    """
    return [(num_clips - count) / count if 0 < count < num_clips else 1.0 for count in counts]


def balance_in_words(table: VideoTable, balance: str, num_drawn: int) -> str:
    """One line that says how classes are balanced, or that they could be; empty if there is no need.

    Args:
        balance: as in ``Recipe``.
        num_drawn: clips of an epoch.
    """
    if table.several:
        return _several_in_words(table, balance)
    found = Counter(classes_of(table))
    names = {labels: " ".join(head.labels[i] for head, i in zip(table.heads, labels, strict=True)) for labels in found}
    few, many = min(found, key=lambda c: (found[c], c)), max(found, key=lambda c: (found[c], c))
    extent = f"{counted(found[few], 'clip')} each"
    if found[few] < found[many]:
        extent = f"{found[few]} ({names[few]!r}) to {found[many]} ({names[many]!r}) clips"
    if balance == "sampling":
        share, left = divmod(num_drawn, len(found))
        times = f"{share} or {share + 1} clips" if left else counted(share, "clip")
        return f"--balance sampling: an epoch has {times} of each of {len(found)} classes, which have {extent}"
    if balance == "loss" and found[few] == found[many]:
        return f"--balance loss changes nothing: the classes have {extent}"
    if balance == "loss":
        factors = []
        for head in range(len(table.heads)):
            weights = [weight for weight in class_weights(list(table.counts(head).values())) if weight]
            factors.append(f"{min(weights):.2g} to {max(weights):.2g} times")
        return f"--balance loss: a clip counts {' and '.join(factors)}, by its class; the classes have {extent}"
    if found[many] >= _UNEQUAL * found[few]:
        return f"the classes have {extent}: with --balance sampling or loss the rare ones count as much as the others"
    return ""


def _several_in_words(table: VideoTable, balance: str) -> str:
    counts = table.counts()
    few, many = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    extent = f"{counts[few]} ({few!r}) to {counts[many]} ({many!r}) of {counted(len(table), 'clip')}"
    if balance == "loss":
        weights = positive_weights(list(counts.values()), len(table))
        factors = f"{min(weights):.2g} to {max(weights):.2g} times"
        return f"--balance loss: a clip that has a class counts {factors} in it, by the class; classes have {extent}"
    if counts[many] >= _UNEQUAL * counts[few]:
        return f"the classes have {extent}: with --balance loss having a rare one counts as much as lacking it"
    return ""
