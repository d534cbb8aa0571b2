"""The table, the page and the picture of what ``landscape.py`` has measured, from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from claims_report import Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A published result, and how long its test takes here."""

    row: Mapping[str, Any]
    """The network, a row of the JSON."""
    result: Mapping[str, Any]
    precision: str | None = None
    """None: the fastest one."""

    @property
    def name(self) -> str:
        """In tables; it tells first weights apart where a network has results from several."""
        several = len(self.row["results"]) > 1
        return f"{self.row['row']} ({self.result['trained_from']})" if several else str(self.row["row"])

    @property
    def top1(self) -> float:
        """In percent."""
        return float(self.result["top1"])

    @property
    def clip_ms(self) -> float:
        """Of a clip, in the fastest way."""
        fastest = self.row["fastest"]
        ways = fastest.values() if self.precision is None else [fastest[self.precision]]
        return min(float(self.row["ways"][way]["ms"]["median"]) for way in ways)

    @property
    def test_seconds(self) -> float:
        """Of a video in the published test: a clip, times its views."""
        return self.clip_ms * int(self.result["num_views"]) / 1000

    def beats(self, other: Point) -> bool:
        """Takes no longer for the published test, is at least as accurate, and not the same in both."""
        no_worse = self.test_seconds <= other.test_seconds and self.top1 >= other.top1
        return no_worse and (self.test_seconds, self.top1) != (other.test_seconds, other.top1)


def points_of(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """All results whose network could be timed, the quickest test first."""
    points = [Point(row=row, result=result) for row in rows if row["fastest"] for result in row["results"]]
    return sorted(points, key=lambda point: (point.test_seconds, -point.top1))


def front_of(points: Sequence[Point]) -> list[Point]:
    """Those that none beats: the Pareto front."""
    return [point for point in points if not any(other.beats(point) for other in points)]


def show_landscape(report: Mapping[str, Any], page: Path) -> None:
    """Print the table; write PAGE/landscape.md and PAGE/landscape.png."""
    points = points_of(report["rows"])
    if not points:
        raise SystemExit("nothing was measured: nothing is written")
    tables = [_all(points), _behind(points), _ways(report["rows"]), _sources(points)]
    console = Console(width=170)
    for table in tables[:2]:
        console.print(table.to_print())
    page.mkdir(parents=True, exist_ok=True)
    text = [_head(report), *(table.to_markdown() for table in tables), _left_out(report)]
    (page / "landscape.md").write_text("\n\n".join(part for part in text if part) + "\n", encoding="utf-8")
    draw(points, page / "landscape.png")
    print(f"written: {page / 'landscape.md'}, {page / 'landscape.png'}")


def _all(points: Sequence[Point]) -> Rows:
    front = front_of(points)
    fp32 = {point.name: replace(point, precision="fp32") for point in points if "fp32" in point.row["fastest"]}
    fp32_front = {point.name for point in front_of(list(fp32.values()))}
    precisions = sorted({precision for point in points for precision in point.row["fastest"]}, reverse=True)
    rows = []
    for point in points:
        row, result = point.row, point.result
        rows.append(
            (
                point.name,
                f"{row['frames']} x {row['pixels']}²",
                f"{row['parameters'] / 1e6:.1f}",
                f"{row['multiply_adds'] / 1e9:.1f}",
                *(_fastest(row, precision) for precision in precisions),
                str(result["views"]),
                f"{point.test_seconds:.2f}",
                f"{point.top1:.1f}",
                "yes" if point in front else "",
                f"{fp32[point.name].test_seconds:.1f}" if point.name in fp32 else "no time",
                "yes" if point.name in fp32_front else "",
                str(result["trained_from"]),
            )
        )
    header = (
        "network",
        "clip",
        "M weights",
        "G multiply-adds",
        *(f"ms for a clip, {precision}" for precision in precisions),
        "views",
        "s for the test",
        "top-1",
        "on the front",
        "s for the test, fp32",
        "on the fp32 front",
        "trained from",
    )
    return Rows(title="Accuracy and time", header=header, rows=rows)


def _fastest(row: Mapping[str, Any], precision: str) -> str:
    way = row["fastest"].get(precision)
    if way is None:
        return "no time"
    ms = row["ways"][way]["ms"]
    return f"{ms['median']:.0f} ({ms['low']:.0f}-{ms['high']:.0f}), {way.partition(' ')[2]}"


def _behind(points: Sequence[Point]) -> Rows:
    """Which networks of others take no longer than ours, and are at least as accurate."""
    rows = []
    for own in (point for point in points if point.row["ours"]):
        better = [other for other in points if not other.row["ours"] and other.beats(own)]
        best = min(better, key=lambda other: other.test_seconds, default=None)
        rows.append(
            (
                own.name,
                f"{own.top1:.1f}",
                f"{own.test_seconds:.2f}",
                ", ".join(f"{other.name} ({other.top1:.1f}, {other.test_seconds:.2f} s)" for other in better) or "none",
                "" if best is None else f"{own.test_seconds / best.test_seconds:.2f}",
            )
        )
    better_header = ("others at least as accurate, in no more time", "x the time of the quickest of them")
    header = ("tada's network", "top-1", "s for the test", *better_header)
    return Rows(title="Where tada's networks are behind", header=header, rows=rows)


def _ways(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Every way in which each network ran."""
    lines = []
    for row in rows:
        for way, times in row["ways"].items():
            ms, ratio = times["ms"], times["times_reference"]
            lines.append(
                (
                    row["row"],
                    f"**{way}**" if way in row["fastest"].values() else way,
                    f"{ms['median']:.1f} ({ms['low']:.1f}-{ms['high']:.1f})",
                    f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})",
                    str(len(times["samples_ms"])),
                )
            )
        lines += [(row["row"], way, "no time", reason.replace("|", "/"), "") for way, reason in row["failed"].items()]
    header = ("network", "way", "ms for a clip (quartiles)", "x the reference", "rounds")
    return Rows(title="All ways", header=header, rows=lines)


def _sources(points: Sequence[Point]) -> Rows:
    rows = [
        (point.name, f"{point.top1:g}", str(point.result["views"]), str(point.result["source"])) for point in points
    ]
    return Rows(title="Sources", header=("network", "top-1", "views", "published in"), rows=sorted(rows))


def _head(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    packages = ("torch", "transformers", "pytorchvideo")
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in packages if name in machine["versions"])
    return f"""# Accuracy against time on Kinetics-400

Written by `python benchmarks/landscape.py --report` from `benchmarks/landscape.json`. Machine: {where};
{versions}.

![Published top-1 against the time for the published test](landscape.png)

Top-1 as published; times as measured here, with random weights, one clip at a time. "s for the test" is the time of a
clip in its fastest way, times the views (clips x crops) with which the accuracy was published: it leaves out decoding.
"On the front": no other network in the table is at least as accurate in no more time; "on the fp32 front": the same
without bf16, which not all processors have. First weights differ ("trained from"), and with them what an accuracy says
about a network. Every network runs in tada's inference form: batch norms folded, eager or compiled, channels first or
last; the fastest way counts, and is named. Networks took turns with
{report["reference"]} in fp32. A time is the ratio to it within each round, times its median over the whole run (medians
and quartiles). TimeSformer and MViT compute attention in steps, as their packages do, the others by PyTorch's
one function for it. **Bold** in "All ways": the fastest way of a precision."""


def _left_out(report: Mapping[str, Any]) -> str:
    lines = [f"- {name}: {reason}" for name, reason in report["left_out"].items()]
    return "\n".join(["## Left out", "", *lines]) if lines else ""


# --- the picture ------------------------------------------------------------------------------------------------------

_OURS = "#c2410c"
_OTHERS = "#475569"
_SIZE = (13.0, 8.5)


def draw(points: Sequence[Point], file: Path) -> None:
    """Draw top-1 against the time for the published test, a line for each family; names where there is room."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # heavy
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=_SIZE, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    families: dict[str, list[Point]] = {}
    for point in points:
        families.setdefault(point.row["family"], []).append(point)
    for members in families.values():
        color = _OURS if members[0].row["ours"] else _OTHERS
        networks: dict[str, list[Point]] = {}
        for point in members:
            networks.setdefault(point.row["row"], []).append(point)
        # One line through the networks, each from its first weights; and one through the results of each.
        first = [point for point in members if point.result == point.row["results"][0]]
        for line, style in ((first, "-o"), *((of_one, ":o") for of_one in networks.values())):
            x, y = [point.test_seconds for point in line], [point.top1 for point in line]
            axes.plot(x, y, style, color=color, linewidth=1.2, markersize=5)
    front = front_of(points)
    x, y = [point.test_seconds for point in front], [point.top1 for point in front]
    axes.step(x, y, where="post", color="#16a34a", linewidth=5, alpha=0.25, zorder=0, label="Pareto front")
    axes.plot(x, y, "o", markersize=11, fillstyle="none", color="#16a34a", markeredgewidth=1.4)
    axes.plot([], [], "-o", color=_OURS, label="tada")
    axes.plot([], [], "-o", color=_OTHERS, label="others")
    axes.legend(loc="lower right", frameon=False)
    axes.set_xlabel("seconds for the published test of a video, all views (log scale)")
    axes.set_ylabel("published top-1 on Kinetics-400 in percent")
    axes.margins(x=0.09, y=0.07)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    canvas.draw()  # lays the axes out: only then is it known where points are
    _name_points(axes, points, canvas.get_renderer())
    figure.savefig(file, dpi=110)


def _name_points(axes: Any, points: Sequence[Point], renderer: Any) -> None:
    """Write each name at the nearest of some places around its point where it covers no point and no other name."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    spots = axes.transData.transform([(point.test_seconds, point.top1) for point in points])
    taken = [Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in spots]
    inside = axes.get_window_extent(renderer)
    for point in points:
        color = _OURS if point.row["ours"] else _OTHERS
        best = None
        for reach in (14, 22, 32, 44, 58, 74):
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8)):
                text = axes.annotate(
                    point.name,
                    (point.test_seconds, point.top1),
                    xytext=(dx * reach * 0.72, dy * reach * 0.72),
                    textcoords="offset points",
                    ha="left" if dx > 0 else "right" if dx < 0 else "center",
                    va="bottom" if dy > 0 else "top" if dy < 0 else "center",
                    fontsize=7.5,
                    color=color,
                    arrowprops={"arrowstyle": "-", "color": color, "alpha": 0.4, "lw": 0.7} if reach > 22 else None,
                    path_effects=[withStroke(linewidth=2.5, foreground="white")],
                )
                box = text.get_window_extent(renderer).padded(1)
                covered = sum(box.overlaps(other) for other in taken)
                covered += 0 if inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1) else 10
                if best is None or covered < best[0]:
                    if best is not None:
                        best[1].remove()
                    best = covered, text, box
                else:
                    text.remove()
                if covered == 0:
                    break
            if best is not None and best[0] == 0:
                break
        assert best is not None
        taken.append(best[2])
