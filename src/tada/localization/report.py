"""Report of a localizer's evaluation as one HTML page: mAP, mAP by length, errors by kind, timelines.

Each detection above its class's threshold is of one kind, by its best tIoU with the annotated segments of its video:

    right         tIoU of 0.5 or more with a segment of its class that no better detection has found
    duplicate     the same, but a better detection has found the segment
    wrong class   tIoU of 0.5 or more with segments of other classes only
    boundary      tIoU of 0.1 to 0.5 with a segment of its class
    background    none of these

An annotated segment that no right detection has found is missed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tada.display.page import Picture, Section, Table, write_page
from tada.display.plots import save_bars, save_stacks, save_timeline
from tada.errors import DataError, counted
from tada.localization.annotations.table import SegmentTable
from tada.localization.detectors.nms import tiou
from tada.localization.evaluation import score
from tada.localization.metrics import DetectionScores
from tada.system.files import scratch_folder

KINDS = ("right", "duplicate", "wrong class", "boundary", "background", "missed")
_FOUND, _NEAR = 0.5, 0.1  # tIoU
LENGTHS = (("short", 0.0, 1 / 3), ("middling", 1 / 3, 2 / 3), ("long", 2 / 3, 1.0))
"""Thirds of the annotated segments by their length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """Numbers of detections by class and kind."""

    counts: dict[str, Counter[str]]
    """Numbers by class, then by kind."""

    def total(self) -> Counter[str]:
        """Numbers by kind, over all classes."""
        return sum(self.counts.values(), Counter())


def errors_by_kind(table: SegmentTable, results: Mapping[str, Any], thresholds: Mapping[str, float]) -> Errors:
    """Count detections, in ActivityNet's JSON form, by kind.

    Args:
        thresholds: lowest score of a counted detection, by class; without one, all detections of the class count.
    """
    names = sorted({table.label_of(segment) for video in table.videos for segment in video.segments})
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for video in table.videos:
        truths = np.array([(s.start_seconds, s.end_seconds) for s in video.segments], np.float64).reshape(-1, 2)
        labels = np.array([table.label_of(s) for s in video.segments])
        is_found = np.zeros(len(truths), bool)
        found = _select_shown(results, thresholds, video.name)
        for prediction in sorted(found, key=lambda p: -p["score"]):
            overlap = tiou(np.array([prediction["segment"]], np.float64), truths)[0]
            own = labels == prediction["label"]
            kind = _kind_of_detection(overlap, own, is_found)
            if kind == "right":
                is_found[np.argmax(np.where(own & ~is_found, overlap, -1.0))] = True
            counts.setdefault(prediction["label"], Counter())[kind] += 1
        for label in labels[~is_found]:
            counts[str(label)]["missed"] += 1
    return Errors(counts=counts)


def _kind_of_detection(overlap: Any, own: Any, is_found: Any) -> str:
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
    """Average mAP for each third of the segments by length; detections of other lengths are ignored.

    A third without segments is left out.
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
    command: str = "",
) -> None:
    """Write the HTML page of a report, in one file.

    Args:
        scores: by task; always with "action".
        pictures: PNG files by caption.
        command: the command that made the report.

    Raises:
        DataError: a picture that cannot be read.
        OutputError: the file cannot be written.
    """
    sections = report_sections(table, results, scores, thresholds)
    for caption, picture in (pictures or {}).items():
        try:
            sections.append(Section(heading=caption, pictures=[Picture.of_file(picture, picture.name)]))
        except OSError as error:
            raise DataError(f"{str(picture)!r} cannot be read: {error.strerror}; draw it again") from error
    if command:
        sections.append(Section(heading="How it was made", lines=[command]))
    write_page(file, title, sections, lead=lead(scores, table))


def lead(scores: Mapping[str, DetectionScores], table: SegmentTable) -> str:
    """The result in one line."""
    numbers = ", ".join(f"{scores[task].average:.3f}{'' if len(scores) == 1 else f' ({task})'}" for task in scores)
    segments = counted(sum(len(video.segments) for video in table.videos), "segment")
    videos = counted(len(table.videos), "video")
    return f"Average mAP {numbers}: {segments} in {videos} that the localizer was not trained on."


def report_sections(
    table: SegmentTable,
    results: dict[str, Any],
    scores: Mapping[str, DetectionScores],
    thresholds: Mapping[str, float],
) -> list[Section]:
    """Sections of the report: tables and figures. Arguments are those of ``write_report``."""
    tious = next(iter(scores.values())).tiou_thresholds
    rows = [[task, *(f"{v:.4f}" for v in s.per_threshold), f"{s.average:.4f}"] for task, s in scores.items()]
    by_threshold = Table(header=["", *(f"tIoU {t:g}" for t in tious), "average"], rows=rows)
    by_length = map_by_length(table, results, tious)
    average = scores["action"].class_average()
    annotated = Counter(table.label_of(segment) for video in table.videos for segment in video.segments)
    best_first = dict(sorted(average.items(), key=lambda entry: -entry[1]))
    return [
        Section(heading="Mean average precision", texts=[_PRECISION], tables=[by_threshold]),
        Section(
            heading="By length",
            texts=["Thirds of the annotated segments by their length; detections of other lengths do not count."],
            pictures=[_draw_picture("Average mAP by length.", partial(save_bars, by_length, label="average mAP"))],
        ),
        Section(
            heading="Every class",
            pictures=[
                _draw_picture(
                    "Average AP of each class, best first; behind its name the number of annotated segments.",
                    partial(save_bars, best_first, label="average AP", counts=annotated),
                )
            ],
        ),
        _errors_section(errors_by_kind(table, results, thresholds), average, annotated),
        Section(
            heading="Timelines",
            texts=[
                "What was annotated and what was found, above each class's threshold: the darker, the surer. The "
                "videos with the most errors come first."
            ],
            pictures=[
                _draw_picture(f"{name}: errors: {wrong}", partial(_draw_timeline, table, results, thresholds, name))
                for name, wrong in _find_worst_videos(table, results, thresholds)
            ],
        ),
    ]


def _errors_section(errors: Errors, average: Mapping[str, float], annotated: Mapping[str, int]) -> Section:
    total = errors.total()
    rows = [["all", str(sum(annotated.values())), "", *(str(total[kind]) for kind in KINDS)]]
    for label, kinds in sorted(errors.counts.items()):
        precision = f"{average[label]:.4f}" if label in average else ""
        rows.append([label, str(annotated.get(label, 0)), precision, *(str(kinds[kind]) for kind in KINDS)])
    draw = partial(save_stacks, dict(sorted(errors.counts.items())), KINDS, label="detections, and missed segments")
    caption = "What the detections above their class's threshold are, and the segments that none found."
    return Section(
        heading="Errors by kind",
        texts=[_KINDS_IN_WORDS],
        tables=[Table(header=["class", "annotated", "average AP", *KINDS], rows=rows)],
        pictures=[_draw_picture(caption, draw)],
    )


def _draw_picture(caption: str, draw: Callable[[Path], None]) -> Picture:
    """Have ``draw`` write a PNG file, and read it."""
    with scratch_folder() as folder:
        draw(folder / "picture.png")
        return Picture.of_file(folder / "picture.png", caption)


_PRECISION = (
    "The temporal intersection over union (tIoU) of two segments is the time they share, divided by the time that "
    "either covers. At a threshold of tIoU, a detection is right if it reaches that overlap with a segment of its "
    "class which no surer one has found. Average precision (AP) is the area under the curve of precision over recall "
    "as detections are taken in from the surest on; mAP is its mean over the classes, and the average that over the "
    "thresholds."
)
_KINDS_IN_WORDS = (
    f"right: its class, a tIoU of {_FOUND:g} or more with a segment that no surer one has found. duplicate: the same, "
    f"but the segment is found already. wrong class: a tIoU of {_FOUND:g} or more, but with another class only. "
    f"boundary: {_NEAR:g} to {_FOUND:g} with its class. background: none of these. missed: an annotated segment that "
    "nothing right found."
)
_TIMELINES = 10


def _select_shown(results: Mapping[str, Any], thresholds: Mapping[str, float], name: str) -> list[dict[str, Any]]:
    """The detections of a video that reach their class's threshold."""
    return [p for p in results["results"].get(name, []) if p["score"] >= thresholds.get(p["label"], 0.0)]


def _find_worst_videos(
    table: SegmentTable, results: Mapping[str, Any], thresholds: Mapping[str, float]
) -> list[tuple[str, int]]:
    """The videos with the most errors, and their numbers of errors, most first."""
    counts = []
    for video in table.videos:
        of_video = errors_by_kind(replace(table, videos=(video,)), results, thresholds).total()
        counts.append((video.name, of_video.total() - of_video["right"]))
    return sorted(counts, key=lambda entry: -entry[1])[:_TIMELINES]


def _draw_timeline(
    table: SegmentTable, results: Mapping[str, Any], thresholds: Mapping[str, float], name: str, file: Path
) -> None:
    video = next(video for video in table.videos if video.name == name)
    found = _select_shown(results, thresholds, name)
    annotated = [(s.start_seconds, s.end_seconds, table.label_of(s), 1.0) for s in video.segments]
    detected = [(*p["segment"], p["label"], min(max(p["score"], 0.0), 1.0)) for p in found]
    last = max((end for _, end, _, _ in (*annotated, *detected)), default=1.0)
    save_timeline([], {"annotated": annotated, "found": detected}, video.duration_seconds or last, file)
