"""Testing a trained recogniser: every video once, all its views, and what came out in numbers.

The scores of a video are the mean of its views' softmax scores, as in the papers' protocols. A video that cannot be
read is never left out in silence: it is listed, and the report says how many were meant and how many were read.

Shapes: N videos, V views, K classes.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from tada.data.annotations import read_dataset
from tada.data.clips import TestVideos, Unreadable, ViewBatch, Views, test_loader
from tada.data.table import ACTION, Head, VideoTable
from tada.errors import DataError
from tada.plots import save_confusion_matrix
from tada.predict import Recognizer, load


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The result of a test."""

    labels: tuple[str, ...]
    """Class names."""
    paths: tuple[str, ...]
    """The N videos that were read."""
    targets: NDArray[np.int64]
    """[N], the true classes."""
    scores: NDArray[np.float32]
    """[N, K], the mean probabilities over a video's views."""
    unreadable: tuple[Unreadable, ...]
    """Videos of the test set that are not among the N."""
    views: Views
    """Views of each video."""

    def accuracy(self, top_k: int = 1) -> float:
        """Part of the videos read whose class is among the ``top_k`` most probable."""
        k = min(top_k, len(self.labels))
        scores, targets = torch.from_numpy(self.scores), torch.from_numpy(self.targets)
        return float(multiclass_accuracy(scores, targets, len(self.labels), average="micro", top_k=k))

    def confusion(self) -> NDArray[np.int64]:
        """[K, K]: videos of each class (row) that were taken for each class (column)."""
        scores, targets = torch.from_numpy(self.scores), torch.from_numpy(self.targets)
        counts: NDArray[np.int64] = multiclass_confusion_matrix(scores, targets, len(self.labels)).numpy()
        return counts

    def per_class(self) -> dict[str, tuple[float, int]]:
        """Top-1 accuracy and number of videos of each class that has some."""
        confusion = self.confusion()
        counts = confusion.sum(1)
        return {
            label: (float(confusion[i, i] / counts[i]), int(counts[i]))
            for i, label in enumerate(self.labels)
            if counts[i]
        }

    def save(self, folder: Path) -> None:
        """Write evaluation.json, scores.csv and confusion.png."""
        folder.mkdir(parents=True, exist_ok=True)
        save_confusion_matrix(self.confusion(), self.labels, folder / "confusion.png")
        with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", *self.labels])
            for path, target, scores in zip(self.paths, self.targets, self.scores, strict=True):
                writer.writerow([path, self.labels[target], *(f"{score:.6f}" for score in scores)])
        summary = {
            "top1": self.accuracy(1),
            "top5": self.accuracy(5),
            "views": str(self.views),
            "videos_read": len(self.paths),
            "videos_unreadable": [failure._asdict() for failure in self.unreadable],
            "per_class": {label: {"top1": top1, "videos": count} for label, (top1, count) in self.per_class().items()},
        }
        (folder / "evaluation.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def evaluate(
    run: Path,
    data: Path | VideoTable,
    *,
    root: Path | None = None,
    split: str | None = None,
    views: Views | None = None,
    num_workers: int | None = None,
    clips_per_batch: int = 32,
    device: str | None = None,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Test the model of a run.

    Args:
        data: what ``read_dataset`` takes, or a table it has read.
        split: the part of the data to test on. By default "test" where there is one, else "val", else all that the
            run was not trained on.
        views: views of each video; by default one, in the middle.
        clips_per_batch: clips that pass the model at a time.

    Raises:
        DataError: the data has classes the model does not know, or videos it was trained on.
        CheckpointError: the run holds no model, or a damaged one.
    """
    recognizer = load(run, device=device)
    table = data if isinstance(data, VideoTable) else read_dataset(data, root=root)
    table = _choose_videos(table, run, split, say)
    if table.missing:
        say(f"{table.kind}: {table.coverage()} are there; scores are of these")
    table = table.numbered_as([Head(name=ACTION, labels=recognizer.labels)])
    videos = TestVideos(table, recognizer.clip, Views() if views is None else views)
    num_workers = min(os.cpu_count() or 1, 8) if num_workers is None else num_workers
    loader = test_loader(videos, clips_per_batch=clips_per_batch, num_workers=num_workers)
    indices, scores, unreadable = [], [], []
    for batch in track(loader, "testing", transient=True, disable=not show_progress):
        indices += batch.indices.tolist()
        scores += _video_scores(recognizer, batch)
        unreadable += batch.unreadable
    if not indices:
        raise DataError(f"none of the {len(table.videos)} videos could be read; the first: {unreadable[0].message}")
    return Evaluation(
        labels=table.labels,
        paths=tuple(table.videos[i].path for i in indices),
        targets=np.array([table.videos[i].label for i in indices]),
        scores=np.stack(scores),
        unreadable=tuple(unreadable),
        views=videos.views,
    )


def _video_scores(recognizer: Recognizer, batch: ViewBatch) -> list[NDArray[np.float32]]:
    """The mean scores [K] of each video of a batch."""
    if not len(batch.indices):
        return []
    n, v = batch.views.shape[:2]
    return list(recognizer.scores(batch.views.flatten(0, 1)).view(n, v, -1).mean(1).numpy())


def _choose_videos(table: VideoTable, run: Path, split: str | None, say: Callable[[str], None]) -> VideoTable:
    """The videos to test on: never one that the run was trained on."""
    splits = _splits_of_run(run)
    if split is None and table.splits:
        split = "test" if "test" in table.splits else "val" if "val" in table.splits else None
    if split is not None and table.splits:
        table = table.of_split(split)
        say(f"testing on the data's {split} split")
    else:
        marks = {splits.get(video.path) for video in table.videos}
        if None not in marks:
            # The very videos of the run, which has held some of them out.
            split = split or "val"
            table = replace(table, videos=tuple(v for v in table.videos if splits[v.path] == split))
            say(f"testing on the {len(table.videos)} videos that {run} held out for validation")
    if not table.videos:
        raise DataError(f"{run} has held out no videos of this data as its {split} split")
    trained_on = [video for video in table.videos if splits.get(video.path) == "train"]
    if trained_on:
        raise DataError(
            f"{len(trained_on)} of {len(table.videos)} test videos were trained on, the first: "
            f"{trained_on[0].path} ({trained_on[0].source}); choose a split with --split, or leave them out"
        )
    return table


def _splits_of_run(run: Path) -> dict[str, str]:
    """The part each of the run's own videos was in, by path."""
    path = run / "videos.csv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["path"]: row["split"] for row in csv.DictReader(file)}
