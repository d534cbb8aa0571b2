"""Tables, verdicts and the picture of what ``claims.py`` has run so far."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

# 97.5 % of Student's t distribution for 1, 2, ... degrees of freedom (any printed table has them).
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
Found = Literal["yes", "no", "unclear"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Mean of the paired differences of two arms' top-1, and its 95 % interval."""

    mean: float
    low: float
    high: float
    num_runs: int

    @property
    def found(self) -> Found:
        """Whether the first arm is better: the interval excludes zero, on one side or the other."""
        return "yes" if self.low > 0 else "no" if self.high < 0 else "unclear"

    def __str__(self) -> str:
        """In points, with the interval."""
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def difference(better: Mapping[int, float], worse: Mapping[int, float]) -> Difference | None:
    """Compare two arms run by run (Student's interval); None with less than three runs that both have.

    Args:
        better: the top-1 of each run of the arm that is said to be better.
        worse: that of the other.
    """
    runs = sorted(set(better) & set(worse))
    if len(runs) < 3:  # two give an interval of any width
        return None
    values = [better[run] - worse[run] for run in runs]
    mean = statistics.fmean(values)
    quantile = _T[min(len(runs) - 1, len(_T)) - 1]
    half = quantile * statistics.stdev(values) / math.sqrt(len(runs))
    return Difference(mean=mean, low=mean - half, high=mean + half, num_runs=len(runs))


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Two arms of one task: is the first better? Most are claims of the paper."""

    text: str
    better: str
    worse: str
    task: str = "phrases"
    is_ablation: bool = False
    """Of the paper's ablations and of widths: in a picture of its own."""


def _tiny(text: str, better: str, worse: str, *, is_ablation: bool = False) -> Claim:
    arms = {"better": f"tada2d_tiny, {better}, from scratch", "worse": f"tada2d_tiny, {worse}, from scratch"}
    return Claim(text=text, **arms, is_ablation=is_ablation)


def _lite0(text: str, better: str, worse: str) -> Claim:
    arms = {"better": f"tada_lite0, {better}, from ImageNet", "worse": f"tada_lite0, {worse}, from ImageNet"}
    return Claim(text=f"EfficientNet-Lite0: {text}", **arms)


def _plug_in(task: str) -> list[Claim]:
    """Of each host, that calibration helps it."""
    where = "" if task == "phrases" else f" on {task}"
    hosts = (
        ("MobileNetV2 (ImageNet)", "adapted", "mobilenetv2, {}, from ImageNet", ("adapted", "plain")),
        (
            "EfficientNet-Lite0 (ImageNet)",
            "calibrated",
            "tada_lite0, {}, from ImageNet",
            ("calibration", "averaged frames"),
        ),
        ("SlowOnly", "adapted", "slowonly_tiny, {}, from scratch", ("adapted", "plain")),
        ("R(2+1)D", "adapted", "r2plus1d_tiny, {}, from scratch", ("adapted", "plain")),
        ("R3D", "adapted", "r3d_tiny, {}, from scratch", ("adapted", "plain")),
    )
    return [
        Claim(text=f"{name}{where}, {verb} > plain", better=arm.format(better), worse=arm.format(worse), task=task)
        for name, verb, arm, (better, worse) in hosts
    ]


def _second_paper(task: str) -> list[Claim]:
    """That attention over time, and TAdaFormer's TAda blocks, help."""
    where = "" if task == "phrases" else f" on {task}"
    convnext, convnext_v2, tadaformer = "tadaconvnext_mini", "tadaconvnextv2_mini", "tadaformer_tiny"
    pairs = (
        (f"{convnext}{where}: attention over time > the clip's mean", convnext, f"{convnext}, clip's mean"),
        (f"{convnext_v2}{where}: attention over time > the clip's mean", convnext_v2, f"{convnext_v2}, clip's mean"),
        (f"{convnext}{where} > convnext_mini", convnext, "convnext_mini, not calibrated"),
        (f"{convnext_v2}{where} > convnext_mini", convnext_v2, "convnext_mini, not calibrated"),
        (f"{tadaformer}{where}: TAda blocks > none", tadaformer, f"{tadaformer}, not calibrated"),
    )
    return [
        Claim(
            text=text,
            better=f"{better}, attention, from scratch",
            worse=f"{worse}, from scratch",
            task=task,
            is_ablation=True,
        )
        for text, better, worse in pairs
    ]


CLAIMS = (
    _tiny("calibration > averaged frames", "calibration", "averaged frames"),
    _tiny("aggregation > averaged frames", "aggregation", "averaged frames"),
    _tiny("both > averaged frames", "both", "averaged frames"),
    _tiny("both > calibration", "both", "calibration"),
    _tiny("calibration > TSM's shift", "calibration", "shift"),
    _tiny("both > TSM's shift", "both", "shift"),
    _tiny("start: motion, aggregation > averaged frames", "aggregation, motion start", "averaged frames, motion start"),
    _tiny("start: motion, both > calibration", "both, motion start", "calibration, motion start"),
    _tiny("start: motion, calibration > TSM's shift", "calibration, motion start", "shift, motion start"),
    _tiny("start: motion, both > TSM's shift", "both, motion start", "shift, motion start"),
    _tiny("start as released > start: motion, calibration", "calibration", "calibration, motion start"),
    _tiny("start as released > start: motion, both", "both", "both, motion start"),
    Claim(
        text="generated motion first > from nothing with its start, both",
        better="tada2d_tiny, both, from motion",
        worse="tada2d_tiny, both, motion start, from scratch",
    ),
    Claim(
        text="generated motion first, anew for each seed > from nothing with its start, both",
        better="tada2d_tiny, both, from motion of its seed",
        worse="tada2d_tiny, both, motion start, from scratch",
    ),
    *_plug_in("phrases"),
    _lite0("aggregation > averaged frames", "aggregation", "averaged frames"),
    _lite0("both > calibration", "both", "calibration"),
    _lite0("calibration > TSM's shift", "calibration", "shift"),
    _lite0("both > TSM's shift", "both", "shift"),
    *_plug_in("gestures"),
    Claim(
        text="MobileNetV2 on words, adapted > plain",
        better="mobilenetv2, adapted, from ImageNet",
        worse="mobilenetv2, plain, from ImageNet",
        task="words",
    ),
    Claim(
        text="MobileNetV2 on interactions, adapted > plain",
        better="mobilenetv2, adapted, from ImageNet",
        worse="mobilenetv2, plain, from ImageNet",
        task="interactions",
    ),
    *(
        Claim(
            text=f"{task}: both > averaged frames",
            better="tada2d_tiny, both, from motion",
            worse="tada2d_tiny, averaged frames, from scratch",
            task=task,
        )
        for task in ("phrases, best start", "words, best start")
    ),
    Claim(
        text="calibration > averaged frames, on words",
        better="tada2d_tiny, calibration, from scratch",
        worse="tada2d_tiny, averaged frames, from scratch",
        task="words",
    ),
    Claim(
        text="generated motions: both > averaged frames",
        better="tada2d_tiny, both, from scratch",
        worse="tada2d_tiny, averaged frames, from scratch",
        task="generated motions",
    ),
    *_second_paper("phrases"),
    *_second_paper("generated motions"),
    *(
        Claim(
            text=f"MobileNetV2, hidden layers of at most 6 > r = {r}",
            better="mobilenetv2, adapted, from ImageNet",
            worse=f"mobilenetv2, adapted, r = {r}, from ImageNet",
            is_ablation=True,
        )
        for r in (4, 16, 64)
    ),
    *(
        _tiny(text, better, worse, is_ablation=True)
        for text, better, worse in (
            ("input side > output side", "both", "both, of the output"),
            ("global and local context > local", "calibration", "calibration, local context"),
            ("global and local context > global", "calibration", "calibration, global context"),
            ("local context > none", "calibration, local context", "calibration, no context"),
            ("global context > none", "calibration, global context", "calibration, no context"),
            ("two layers of 3 > one", "calibration", "calibration, one layer of 3"),
            ("one layer of 3 > one of 1", "calibration, one layer of 3", "calibration, one layer of 1"),
            ("r = 4 > r = 2", "both", "both, r = 2"),
            ("r = 4 > r = 8", "both", "both, r = 8"),
            ("r = 4 > r = 16", "both", "both, r = 16"),
            ("pooled by average > by maximum", "both", "both, pooled by max"),
            ("pooled by average > by a mix", "both", "both, pooled by mix"),
        )
    ),
)
"""In the order of the page: the paper's main claims, then widths and its ablations."""


def show(runs: Sequence[Mapping[str, Any]], out: Path, page: Path) -> None:
    """Print all tables.

    The answers are written to OUT/claims.json, the tables to PAGE/claims.md, and pictures of them to PAGE/claims.png
    and, of widths and ablations, PAGE/ablation.png.
    """
    top1: dict[tuple[str, str], dict[int, float]] = {}
    parameters: dict[tuple[str, str], int] = {}
    for run in runs:
        key = (run["task"], run["arm"])
        top1.setdefault(key, {})[run["run"]] = run["right"] / run["count"]
        parameters[key] = run["parameters"]
    if not runs:
        raise SystemExit(f"{out / 'runs.jsonl'} has no runs yet: nothing is written")
    answers = []
    for claim in CLAIMS:
        gain = difference(top1.get((claim.task, claim.better), {}), top1.get((claim.task, claim.worse), {}))
        if gain is not None:
            answers.append(asdict(claim) | asdict(gain) | {"points": str(gain), "found": gain.found})
    tables = [
        Rows(
            title="Comparisons",
            header=("first > second", "found", "points (95 % interval)", "runs"),
            rows=[(a["text"], a["found"], a["points"], str(a["num_runs"])) for a in answers],
        )
    ]
    for task in sorted({task for task, _ in top1}):
        rows = [
            (
                name,
                f"{parameters[of_task, name]:,}",
                f"{statistics.fmean(values.values()):.3f}",
                " ".join(f"{values[run]:.3f}" for run in sorted(values)),
            )
            for (of_task, name), values in sorted(top1.items(), key=lambda item: item[0][1])
            if of_task == task
        ]
        tables.append(Rows(title=task.capitalize(), header=("arm", "weights", "top-1", "each run"), rows=rows))
    console = Console(width=130)
    for table in tables:
        console.print(table.to_print())
    for folder in (out, page):
        folder.mkdir(parents=True, exist_ok=True)
    (out / "claims.json").write_text(json.dumps(answers, indent=2) + "\n", encoding="utf-8")
    text = [_HEAD, *(table.to_markdown() for table in tables)]
    (page / "claims.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    for name, is_ablation in (("claims", False), ("ablation", True)):
        shown = [answer for answer in answers if answer["is_ablation"] == is_ablation]
        if shown:
            draw(shown, page / f"{name}.png")


_HEAD = """# The paper's claims: every table

Written by `python benchmarks/claims.py --report` from `benchmarks/claims/runs.jsonl`; what it means is on the first
page of [benchmarks.md](benchmarks.md). Run s of every arm has seed s and is tested on the same fold, so comparisons are
of pairs. The interval is Student's, of the mean of the paired differences; "yes" and "no" mean that it excludes zero.
Each stands for itself: of twenty comparisons of equal arms, one would be expected to exclude zero. "Weights" are
parameters; top-1 is the mean of the runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A table."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def to_print(self) -> Table:
        """For a terminal."""
        table = Table(*self.header, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        """For a page."""
        lines = [" | ".join(cells) for cells in (self.header, ["---"] * len(self.header), *self.rows)]
        return "\n".join([f"## {self.title}", "", *(f"| {line} |" for line in lines)])


def draw(answers: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw each claim's gain with its interval, the first claim at the top."""
    from matplotlib.figure import Figure  # heavy

    colors = {"yes": "#1a7f37", "no": "#b42318", "unclear": "#6e7781"}
    figure = Figure(figsize=(8, 0.9 + 0.3 * len(answers)), layout="constrained")
    axes = figure.add_subplot()
    for place, answer in enumerate(answers):
        low, mean, high = (100 * answer[key] for key in ("low", "mean", "high"))
        color = colors[answer["found"]]
        axes.plot([low, high], [place, place], color=color, linewidth=2.5, solid_capstyle="butt")
        axes.plot([mean], [place], "o", color=color)
        axes.annotate(
            f"{answer['found']} ({answer['num_runs']})",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            color=color,
            va="center",
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(answers)), [answer["text"] for answer in answers])
    axes.invert_yaxis()
    axes.set_xlabel(
        "gain of top-1 in points, on the phrases if nothing else is named:\n"
        "mean and 95 % interval of paired runs (how many)"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=110)
