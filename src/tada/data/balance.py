"""Rare classes: an order of clips that shows each class as often, or losses that let each count as much."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tada.data.table import VideoTable
from tada.errors import counted

_UNEQUAL = 5  # times as many clips, from which on it is worth a line


def classes_of(table: VideoTable) -> list[tuple[int, ...]]:
    """The class of each video: of several heads, what they say together."""
    return [video.labels for video in table.videos]


def balanced_order(classes: Sequence[tuple[int, ...]], num_drawn: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw so many samples, of each class as many as of the others or one more, in an order that the generator decides.

    Of a class with fewer samples all are drawn before one is drawn again: the i-th time as sample + i * number of all
    samples, for which ``TrainingClips`` draws another crop. Of one with more, others are drawn each time.

    Args:
        classes: of each sample.
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
    """For each class of so many clips the weight of a clip's loss: all classes count the same, and the mean clip 1.

    A class without clips has 0.
    """
    present = sum(count > 0 for count in counts)
    return [sum(counts) / (present * count) if count else 0.0 for count in counts]


def positive_weights(counts: Sequence[int], num_clips: int) -> list[float]:
    """For each class the weight of clips that have it among its labels: they count as much as those that lack it.

    A class that no clip has, or all have, has 1.
    """
    return [(num_clips - count) / count if 0 < count < num_clips else 1.0 for count in counts]


def balance_in_words(table: VideoTable, balance: str, num_drawn: int) -> str:
    """What is done about classes of different sizes, in a line; or that something may be. Empty where nothing need be.

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
