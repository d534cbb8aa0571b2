"""Result of a test: scores of every video, accuracies, the report's files, and ensembles of several tests.

A report's folder holds evaluation.json (the numbers), scores.npz (all scores, from which metrics and ensembles can be
computed without running a model), scores.csv (the scores as a table), a confusion matrix of each head, and report.html
(``tada.recognition.report``). An ensemble is the mean of several tests' scores of the same videos: the paper's
TAda2D_En is the ensemble of the models with 8 and 16 frames.

Shapes: N videos, H heads (classifiers: one, or verb and noun), K classes of all heads, side by side.
"""

from __future__ import annotations

import csv
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from tada.data.csv_rows import guarded
from tada.data.multi_label import ClassScore, class_scores, mean_average_precision, positives_text
from tada.data.table import Head, Unreadable
from tada.data.views import Views
from tada.display.notebook import Bar, Table, results_html
from tada.display.page import PAGE
from tada.display.plots import save_confusion_matrix
from tada.errors import DataError, OptionError, counted
from tada.recognition.intervals import accuracy_interval, interval_text
from tada.system.array_files import read_npz
from tada.system.calls import checked
from tada.system.files import check_not_there, whole_file, write_whole, writing
from tada.video.sampling import ClipSpec

SCORES_FILE = "scores.npz"
CHALLENGE_FILE = "challenge_metrics.json"
"""EPIC-KITCHENS' challenge metrics, if they were requested."""
NUMBERS_FILE = "evaluation.json"
REPORT_FILES = (NUMBERS_FILE, SCORES_FILE, "scores.csv", PAGE, CHALLENGE_FILE, "confusion*.png", "confusion*.txt")
"""Patterns of the files of a report's folder."""
ActionsBy = Literal["means", "views"]
UNKNOWN = -1
"""The target of a video whose class is not known."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Evaluation:
    """The result of a test."""

    heads: tuple[Head, ...]
    """The classification heads, with their class names."""
    ids: tuple[str, ...]
    """The data set's identifiers of the N videos that were read, without repetition."""
    paths: tuple[str, ...]
    """Their files."""
    groups: tuple[str | None, ...]
    """The videos' groups, such as a recording session; in EPIC-KITCHENS, the participant."""
    targets: NDArray[np.int64]
    """[N, H], the true classes; UNKNOWN if the data set does not publish them. If a video may have several labels, [N,
    K]: 1 for its labels, 0 for the others."""
    scores: NDArray[np.float32]
    """[N, K], the mean probabilities over a video's views; the sum over a head is 1, unless videos have several
    labels."""
    unreadable: tuple[Unreadable, ...]
    """Videos of the test set that could not be read, and are not among the N."""
    views: tuple[Views, ...]
    """Views of each video; of an ensemble, those of each of its tests."""
    segments: tuple[tuple[float | None, float | None], ...] = ()
    """[N], start and end in seconds of the tested segment of each file, None for the file's own start or end; empty in
    files of older versions."""
    rates: tuple[float | None, ...] = ()
    """[N], the rate of folders of frames, in frames per second; None for video files; empty in files of older
    versions."""
    clip: ClipSpec | None = None
    """The network's clip specification (an ensemble's first network's); None in files of older versions."""
    thresholds: tuple[float, ...] = ()
    """If a video may have several labels: for each of the K classes, the probability from which on the video has it;
    else empty."""
    view_scores: NDArray[np.float32] | None = None
    """[N, V, K], the probabilities of each view, if they are kept; of an ensemble, as many of each test."""
    actions: ActionsBy = "means"
    """With several heads: whether a combination's probability is the product of the mean probabilities ("means"), or
    the mean of the views' products ("views", which needs ``view_scores``)."""

    def __str__(self) -> str:
        """The number of videos and the accuracies, in a line."""
        classes = " and ".join(f"{len(head.labels)} {head.name} classes" for head in self.heads)
        parts = [f"{counted(len(self.paths), 'video')} of {classes}"]
        parts += [f"{name} {value:.3f} ({self.worth(value)})" for name, value in self.shown_metrics().items()]
        if not self.known.any():
            parts.append("whose classes are not known")
        if self.unreadable:
            parts.append(f"{counted(len(self.unreadable), 'video')} unreadable")
        return "; ".join([parts[0], ", ".join(parts[1:])]) if parts[1:] else parts[0]

    def __repr__(self) -> str:
        return f"Evaluation({self})"

    def _repr_html_(self) -> str:
        """The HTML that a notebook shows."""
        rows = [(name, Bar(value), self.worth(value)) for name, value in self.shown_metrics().items()]
        tables: list[Table] = [(("", "", "of" if self.several else "interval"), rows)] if rows else []
        if self.several:
            found = sorted(self.class_scores(), key=lambda score: score.average_precision)
            cells = [(s.label, Bar(s.average_precision), str(s.videos)) for s in found if s.videos]
            tables.append((("class, the worst first", "average precision", "videos"), cells))
        elif self.known.any():
            for i, head in enumerate(self.heads):
                per_class = sorted(self.per_class(head=i).items(), key=lambda entry: entry[1][0])
                cells = [(label, Bar(top1), str(count)) for label, (top1, count) in per_class]
                tables.append(((f"{head.name}, the worst first", "top1", "videos"), cells))
        return results_html("Evaluation", tables, lead=str(self))

    def to_rows(self) -> list[dict[str, Any]]:
        """Flat rows, as for ``pandas.DataFrame``: id, path, group, label, predicted, score, correct of each video.

        For several heads: verb, verb_predicted, verb_score, verb_correct, noun, ... Unknown values are None. If a video
        may have several labels, they are separated by semicolons, each class has a score ("score wave"), and a row is
        correct only if all labels are.
        """
        rows: list[dict[str, Any]] = [
            {"id": name, "path": path, "group": group}
            for name, path, group in zip(self.ids, self.paths, self.groups, strict=True)
        ]
        if self.several:
            for row, targets, scores, said in zip(rows, self.targets, self.scores, self.said(), strict=True):
                row["label"], row["predicted"] = (
                    ";".join(self._chosen_labels(which == 1)) for which in (targets, said)
                )
                row |= {f"score {label}": score for label, score in zip(self.labels, scores.tolist(), strict=True)}
                row["correct"] = bool((targets == said).all())
            return rows
        for i, head in enumerate(self.heads):
            truth, more = ("label", "") if len(self.heads) == 1 else (head.name, f"{head.name}_")
            scores = self.of_head(i)
            for row, target, found, best in zip(
                rows, self.targets[:, i].tolist(), scores.argmax(1).tolist(), scores.max(1).tolist(), strict=True
            ):
                is_known = target != UNKNOWN
                row[truth] = head.labels[target] if is_known else None
                row[f"{more}predicted"], row[f"{more}score"] = head.labels[found], best
                row[f"{more}correct"] = found == target if is_known else None
        return rows

    @property
    def several(self) -> bool:
        """Whether a video may have several labels, or none."""
        return self.heads[0].several

    def said(self) -> NDArray[np.int64]:
        """Predicted labels if a video may have several, [N, K]: 1 where a class's score reaches its threshold."""
        return (self.scores >= np.array(self.thresholds, np.float64)).astype(np.int64)

    def _chosen_labels(self, chosen: NDArray[np.bool_]) -> list[str]:
        """Mask [K] -> names of the classes."""
        return [label for label, is_chosen in zip(self.labels, chosen.tolist(), strict=True) if is_chosen]

    def class_scores(self) -> list[ClassScore]:
        """Average precision, recall and more of each class, if a video may have several labels."""
        return class_scores(self.labels, self.scores, self.targets, self.thresholds)

    def mean_average_precision(self) -> float:
        """Mean over the classes of their average precision (mAP), if a video may have several labels."""
        return mean_average_precision(self.scores, self.targets)

    def worth(self, value: float) -> str:
        """The uncertainty of one of ``metrics``, in words: its interval; for a mAP, the videos of each class."""
        if self.several:
            return positives_text(self.targets.sum(0).tolist())
        return interval_text(value, int(self.known.sum()))

    def _check_one_label(self, what: str) -> None:
        if self.several:
            raise DataError(
                f"videos with several labels have no {what}: see mean_average_precision() and class_scores()"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names of a test of one head."""
        (head,) = self.heads
        return head.labels

    def of_head(self, head: int) -> NDArray[np.float32]:
        """The scores [N, classes] of one head."""
        ends = np.cumsum([len(head.labels) for head in self.heads])
        return np.split(self.scores, ends[:-1], axis=1)[head]

    @property
    def known(self) -> NDArray[np.bool_]:
        """[N], whether the video's true class is known."""
        known: NDArray[np.bool_] = (self.targets != UNKNOWN).all(1)
        return known

    def part(self, chosen: NDArray[np.bool_]) -> Evaluation:
        """The result for some of the videos; ``chosen`` is a mask [N]."""
        where = np.flatnonzero(chosen)
        return replace(
            self,
            ids=tuple(self.ids[i] for i in where),
            paths=tuple(self.paths[i] for i in where),
            groups=tuple(self.groups[i] for i in where),
            segments=tuple(self.segments[i] for i in where) if self.segments else (),
            rates=tuple(self.rates[i] for i in where) if self.rates else (),
            targets=self.targets[chosen],
            scores=self.scores[chosen],
            view_scores=None if self.view_scores is None else self.view_scores[chosen],
        )

    @checked(top_k=1, head=0)
    def accuracy(self, top_k: int = 1, *, head: int = 0) -> float:
        """Fraction of the videos whose class is among the ``top_k`` most probable; nan if no true class is known."""
        self._check_one_label("accuracy")
        known, size = self.known, len(self.heads[head].labels)
        if not known.any():
            return float("nan")
        scores, targets = self._pairs(head)
        return float(multiclass_accuracy(scores, targets, size, average="micro", top_k=min(top_k, size)))

    def action_accuracy(self, top_k: int = 1) -> float:
        """Fraction of the videos whose combination of classes (of all heads) is among the ``top_k`` most probable.

        The probabilities are those of ``joint_scores``.
        """
        return _within(self._joint_ranks(), top_k)

    def joint_scores(self, video: int) -> NDArray[np.float64]:
        """The probabilities of all combinations of the heads' classes, float64 [K_1, K_2, ...]; [verbs, nouns].

        The product of the classes' mean probabilities, or the mean of the views' products: see ``actions``.

        Args:
            video: from 0 to N - 1.
        """
        scores = self.scores[video][None]
        if self.actions == "views":
            assert self.view_scores is not None
            scores = self.view_scores[video]
        sizes = [len(head.labels) for head in self.heads]
        *others, last = np.split(scores.astype(np.float64), np.cumsum(sizes)[:-1], axis=1)  # each [V, K of the head]
        joint = np.ones((len(scores), 1))
        for own in others:
            joint = (joint[:, :, None] * own[:, None, :]).reshape(len(scores), -1)
        mean: NDArray[np.float64] = (joint.T @ last / len(scores)).reshape(sizes)  # sums over the views
        return mean

    def _joint_ranks(self) -> list[int]:
        """For each known video: how many combinations are more probable than the true one, plus half of the ties."""
        ranks = []
        for video in np.flatnonzero(self.known).tolist():
            joint = self.joint_scores(video)
            of_truth = joint[tuple(self.targets[video])]
            ranks.append(int((joint > of_truth).sum() + ((joint == of_truth).sum() - 1) // 2))
        return ranks

    def confusion(self, *, head: int = 0) -> NDArray[np.int64]:
        """Confusion matrix [classes, classes]: number of videos by true class (row) and predicted class (column)."""
        self._check_one_label("confusion matrix")
        scores, targets = self._pairs(head)
        counts: NDArray[np.int64] = multiclass_confusion_matrix(scores, targets, scores.shape[1]).numpy()
        return counts

    def _pairs(self, head: int) -> tuple[torch.Tensor, torch.Tensor]:
        known = self.known
        return torch.from_numpy(self.of_head(head)[known]), torch.from_numpy(self.targets[known, head])

    def per_class(self, *, head: int = 0) -> dict[str, tuple[float, int]]:
        """Top-1 accuracy and number of videos of each class with at least one video."""
        confusion = self.confusion(head=head)
        counts = confusion.sum(1)
        return {
            label: (float(confusion[i, i] / counts[i]), int(counts[i]))
            for i, label in enumerate(self.heads[head].labels)
            if counts[i]
        }

    def mean_class_accuracy(self, *, head: int = 0) -> float:
        """Mean of the classes' top-1 accuracies, equally weighted; nan if no true class is known."""
        accuracies = [top1 for top1, _ in self.per_class(head=head).values()] if self.known.any() else []
        return float(np.mean(accuracies)) if accuracies else float("nan")

    def metrics(self) -> dict[str, float]:
        """Top-1 and top-5 accuracies by name: top1, top5; for several heads verb_top1, ..., action_top1, ...

        If a video may have several labels: map, unless no video has a label.
        """
        if not self.known.any():
            return {}
        if self.several:
            return {"map": self.mean_average_precision()} if self.targets.any() else {}
        if len(self.heads) == 1:
            return {f"top{k}": self.accuracy(k) for k in (1, 5)}
        found = {f"{h.name}_top{k}": self.accuracy(k, head=i) for i, h in enumerate(self.heads) for k in (1, 5)}
        ranks = self._joint_ranks()
        return found | {f"action_top{k}": _within(ranks, k) for k in (1, 5)}

    def shown_metrics(self) -> dict[str, float]:
        """``metrics`` without top-5 accuracies of five classes or fewer, which are always 1."""
        sizes = {head.name: len(head.labels) for head in self.heads}
        if len(sizes) > 1:
            sizes["action"] = math.prod(sizes.values())
        else:
            sizes = dict.fromkeys(("",), *sizes.values())
        few = [f"{name}_top5".lstrip("_") for name, size in sizes.items() if size <= 5]
        return {name: value for name, value in self.metrics().items() if name not in few}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % confidence interval of each of ``metrics``; a mAP has none."""
        if self.several:
            return {}
        return {name: accuracy_interval(value, int(self.known.sum())) for name, value in self.metrics().items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: accuracies with intervals, of all and of each class; views; unreadable videos."""
        summary: dict[str, Any] = {
            **self.metrics(),
            "interval_95": self.intervals(),
            "views": " + ".join(map(str, self.views)),
            "videos_read": len(self.paths),
            "videos_unreadable": [failure._asdict() for failure in self.unreadable],
        }
        one = len(self.heads) == 1
        if not one:
            summary["actions"] = self.actions
        if self.several:
            summary["per_class"] = {
                score.label: {name: _nan_to_none(value) for name, value in asdict(score).items() if name != "label"}
                for score in self.class_scores()
            }
        elif self.known.any():
            for i, head in enumerate(self.heads):
                summary["mean_class_top1" if one else f"mean_{head.name}_top1"] = self.mean_class_accuracy(head=i)
                summary["per_class" if one else f"per_{head.name}"] = {
                    label: {"top1": top, "videos": n, "interval_95": accuracy_interval(top, n)}
                    for label, (top, n) in self.per_class(head=i).items()
                }
        return summary

    @checked(head=0)
    def plot(self, picture: str | PathLike[str], *, head: int = 0) -> None:
        """Draw the confusion matrix, as a PNG file.

        Raises:
            DataError: the true classes are not known, or a video may have several labels.
        """
        if not self.known.any():
            raise DataError("the true classes of these videos are not known, so there is no confusion matrix")
        save_confusion_matrix(self.confusion(head=head), self.heads[head].labels, Path(picture))

    @checked()
    def save(
        self,
        folder: str | PathLike[str],
        *,
        overwrite: bool = False,
        write_more: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """Write the report: scores.npz, scores.csv, confusion.png (one for each head), and evaluation.json.

        Each file is written atomically. evaluation.json is written last: a report without it was interrupted, and may
        be written again.

        Args:
            overwrite: replace an existing report.
            write_more: writes further files of the report into its folder, before evaluation.json.

        Raises:
            OptionError: a report exists, and ``overwrite`` is false.
            OutputError: the folder cannot be written.
        """
        folder = Path(folder)
        # scores.npz is written first: scores.csv without it is not from an interrupted report, but some other file.
        others = [] if (folder / SCORES_FILE).exists() else ["scores.csv"]
        check_not_there(folder, [NUMBERS_FILE, *others], overwrite=overwrite)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        before = [file for name in REPORT_FILES for file in folder.glob(name)]
        one = len(self.heads) == 1
        self._save_scores(folder / SCORES_FILE)
        with (
            whole_file(folder / "scores.csv") as part,
            part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file)
            names = ["label"] if one else [head.name for head in self.heads]
            columns = [label for head in self.heads for label in head.labels]
            writer.writerow(["path", *names, *map(guarded, columns)])
            for path, targets, scores in zip(self.paths, self.targets, self.scores, strict=True):
                truth = (
                    [guarded(";".join(self._chosen_labels(targets == 1)))]
                    if self.several
                    else [
                        "" if target == UNKNOWN else guarded(head.labels[target])
                        for head, target in zip(self.heads, targets, strict=True)
                    ]
                )
                writer.writerow([guarded(path), *truth, *(f"{score:.6f}" for score in scores)])
        with writing(folder):  # old files that the new report may lack, and the file that marks a report as complete
            for old in before:
                if old.suffix in (".png", ".txt", ".html") or old.name in (CHALLENGE_FILE, NUMBERS_FILE):
                    old.unlink(missing_ok=True)
        if self.known.any() and not self.several:
            for i, head in enumerate(self.heads):
                picture = "confusion.png" if one else f"confusion_{head.name}.png"
                save_confusion_matrix(self.confusion(head=i), head.labels, folder / picture)
        write_more(folder)
        write_whole(folder / NUMBERS_FILE, (json.dumps(self.as_dict(), indent=2) + "\n").encode())

    def _save_scores(self, file: Path) -> None:
        about = {
            "format": 1,
            "heads": [asdict(head) for head in self.heads],
            "ids": self.ids,
            "paths": self.paths,
            "groups": self.groups,
            "segments": self.segments,
            "rates": self.rates,
            "thresholds": self.thresholds,
            "actions": self.actions,
            "clip": None if self.clip is None else asdict(self.clip),
            "unreadable": self.unreadable,
            "views": [str(views) for views in self.views],
        }
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        arrays = {"scores": self.scores, "targets": self.targets, "about": text}
        if self.view_scores is not None:
            arrays["view_scores"] = self.view_scores
        with whole_file(file) as part, part.open("wb") as out:
            np.savez_compressed(out, **arrays)  # type: ignore[arg-type]  # numpy says nothing of names


def _within(ranks: Sequence[int], top_k: int) -> float:
    """Fraction of the ranks below ``top_k``; nan if there are none."""
    return float(np.mean([rank < top_k for rank in ranks])) if ranks else float("nan")


def _nan_to_none(value: object) -> object:
    """Replace nan by None for JSON, which has no nan."""
    return None if isinstance(value, float) and math.isnan(value) else value


def find_scores(path: Path) -> Path:
    """Find the file that ``load_scores`` reads.

    Raises:
        DataError: there is no such file.
    """
    places = [path, path / SCORES_FILE, path / "evaluation" / SCORES_FILE]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise DataError(f"{path} holds no {SCORES_FILE}: give the folder of a report, which `tada evaluate` writes")
    return file


def load_scores(path: Path) -> Evaluation:
    """Read the saved scores of a test.

    Args:
        path: scores.npz, the report's folder, or the folder of a run with the report in evaluation/.

    Raises:
        DataError: there are none, or the file is damaged.
    """
    file = find_scores(path)
    try:
        arrays = read_npz(file)
        about = json.loads(bytes(arrays["about"]))
        return Evaluation(
            heads=tuple(
                Head(name=head["name"], labels=tuple(head["labels"]), several=bool(head.get("several", False)))
                for head in about["heads"]
            ),
            ids=tuple(about["ids"]),
            paths=tuple(about["paths"]),
            groups=tuple(about["groups"]),
            segments=tuple((start, end) for start, end in about.get("segments", ())),
            rates=tuple(about.get("rates", ())),
            clip=ClipSpec(**about["clip"]) if about.get("clip") else None,
            thresholds=tuple(about.get("thresholds", ())),
            targets=arrays["targets"],
            scores=arrays["scores"],
            view_scores=arrays.get("view_scores"),
            actions=about.get("actions", "views" if "view_scores" in arrays else "means"),
            unreadable=tuple(Unreadable(*failure) for failure in about["unreadable"]),
            views=tuple(Views.parse(views) for views in about["views"]),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is damaged, or was not written by tada ({error}): evaluate again") from error


def counted_by(test: Evaluation, actions: ActionsBy) -> Evaluation:
    """The test with its actions counted by the product of mean probabilities, or by the mean of the views' products.

    Raises:
        OptionError: the test has one head, and ``actions`` is "views".
        DataError: the scores of single views are needed, and not there.
    """
    if len(test.heads) == 1 and actions == "views":
        raise one_head_error(f"these scores have one head ({test.heads[0].name})")
    views = test.view_scores if actions == "means" else _kept_views(test)
    if actions == "views" and views is None:
        raise DataError(
            "these scores are means over the views of a video: to count actions by the views' products, test again "
            "(each model of an ensemble) with --actions views"
        )
    return replace(test, actions=actions, view_scores=views)


def one_head_error(what: str) -> OptionError:
    """The error of ``--actions views`` for a model with one head."""
    return OptionError(
        f"--actions views: {what}, and actions are combinations of two, verb and noun: leave --actions away"
    )


def _kept_views(test: Evaluation) -> NDArray[np.float32] | None:
    """The scores of each view, [N, V, K], of a test with several heads, if they are there; one view is the mean."""
    is_one_view = test.views == (Views(),) and len(test.heads) > 1
    return test.scores[:, None] if test.view_scores is None and is_one_view else test.view_scores


def ensemble(tests: Sequence[Evaluation]) -> Evaluation:
    """The mean of the scores of several tests on the same videos, in the order of the first.

    If all tests have kept the scores of their views, so does the ensemble: views of tests with fewer are repeated, so
    that each test has the same weight. Its actions are counted by them if those of all tests with several views are.

    Raises:
        DataError: the tests have different videos, classes or true labels.
    """
    if len(tests) == 1:
        return tests[0]
    first = tests[0]
    scores, view_scores = [first.scores], [_kept_views(first)]
    for number, test in enumerate(tests[1:], start=2):
        if test.heads != first.heads:
            raise DataError(f"the scores of test {number} are of other classes than those of the first")
        if test.ids == first.ids and np.array_equal(test.scores, first.scores):
            raise DataError(f"the scores of test {number} are the first's: give tests of other models or views")
        lacks = sorted(set(first.ids) ^ set(test.ids))
        if lacks:
            raise DataError(
                f"test {number} and the first have not the same videos: {len(lacks)} are in one only, such as "
                f"{lacks[0]!r}; evaluate both on all of them"
            )
        place = {name: i for i, name in enumerate(test.ids)}
        order = [place[name] for name in first.ids]
        if not np.array_equal(test.targets[order], first.targets):
            raise DataError(f"test {number} has other true classes than the first for some videos: evaluate it again")
        scores.append(test.scores[order])
        views = _kept_views(test)
        view_scores.append(None if views is None else views[order])
    kept = [views for views in view_scores if views is not None]
    have_views = len(kept) == len(tests)
    most = math.lcm(*(views.shape[1] for views in kept))
    ways = {test.actions for test in tests if test.views != (Views(),)} or {test.actions for test in tests}
    return replace(
        first,
        scores=np.mean(scores, axis=0, dtype=np.float32),
        view_scores=np.concatenate([np.repeat(views, most // views.shape[1], axis=1) for views in kept], axis=1)
        if have_views
        else None,
        actions="views" if have_views and ways == {"views"} else "means",
        views=tuple(v for test in tests for v in test.views),
    )
