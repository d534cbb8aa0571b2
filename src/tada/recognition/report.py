"""HTML report of a test: accuracies, every class, the confusion matrix and the worst mistakes.

Shapes: F frames of a filmstrip, K classes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tada.display.page import PAGE, Picture, Section, Table, write_page
from tada.errors import OptionError, VideoError, counted
from tada.recognition.intervals import accuracy_interval
from tada.recognition.results import UNKNOWN, Evaluation
from tada.video.frames import open_footage
from tada.video.sampling import ClipSpec, clip_in_words, segment_frames, view_indices
from tada.video.transforms import shrink_to

_MOST_CONFUSED = 20  # rows of the table of confused classes
_MISTAKES = 12
_STRIP_FRAMES = 8
_STRIP_PIXELS = 112  # short side of a filmstrip's frames

_TOP1, _TOP5 = (
    "top-1 is the fraction of videos whose class is the most probable one",
    ", top-5 the fraction whose class is among the five most probable",
)
_INTERVAL = (
    ". The 95 % interval shows the uncertainty due to the number of videos: with 95 % confidence, it contains the "
    "accuracy on very many videos of the same kind."
)


_SEVERAL_TERMS = (
    "A video may have several labels, or none. The average precision of a class is the mean of the precisions at each "
    "video that has it, in the order of falling scores; mAP is its mean over the classes. Numbers of classes with a "
    "handful of videos are uncertain, and so is a mAP of such classes. Precision is the fraction of the videos above "
    "the class's threshold that have the class, recall the fraction of the videos with the class that are above it."
)


def write_test_page(folder: Path, result: Evaluation, *, title: str, command: str = "") -> None:
    """Write the HTML page of a test into its report's folder, after the other files.

    Args:
        command: the typed command that made the report.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = [["views of a video", " + ".join(map(str, result.views))]]
    if result.clip is not None:
        rows.append(["clip", clip_in_words(result.clip)])
    how = Section(heading="How it was tested", tables=[Table(rows=rows)], lines=[command] if command else [])
    write_page(folder / PAGE, title, [*report_sections(folder, result), how], lead=lead(result))


def lead(result: Evaluation) -> str:
    """The line with the result below the page's title."""
    known = int(result.known.sum())
    if not known:
        return f"{counted(len(result.paths), 'video')}, of classes that are not known."
    numbers = ", ".join(f"{_metric(name)} {value:.3f}" for name, value in result.shown_metrics().items())
    return f"{numbers}, of {counted(known, 'video')} that the network was not trained on."


def _metric(name: str) -> str:
    """The usual name of a metric: "verb top-1" for verb_top1."""
    return "mAP" if name == "map" else name.replace("_", " ").replace("top", "top-")


def report_sections(folder: Path, result: Evaluation) -> list[Section]:
    """The page's sections with the numbers and pictures of a test."""
    if not result.known.any():
        return []
    if result.several:
        return several_sections(result)
    known = int(result.known.sum())
    rows = []
    metrics = result.shown_metrics()
    for name, value in metrics.items():
        low, high = accuracy_interval(value, known)
        rows.append([_metric(name), f"{value:.4f}", f"{low:.3f} to {high:.3f}", str(known)])
    terms = _TOP1 + (_TOP5 if any(name.endswith("top5") for name in metrics) else "") + _INTERVAL
    sections = [
        Section(heading="Result", texts=[terms], tables=[Table(header=["", "value", "95 %", "videos"], rows=rows)]),
        *_unreadable_section(result),
    ]
    for i, head in enumerate(result.heads):
        of = "" if len(result.heads) == 1 else f" of {head.name}"
        sections.append(Section(heading=f"Every class{of}", tables=[_class_table(result, i)]))
        picture = folder / ("confusion.png" if not of else f"confusion_{head.name}.png")
        confused = _confused_table(result, i)
        sections.append(
            Section(
                heading=f"Confused classes{of}",
                texts=[] if confused.rows else ["No class was mistaken for another."],
                pictures=[Picture.of_file(picture, "Rows are true classes, columns predicted ones.")]
                if picture.exists()
                else [],
                tables=[confused] if confused.rows else [],
            )
        )
    strips = _mistakes(result)
    if strips:
        text = (
            "The wrong predictions with the largest margin over the true class, worst first, as the frames of the clip."
        )
        sections.append(Section(heading="Worst mistakes", texts=[text], pictures=strips))
    return sections


def _unreadable_section(result: Evaluation) -> list[Section]:
    rows = [[failure.path, failure.message] for failure in result.unreadable]
    return [Section(heading="Videos that could not be read", tables=[Table(rows=rows)])] if rows else []


def several_sections(result: Evaluation) -> list[Section]:
    """As ``report_sections``, for tests where a video may have several labels, or none."""
    numbers = [[_metric(name), f"{value:.4f}", result.worth(value)] for name, value in result.metrics().items()]
    sections = [
        Section(heading="Result", texts=[_SEVERAL_TERMS], tables=[Table(header=["", "value", "of"], rows=numbers)]),
        *_unreadable_section(result),
    ]
    rows = []
    for row in result.class_scores():
        parts = (row.average_precision, row.precision, row.recall, row.threshold)
        shown = ["-" if math.isnan(part) else f"{part:.3f}" for part in parts]
        rows.append([row.label, str(row.videos), str(row.said), *shown])
    header = ["class", "videos", "predicted", "average precision", "precision", "recall", "threshold"]
    sections.append(Section(heading="Every class", tables=[Table(header=header, rows=rows)]))
    found: list[tuple[float, int, str]] = []
    for i, k in zip(*np.nonzero(result.said() != result.targets), strict=True):
        score, least, label = float(result.scores[i, k]), result.thresholds[k], result.labels[k]
        has = bool(result.targets[i, k])
        text = f"{label} {'was not found' if has else 'was said'} ({score:.2f}, threshold {least:.2f})"
        found.append((abs(score - least), int(i), text))
    strips = _strips(result, found)
    if strips:
        text = "Wrongly predicted or missed labels, with the scores farthest from their thresholds first."
        sections.append(Section(heading="Worst mistakes", texts=[text], pictures=strips))
    return sections


def _class_table(result: Evaluation, head: int) -> Table:
    confusion, labels = result.confusion(head=head), result.heads[head].labels
    found = result.per_class(head=head)
    rows = []
    for i, label in enumerate(labels):
        if label not in found:
            continue
        top1, count = found[label]
        low, high = accuracy_interval(top1, count)
        wrong = np.where(np.arange(len(labels)) == i, 0, confusion[i])
        other = labels[int(wrong.argmax())] if wrong.any() else ""
        rows.append([label, str(count), f"{top1:.3f}", f"{low:.2f} to {high:.2f}", other])
    return Table(header=["class", "videos", "top-1", "95 %", "most often taken for"], rows=rows)


def _confused_table(result: Evaluation, head: int) -> Table:
    """A table of the pairs of classes that are confused most often."""
    confusion, labels = result.confusion(head=head), result.heads[head].labels
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSED]
    pairs = [divmod(int(place), len(labels)) for place in order]
    rows = [[labels[true], labels[said], str(wrong[true, said])] for true, said in pairs if wrong[true, said]]
    return Table(header=["class", "taken for", "videos"], rows=rows)


def _mistakes(result: Evaluation) -> list[Picture]:
    """Filmstrips of the wrong predictions of any head with the largest margin over the true class."""
    found: list[tuple[float, int, str]] = []
    for h, head in enumerate(result.heads):
        scores, targets = result.of_head(h), result.targets[:, h]
        said = scores.argmax(1)
        for i in map(int, np.flatnonzero((said != targets) & (targets != UNKNOWN))):
            right, wrong = float(scores[i, targets[i]]), float(scores[i, said[i]])
            text = f"{head.labels[targets[i]]} ({right:.2f}) was taken for {head.labels[said[i]]} ({wrong:.2f})"
            found.append((wrong - right, i, text))
    return _strips(result, found)


def _strips(result: Evaluation, found: Sequence[tuple[float, int, str]]) -> list[Picture]:
    """Filmstrips of the largest mistakes; ``found`` has (size, index of the video, caption) of each."""
    strips: list[Picture] = []
    for _, i, text in sorted(found, key=lambda mistake: -mistake[0])[:_MISTAKES]:
        segment = result.segments[i] if result.segments else (None, None)
        try:
            frames = _read_strip(result.paths[i], result.rates[i] if result.rates else None, segment, result.clip)
        except (VideoError, OptionError):
            continue  # the video was removed after the test: leave its strip out
        strips.append(Picture(data=filmstrip(frames), caption=f"{text}: {_segment_in_words(result.paths[i], segment)}"))
    return strips


def _segment_in_words(path: str, segment: tuple[float | None, float | None]) -> str:
    start, end = segment
    if start is None and end is None:
        return path
    return f"{path}, {start or 0:.2f} s to {'its end' if end is None else f'{end:.2f} s'}"


def _read_strip(
    path: str, fps: float | None, segment: tuple[float | None, float | None], clip: ClipSpec | None
) -> list[NDArray[np.uint8]]:
    """F frames [H, W, 3], evenly spaced over the video's center clip, or over the segment if ``clip`` is None."""
    with open_footage(path, fps=fps) as reader:
        own = segment_frames(reader.times_seconds, *segment)
        times = reader.times_seconds[own.start : own.stop]
        indices: Sequence[int] = range(len(own))
        if clip is not None:
            indices = view_indices(clip, times, 0, 1, container_fps=reader.container_fps)
        chosen = sorted({own[index] for index in indices})
        shown = [chosen[i] for i in sorted({round(i) for i in np.linspace(0, len(chosen) - 1, _STRIP_FRAMES)})]
        return list(reader.frames(shown, shrink=partial(shrink_to, short_side=_STRIP_PIXELS)))


def filmstrip(frames: Sequence[NDArray[np.uint8]]) -> bytes:
    """A JPEG file of frames [H, W, 3] of the same size, beside each other."""
    from PIL import Image

    gap = np.full((frames[0].shape[0], 3, 3), 255, np.uint8)
    parts = [part for frame in frames for part in (frame, gap)][:-1]
    out = io.BytesIO()
    Image.fromarray(np.concatenate(parts, axis=1)).save(out, "JPEG", quality=85)
    return out.getvalue()
