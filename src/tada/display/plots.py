"""Plots of results, as PNG files. Matplotlib is imported when the first is drawn.

Class names that no font of the machine can draw are drawn as numbers; NAME.classes.txt beside NAME.png lists them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tada.display.fonts import lettering, quiet_fonts, title_lettering
from tada.system.files import check_ending, whole_file, write_whole, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_confusion_matrix(confusion: NDArray[np.int64], labels: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix: how often each true class (row) was predicted as each class (column), by row.

    Args:
        confusion: [K, K] counts.
        labels: [K] class names. With more than forty, the picture has no names and numbers.
    """
    k = len(labels)
    named = k <= 40
    names = lettering(labels if named else ())
    side = min(4 + 0.45 * k + 0.05 * max(map(len, names.shown), default=0), 24) if named else 14.0
    figure = _figure(side + 1, side)
    axes = figure.subplots()
    counts = confusion.sum(1, keepdims=True)
    parts = confusion / np.maximum(counts, 1)
    image = axes.imshow(parts, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, fraction=0.04, label="part of the class's videos")
    axes.set(
        xlabel=_with_note("predicted", names.legend),
        ylabel="true",
        title=f"{int(np.trace(confusion))} of {int(counts.sum())} right",
    )
    if named:
        axes.set_xticks(range(k), names.shown, rotation=45, ha="right", **names.style)
        axes.set_yticks(range(k), names.shown, **names.style)
        for i, j in zip(*np.nonzero(confusion), strict=True):
            color = "white" if parts[i, j] > 0.5 else "black"
            axes.text(j, i, str(confusion[i, j]), ha="center", va="center", color=color, fontsize=8)
    _save(figure, path, names.legend)


def save_prediction(
    frames: NDArray[np.uint8],
    times_seconds: Sequence[float],
    scores: Sequence[tuple[str, float]],
    path: Path,
    *,
    title: str = "",
) -> None:
    """Draw frames of a video in a row, and below them bars of the predicted probabilities.

    Args:
        frames: [F, H, W, 3].
        times_seconds: [F], the time of each frame; nan where it is not known.
        scores: (label, probability), best first.
    """
    count = len(frames)
    figure = _figure(max(1.6 * count, 6), 1.9 + 0.3 * len(scores) + 1.2)
    rows = figure.add_gridspec(2, count, height_ratios=[1.9, 0.3 * len(scores) + 0.6])
    for i in range(count):
        axes = figure.add_subplot(rows[0, i])
        axes.imshow(frames[i])
        axes.set_title(_time(times_seconds[i]), fontsize=9)
        axes.axis("off")
    axes = figure.add_subplot(rows[1, :])
    names = lettering([label for label, _ in scores])
    bars = axes.barh(range(len(scores)), [score for _, score in scores], color="#3273a8")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_yticks(range(len(scores)), names.shown, **names.style)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.1), xlabel=_with_note("probability", names.legend))
    axes.spines[["top", "right"]].set_visible(False)
    _set_title(figure, title)
    _save(figure, path, names.legend)


def save_timeline(
    frames: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    rows: Mapping[str, Sequence[tuple[float, float, str, float]]],
    duration_seconds: float,
    path: Path,
    *,
    title: str = "",
) -> None:
    """Draw frames of a video, and below them a timeline of the segments of each class.

    Args:
        frames: [F, H, W, 3], evenly spread over the video; without frames the timeline alone is drawn.
        rows: for each kind of segments, such as "found" and "annotated", their start and end in seconds, class and
            score; high scores are dark. The kinds of a class are drawn below each other.
    """
    labels = sorted({label for segments in rows.values() for _, _, label, _ in segments})
    names = lettering(labels)
    height = 0.32 * max(len(labels) * len(rows), 1)
    count = len(frames)
    figure = _figure(14, (1.9 if count else 0.3) + height + 1.0)
    if count:
        grid = figure.add_gridspec(2, count, height_ratios=[1.5, height + 0.4])
        for i, frame in enumerate(frames):
            axes = figure.add_subplot(grid[0, i])
            axes.imshow(frame)
            axes.axis("off")
        axes = figure.add_subplot(grid[1, :])
    else:
        axes = figure.subplots()
    colors = ("#3273a8", "#5a9e4b", "#b0703a")
    thick = 0.8 / len(rows)
    for kind, (name, segments) in enumerate(rows.items()):
        color = colors[kind % len(colors)]
        for start, end, label, score in segments:
            place = labels.index(label) - 0.4 + kind * thick
            box = axes.broken_barh([(start, end - start)], (place, 0.9 * thick), color=color, alpha=0.25 + 0.75 * score)
            box.set_gid(f"{name} {label}")
        axes.barh([0], [0], color=color, label=name)
    axes.set_yticks(range(len(labels)), names.shown, **names.style)
    axes.set(
        xlim=(0, duration_seconds), ylim=(max(len(labels), 1) - 0.5, -0.5), xlabel=_with_note("seconds", names.legend)
    )
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(rows), frameon=False)
    _set_title(figure, title)
    _save(figure, path, names.legend)


def save_heat(
    frames: NDArray[np.uint8],
    overlaid: NDArray[np.uint8],
    times_seconds: Sequence[float],
    path: Path,
    *,
    title: str = "",
) -> None:
    """Draw a Grad-CAM: frames in rows of eight, the time above each, and below each the frame with its heatmap.

    Args:
        frames: [T, H, W, 3]; of more than 32 frames, 32 evenly spread ones are drawn.
        overlaid: [T, H, W, 3], the frames overlaid with the heatmap.
        times_seconds: [T], the time of each frame; nan where it is not known.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    shown = _spread(len(frames), 32)
    columns = min(len(shown), 8)
    high, wide = frames.shape[1:3]
    above, beside = high * 0.16, wide * 0.05  # space for the times, and between the frames
    rows = -(-len(shown) // columns)
    inches = max(1.9, 6 / columns) / wide
    tall = inches * rows * (2 * high + above + beside)
    figure = _figure(inches * columns * (wide + beside), tall + 1.2)
    grid = figure.add_gridspec(2, 3, height_ratios=[tall, 0.15])
    axes = figure.add_subplot(grid[0, :])
    for place, i in enumerate(shown):
        row, column = divmod(place, columns)
        left, top = column * (wide + beside), row * (2 * high + above + beside) + above
        axes.imshow(frames[i], extent=(left, left + wide, top + high, top))
        axes.imshow(overlaid[i], extent=(left, left + wide, top + 2 * high, top + high))
        axes.text(left + wide / 2, top - above / 4, _time(times_seconds[i]), fontsize=9, ha="center")
    axes.set(xlim=(0, columns * (wide + beside)), ylim=(rows * (2 * high + above + beside), 0))
    axes.axis("off")
    scale = ScalarMappable(Normalize(0, 1), "turbo")
    label = "what speaks for the class; 1 where most does"
    figure.colorbar(scale, cax=figure.add_subplot(grid[1, 1]), orientation="horizontal", label=label)
    _set_title(figure, title)
    _save(figure, path)


def _spread(count: int, most: int) -> list[int]:
    """Indices from 0 to ``count - 1``; where there are more than ``most``, that many evenly spread ones."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def save_calibration(
    frames: NDArray[np.uint8],
    times_seconds: Sequence[float],
    strengths: Mapping[str, NDArray[np.floating]],
    layer: str,
    deviations: NDArray[np.floating],
    path: Path,
    *,
    title: str = "",
) -> None:
    """Draw the calibration of a clip: its frames, the RMS of alpha - 1 by layer and frame, and one layer's channels.

    Args:
        frames: [T, S, S, 3].
        times_seconds: [T], the time of each frame; nan where it is not known.
        strengths: for each layer, in the network's order, the RMS over channels of alpha - 1, [T'].
        layer: the layer whose channels are drawn.
        deviations: alpha - 1 of this layer, [T', C].
    """
    t = len(frames)
    shown = _spread(t, 16)
    side, high = min(1.3, 10.0 / len(shown)), max(0.22 * len(strengths), 1.5)
    figure = _figure(13, side + high + 4.8)
    grid = figure.add_gridspec(3, 1, height_ratios=[side, high, 3.4])
    top, middle, bottom = (figure.add_subplot(grid[i]) for i in range(3))
    wide = t / len(shown)
    for place, i in enumerate(shown):  # each frame about above its column of the maps
        top.imshow(frames[i], extent=((place + 0.02) * wide, (place + 0.98) * wide, 0, 1), aspect="auto")
    top.set(xlim=(0, t), ylim=(0, 1))
    top.axis("off")
    rows = np.stack([_at_frames(strength, t) for strength in strengths.values()])
    image = middle.imshow(rows, aspect="auto", cmap="magma", vmin=0, extent=(0, t, len(rows), 0), interpolation="none")
    middle.set_yticks(np.arange(len(rows)) + 0.5, list(strengths), fontsize=8, parse_math=False)
    figure.colorbar(image, ax=middle, label="RMS of alpha - 1", fraction=0.03)
    most = max(float(np.abs(deviations).max()), 1e-6)
    image = bottom.imshow(
        _at_frames(deviations, t).T,
        aspect="auto",
        cmap="RdBu_r",
        vmin=-most,
        vmax=most,
        extent=(0, t, deviations.shape[1], 0),
        interpolation="none",
    )
    bottom.set_ylabel("channel")
    bottom.set_title(layer, parse_math=False)
    figure.colorbar(image, ax=bottom, label="alpha - 1", fraction=0.03)
    is_timed = not math.isnan(times_seconds[0])
    ticks = [f"{times_seconds[i]:.2f}" if is_timed else str(i + 1) for i in shown]
    for axes in (middle, bottom):
        axes.set_xticks([i + 0.5 for i in shown], ticks, fontsize=8)
    bottom.set_xlabel("seconds" if is_timed else "frame of the clip")
    _set_title(figure, title)
    _save(figure, path)


def _at_frames(values: NDArray[np.floating], num_frames: int) -> NDArray[np.floating]:
    """[T', ...] -> [T, ...]: repeat the values of a layer that sees every second frame, say, for each frame."""
    stride = -(-num_frames // len(values))
    repeated: NDArray[np.floating] = values[np.minimum(np.arange(num_frames) // stride, len(values) - 1)]
    return repeated


def save_comparison(per_class: Mapping[str, Mapping[str, float]], path: Path, *, title: str = "") -> None:
    """Draw the accuracy of several models on every class, as bars side by side.

    Args:
        per_class: model -> class -> accuracy; all models have the same classes.
    """
    models = list(per_class)
    labels = list(per_class[models[0]])
    names = lettering(labels)
    figure = _figure(2 + 1.1 * len(labels), 4)
    axes = figure.subplots()
    width = 0.8 / len(models)
    for i, model in enumerate(models):
        places = np.arange(len(labels)) - 0.4 + (i + 0.5) * width
        axes.bar(places, [per_class[model][label] for label in labels], width, label=model)
    axes.set_xticks(range(len(labels)), names.shown, rotation=20, ha="right", **names.style)
    axes.set(ylim=(0, 1.05), ylabel="top-1 accuracy", xlabel=_with_note("", names.legend))
    _set_title(figure, title)
    figure.legend(loc="outside lower center", ncols=len(models), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path, names.legend)


def save_curves(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], path: Path) -> None:
    """Draw curves over the epochs of a training, one diagram for each panel.

    Args:
        panels: title -> name of a curve -> its epochs and values. The last value is written at the curve's end.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(8, 1.0 + 2.2 * len(panels))
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, curves) in zip(rows, panels.items(), strict=True):
        for name, (epochs, values) in curves.items():
            (line,) = axes.plot(epochs, values, label=name, marker="o" if len(epochs) < 40 else None, markersize=3)
            axes.annotate(
                f"{values[-1]:.3g}",
                (epochs[-1], values[-1]),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=line.get_color(),
                fontsize=9,
            )
        axes.set_title(title, fontsize=10, loc="left")
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.06, 0.5))
        axes.margins(x=0.03)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xlabel("epoch")
    rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


def save_bars(values: Mapping[str, float], path: Path, *, label: str, counts: Mapping[str, int] | None = None) -> None:
    """Draw a number for each class as a bar, in the order given.

    Args:
        values: class -> number from 0 to 1; only the first 60 are drawn, and the picture says so.
        label: the name of the number.
        counts: class -> the number of videos it is measured on, written after the class's name.
    """
    shown = list(values)[:60]
    names = lettering(shown)
    left_out = len(values) - len(shown)
    figure = _figure(8, 1.2 + 0.28 * len(shown))
    axes = figure.subplots()
    bars = axes.barh(range(len(shown)), [values[name] for name in shown], color="#3273a8")
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    texts = [
        f"{text} ({counts[name]})" if counts and name in counts else text
        for name, text in zip(shown, names.shown, strict=True)
    ]
    axes.set_yticks(range(len(shown)), texts, **names.style)
    more = f" ({left_out} more classes are not shown)" if left_out else ""
    axes.set(xlim=(0, 1.1), ylim=(len(shown) - 0.4, -0.6), xlabel=_with_note(label + more, names.legend))
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path, names.legend)


def save_stacks(rows: Mapping[str, Mapping[str, int]], kinds: Sequence[str], path: Path, *, label: str) -> None:
    """Draw a stacked bar of counts for each class.

    Args:
        rows: class -> kind -> count; only the first 60 classes are drawn, and the picture says so.
        kinds: the kinds in the order of the stack; the first is drawn in green, the others in warning colors.
        label: what is counted.
    """
    from matplotlib.ticker import MaxNLocator

    shown = list(rows)[:60]
    names = lettering(shown)
    left_out = len(rows) - len(shown)
    figure = _figure(9, 1.6 + 0.3 * len(shown))
    axes = figure.subplots()
    colors = ("#5a9e4b", "#9cc3e6", "#b0703a", "#e0a030", "#c8504b", "#888888")
    starts = np.zeros(len(shown))
    for kind, color in zip(kinds, colors, strict=False):
        wide = np.array([rows[name].get(kind, 0) for name in shown], float)
        axes.barh(range(len(shown)), wide, left=starts, color=color, label=kind)
        starts += wide
    axes.set_yticks(range(len(shown)), names.shown, **names.style)
    more = f" ({left_out} more classes are not shown)" if left_out else ""
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlabel=_with_note(label + more, names.legend))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds), frameon=False)
    _save(figure, path, names.legend)


def _time(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds:.2f} s"


def _figure(width_inches: float, height_inches: float) -> Figure:
    # Not pyplot's figure: this one needs no display and is freed with its last reference.
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def _set_title(figure: Figure, title: str) -> None:
    if title:
        text, style = title_lettering(title)
        figure.suptitle(text, **style)


def _with_note(label: str, legend: Mapping[str, str]) -> str:
    """The label of an axis, with a note on the file that lists the names drawn as numbers."""
    if not legend:
        return label
    numbers = ", ".join([*list(legend)[:3], *(["..."] if len(legend) > 3 else [])])
    return f"{label}\n({numbers}: see the .classes.txt beside this picture)"


_MARK = b"Software\0tada"


def _save(figure: Figure, path: Path, legend: Mapping[str, str] | None = None) -> None:
    """Write a figure as PNG, and beside it a file of the names that are drawn as numbers.

    Raises:
        OptionError: ``path`` has another ending than .png.
        OutputError: it cannot be written.
    """
    check_ending(path, ".png", "pictures are PNG files")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if legend:
        lines = "".join(f"{number}\t{name}\n" for number, name in legend.items())
        write_whole(path.with_suffix(".classes.txt"), lines.encode())
    with whole_file(path) as part, quiet_fonts():
        figure.savefig(part, dpi=110, format="png", metadata={"Software": "tada"})


def is_ours(picture: Path) -> bool:
    """Whether a picture was drawn by tada."""
    with picture.open("rb") as file:
        return _MARK in file.read(4096)
