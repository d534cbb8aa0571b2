"""EPIC-KITCHENS-100's metrics on subsets, and the JSON file for its action recognition challenge.

Source: epic-kitchens/C1-Action-Recognition (utils/metrics.py, utils/challenge.py), epic-kitchens-100-annotations.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from tada.errors import DataError, OptionError
from tada.recognition.results import Evaluation
from tada.system.files import write_whole

T = TypeVar("T")

_TOP_ACTIONS = 100
"""Number of a segment's most probable actions that are written for the challenge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subsets:
    """The subsets that are scored separately."""

    unseen_participants: frozenset[str]
    """Participants without videos in the training split."""
    tail_verbs: frozenset[int]
    """Rare verb classes."""
    tail_nouns: frozenset[int]
    """Rare noun classes."""


def read_subsets(annotations: Path) -> Subsets:
    """Read the subsets from the folder of the published annotations.

    Raises:
        DataError: one of the three files is missing, or differs from the published format.
    """
    return Subsets(
        unseen_participants=_read_column(
            annotations / "EPIC_100_unseen_participant_ids_validation.csv", "participant_id", str
        ),
        tail_verbs=_read_column(annotations / "EPIC_100_tail_verbs.csv", "verb", int),
        tail_nouns=_read_column(annotations / "EPIC_100_tail_nouns.csv", "noun", int),
    )


def _read_column(file: Path, name: str, kind: Callable[[str], T]) -> frozenset[T]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as rows:
            return frozenset(kind(row[name].strip()) for row in csv.DictReader(rows))
    except (OSError, UnicodeDecodeError, KeyError, ValueError, AttributeError, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read as a list of {name} ({type(error).__name__}: {error}); take it from "
            "epic-kitchens-100-annotations"
        ) from error


def challenge_metrics(test: Evaluation, subsets: Subsets) -> dict[str, float]:
    """The challenge's accuracies, by name.

    Top-1 and top-5 of verbs, nouns and actions over all segments; top-1 over segments of unseen participants; top-1
    over segments of tail verbs, of tail nouns, and, for actions, of either. A subset without segments is left out.

    Raises:
        OptionError: the test's heads are not verb and noun, or its true classes are not known.
    """
    _check_heads(test)
    if not test.known.all():
        raise OptionError("the true verbs and nouns are not known: this split is scored by the challenge's server")
    unseen = np.array([group in subsets.unseen_participants for group in test.groups])
    verbs = np.isin(test.targets[:, 0], list(subsets.tail_verbs))
    nouns = np.isin(test.targets[:, 1], list(subsets.tail_nouns))
    found = test.metrics()
    for name, chosen in (("unseen", (unseen, unseen, unseen)), ("tail", (verbs, nouns, verbs | nouns))):
        for what, part in zip(("verb", "noun", "action"), chosen, strict=True):
            if part.any():
                some = test.part(part)
                top1 = some.action_accuracy() if what == "action" else some.accuracy(head=int(what == "noun"))
                found[f"{name}_{what}_top1"] = top1
    return found


def write_challenge(
    test: Evaluation, file: Path, *, pretraining: int = 2, training_labels: int = 3, training_data: int = 3
) -> None:
    """Write the JSON of the challenge "action_recognition", version 0.2; it is submitted as test.json in a zip file.

    Args:
        pretraining: level of supervision SLS-PT, 0 to 5; 2: public images and videos.
        training_labels: level of the labels SLS-TL, 0 to 5; 3: the segments' times.
        training_data: level of the data SLS-TD, 0 to 5; 3: the training split, 4: the validation split too.

    Raises:
        OptionError: the test's heads are not verb and noun, or a level is out of range.
    """
    _check_heads(test)
    levels = {"sls_pt": pretraining, "sls_tl": training_labels, "sls_td": training_data}
    for name, level in levels.items():
        if not 0 <= level <= 5:
            raise OptionError(f"{name}={level}: a level of supervision is from 0 to 5")
    verbs, nouns = test.of_head(0), test.of_head(1)
    results = {}
    for i, segment in enumerate(test.ids):
        joint = test.joint_scores(i)
        best = np.argsort(-joint, axis=None, kind="stable")[:_TOP_ACTIONS]
        results[segment] = {
            "verb": {str(verb): float(score) for verb, score in enumerate(verbs[i])},
            "noun": {str(noun): float(score) for noun, score in enumerate(nouns[i])},
            "action": {f"{k // nouns.shape[1]},{k % nouns.shape[1]}": float(joint.flat[k]) for k in best},
        }
    whole = {"version": "0.2", "challenge": "action_recognition", **levels, "results": results}
    write_whole(file, (json.dumps(whole) + "\n").encode())


def _check_heads(test: Evaluation) -> None:
    names = [head.name for head in test.heads]
    if names != ["verb", "noun"]:
        raise OptionError(f"EPIC-KITCHENS counts verbs and nouns; this test is of {', '.join(names)}")
