"""Where a localizer goes wrong: its errors by kind, its precision by length, as one HTML page.

Each detection above its class's threshold is one of these, by its best overlap with what is annotated in its video:

    right         its class, overlap of 0.5 or more, the segment not yet found by a better one
    duplicate     the same, but the segment is found already
    wrong class   overlap of 0.5 or more, but with another class only
    boundary      overlap of 0.1 to 0.5 with its class
    background    none of these

and an annotated segment that nothing right found is missed.
"""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tada.errors import DataError
from tada.files import write_whole
from tada.localization.annotations import SegmentTable
from tada.localization.evaluation import score
from tada.localization.metrics import DetectionScores
from tada.localization.segments import tiou

KINDS = ("right", "duplicate", "wrong class", "boundary", "background", "missed")
_FOUND, _NEAR = 0.5, 0.1  # overlaps
LENGTHS = (("short", 0.0, 1 / 3), ("middling", 1 / 3, 2 / 3), ("long", 2 / 3, 1.0))
"""Thirds of the annotated segments by their length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """How many detections of each class are of which kind."""

    counts: dict[str, Counter[str]]
    """By class, then by kind."""

    def total(self) -> Counter[str]:
        """Over all classes."""
        return sum(self.counts.values(), Counter())


def errors_by_kind(table: SegmentTable, results: Mapping[str, Any], thresholds: Mapping[str, float]) -> Errors:
    """Sort the detections in ActivityNet's form by kind.

    Args:
        thresholds: the score from which on detections of a class count; those of classes without one all do.
    """
    names = sorted({table.label_of(segment) for video in table.videos for segment in video.segments})
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for video in table.videos:
        truths = np.array([(s.start_seconds, s.end_seconds) for s in video.segments], np.float64).reshape(-1, 2)
        labels = np.array([table.label_of(s) for s in video.segments])
        is_found = np.zeros(len(truths), bool)
        found = [p for p in results["results"].get(video.name, []) if p["score"] >= thresholds.get(p["label"], 0.0)]
        for prediction in sorted(found, key=lambda p: -p["score"]):
            overlap = tiou(np.array([prediction["segment"]], np.float64), truths)[0]
            own = labels == prediction["label"]
            kind = _kind(overlap, own, is_found)
            if kind == "right":
                is_found[np.argmax(np.where(own & ~is_found, overlap, -1.0))] = True
            counts.setdefault(prediction["label"], Counter())[kind] += 1
        for label in labels[~is_found]:
            counts[str(label)]["missed"] += 1
    return Errors(counts=counts)


def _kind(overlap: Any, own: Any, is_found: Any) -> str:
    def best(which: Any) -> float:
        return float(overlap[which].max(initial=0.0))

    if best(own & ~is_found) >= _FOUND:
        return "right"
    if best(own) >= _FOUND:
        return "duplicate"
    if best(~own) >= _FOUND:
        return "wrong class"
    return "boundary" if best(own) >= _NEAR else "background"


def map_by_length(table: SegmentTable, results: dict[str, Any], tiou_thresholds: tuple[float, ...]) -> dict[str, float]:
    """Average mAP for each third of the segments, by their length; detections of another length do not count.

    A third in which no segment lies is left out.
    """
    lengths = np.array([segment.seconds for video in table.videos for segment in video.segments])
    found = {}
    for name, low, high in LENGTHS:
        shortest, longest = np.quantile(lengths, [low, high])

        def is_in(seconds: float, least: float = shortest, most: float = longest) -> bool:
            return least <= seconds <= most

        videos = tuple(replace(v, segments=tuple(s for s in v.segments if is_in(s.seconds))) for v in table.videos)
        if not any(video.segments for video in videos):
            continue
        chosen = {
            video: [p for p in predictions if is_in(p["segment"][1] - p["segment"][0])]
            for video, predictions in results["results"].items()
        }
        scores = score(replace(table, videos=videos), results | {"results": chosen}, tiou_thresholds)
        main = scores if isinstance(scores, DetectionScores) else scores.action
        found[f"{name} ({shortest:.1f} to {longest:.1f} s)"] = main.average
    return found


def write_report(
    file: Path,
    table: SegmentTable,
    results: dict[str, Any],
    scores: Mapping[str, DetectionScores],
    thresholds: Mapping[str, float],
    *,
    title: str,
    pictures: Mapping[str, Path] | None = None,
) -> None:
    """Write the page: scores, every class, errors by kind, precision by length, and pictures, all in one file.

    Args:
        scores: by what they are of; "action" is there always.
        pictures: PNG files by their captions.

    Raises:
        DataError: a picture that cannot be read.
    """
    first = next(iter(scores.values()))
    tious = first.tiou_thresholds
    parts = [f"<h1>{html.escape(title)}</h1>"]
    rows = [[task, *(f"{v:.4f}" for v in s.per_threshold), f"{s.average:.4f}"] for task, s in scores.items()]
    parts.append(_table("Mean average precision", ["", *(f"tIoU {t:g}" for t in tious), "average"], rows))
    by_length = map_by_length(table, results, tious)
    parts.append(_table("By length", ["segments", "average mAP"], [[k, f"{v:.4f}"] for k, v in by_length.items()]))
    errors = errors_by_kind(table, results, thresholds)
    average = scores["action"].class_average()
    counts = table.counts()[0] if len(table.label_sets) == 1 else {}
    rows = [["all", "", "", *(str(errors.total()[kind]) for kind in KINDS)]]
    for label, kinds in sorted(errors.counts.items()):
        precision = f"{average[label]:.4f}" if label in average else ""
        rows.append([label, str(counts.get(label, "")), precision, *(str(kinds[kind]) for kind in KINDS)])
    parts.append(_table("Every class, and errors by kind", ["class", "annotated", "average AP", *KINDS], rows))
    for caption, picture in (pictures or {}).items():
        try:
            data = base64.b64encode(picture.read_bytes()).decode()
        except OSError as error:
            raise DataError(f"{str(picture)!r} cannot be read: {error.strerror}; draw it again") from error
        parts.append(f'<h2>{html.escape(caption)}</h2><img src="data:image/png;base64,{data}">')
    page = "<!doctype html><meta charset='utf-8'>" + _STYLE + f"<title>{html.escape(title)}</title>" + "".join(parts)
    write_whole(file, page.encode())


_STYLE = (
    "<style>body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}td,th{padding:.2em .8em;"
    "border-bottom:1px solid #ccc;text-align:right}td:first-child,th:first-child{text-align:left}"
    "img{max-width:100%}</style>"
)


def _table(caption: str, header: list[str], rows: list[list[str]]) -> str:
    def cells(row: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    body = "".join(cells(row, "td") for row in rows)
    return f"<h2>{html.escape(caption)}</h2><table>{cells(header, 'th')}{body}</table>"
