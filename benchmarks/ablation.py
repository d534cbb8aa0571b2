"""The paper's ablations at a tiny scale: each part of TAda2D left out or changed, on generated motion.

    python benchmarks/ablation.py --out OUT [--seeds 3] [--variants NAME ...]

Draws the quickstart's videos of eight motions: four pairs of a motion and its time reversal, which differ only in the
order of frames, so a network that ignores order is right on half of them at most. Trains every variant
of tada2d_tiny on them by the same recipe and tests it on unseen videos. A variant only differs in
the recipe's ``model_options``.

Prints top-1 of each variant (mean and standard deviation of the seeds), then, for each of the paper's questions, its
answer beside the measured one. A difference of two variants, taken seed by seed, counts if it is at least twice its
standard error; smaller ones are undecided. Writes OUT/ablation.json. A run that is already in OUT is not repeated, so
an interrupted benchmark continues.

The paper's numbers were measured on Something-Something V2 with a ResNet-50 that started from ImageNet. Only their
order is given here, and from memory, not copied from the paper (arXiv 2110.06178, its section on ablations). What it
says of networks without local context does not carry over: calibration by the clip's mean alone tells SSv2's objects
apart, but it is as blind to order as no calibration, and here nothing else counts.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

import tada
from tada.data.motion import MOTIONS
from tada.models.weights import load_model
from tada.recognition.evaluation import evaluate
from tada.recognition.quickstart import draw_videos
from tada.recognition.training import train

MODEL = "tada2d_tiny"

VARIANTS: dict[str, dict[str, Any]] = {
    "TAda2D": {},
    "neither (TSN)": {"calibrate": None, "aggregation": None},
    "aggregation only": {"calibrate": None},
    "calibration only": {"aggregation": None},
    "calibration of output": {"calibrate": "out"},
    # Aggregation mixes frames as well; without it, calibration has to.
    "no context": {"aggregation": None, "routing_kernel_sizes": [1, 1], "routing_global_context": False},
    "global context": {"aggregation": None, "routing_kernel_sizes": [1, 1]},
    "local context": {"aggregation": None, "routing_global_context": False},
    "one layer of 1": {"aggregation": None, "routing_kernel_sizes": [1]},
    "one layer of 3": {"aggregation": None, "routing_kernel_sizes": [3]},
    "r = 2": {"routing_ratio": 2},
    "r = 8": {"routing_ratio": 8},
    "aggregation by max": {"aggregation": "max"},
    "aggregation by mix": {"aggregation": "mix"},
}
"""By name, what differs from TAda2D as the paper has it, in the form that a recipe's YAML has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """An ablation's question, and the paper's answer."""

    name: str
    """The question in words."""
    order: tuple[tuple[str, ...], ...]
    """Variants from worst to best; those that the paper finds alike, or whose order is not known here, together."""


QUESTIONS = (
    Question(
        name="what calibration and aggregation give",
        order=(("neither (TSN)",), ("calibration only", "aggregation only"), ("TAda2D",)),
    ),
    Question(
        name="what calibration should see",
        order=(("no context",), ("global context",), ("local context",), ("calibration only",)),
    ),
    Question(name="one layer or two, on single frames", order=(("one layer of 1",), ("global context",))),
    Question(name="one layer or two, on three frames", order=(("one layer of 3",), ("calibration only",))),
    Question(name="one frame or three, in one layer", order=(("one layer of 1",), ("one layer of 3",))),
    Question(name="which side is calibrated", order=(("calibration of output",), ("TAda2D",))),
    Question(name="how narrow routing is", order=(("r = 2", "r = 8", "TAda2D"),)),
    Question(
        name="how frames are aggregated",
        order=(("calibration only",), ("aggregation by max", "aggregation by mix"), ("TAda2D",)),
    ),
)

Verdict = Literal["as in the paper", "the other way", "undecided"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two variants of which the paper finds the second better."""

    question: str
    worse: str
    better: str
    gain: float
    """Mean over the seeds of the second's top-1 minus the first's."""
    standard_error: float
    """Of that mean; infinite with one seed."""

    @property
    def verdict(self) -> Verdict:
        """The measured answer."""
        if abs(self.gain) < 2 * self.standard_error or self.gain == 0:
            return "undecided"
        return "as in the paper" if self.gain > 0 else "the other way"


def compare(top1: Mapping[str, Sequence[float]]) -> list[Comparison]:
    """Every two variants of which one stands before the other in a question's order, where both were measured.

    Args:
        top1: for each variant, one accuracy for each seed, in the same order of seeds.
    """
    found = []
    for question in QUESTIONS:
        for lower, higher in combinations(question.order, 2):
            for worse, better in product(lower, higher):
                if worse in top1 and better in top1:
                    gains = [b - a for a, b in zip(top1[worse], top1[better], strict=True)]
                    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
                    mean = statistics.fmean(gains)
                    found.append(
                        Comparison(question=question.name, worse=worse, better=better, gain=mean, standard_error=error)
                    )
    return found


def main() -> None:
    """Train and test every variant, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for videos and runs; what it has is kept")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--videos-per-class", type=int, default=150, help="to train on; half as many are tested on")
    arguments = parser.parse_args()

    out: Path = arguments.out
    videos = videos_in(out, arguments.videos_per_class)
    recipe = tada.load_recipe(arguments.recipe, init="none", model=MODEL)
    if arguments.epochs:
        recipe = replace(recipe, epochs=arguments.epochs, warmup_epochs=None)

    top1: dict[str, list[float]] = {}
    parameters: dict[str, int] = {}
    seconds: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):  # all variants of a seed first, so that a part of the work is of use
        for name in arguments.variants:
            run = out / f"seed_{seed}" / name.replace(" ", "_").replace("=", "is")
            wanted = replace(recipe, model_options=VARIANTS[name], seed=seed)
            if not (run / "model.json").exists():
                train(wanted, videos, run, show_progress=False, say=lambda line: None)
            elif tada.load_recipe(run / "recipe.yaml") != wanted:
                raise SystemExit(f"{run} was trained by another recipe: choose another --out")
            result = evaluate(run, videos, show_progress=False, say=lambda line: None)
            top1.setdefault(name, []).append(result.accuracy(1))
            seconds.setdefault(name, []).append(json.loads((run / "metrics.json").read_text())["seconds"])
            parameters[name] = sum(value.numel() for value in load_model(run)[0].parameters())
            print(f"seed {seed}  {name:<22} top-1 {top1[name][-1]:.3f}  ({seconds[name][-1]:.0f} s)", flush=True)

    comparisons = compare(top1)
    show(top1, parameters, seconds, comparisons)
    written = {
        "recipe": asdict(recipe),
        "videos_per_class": arguments.videos_per_class,
        "variants": {
            name: {
                "model_options": VARIANTS[name],
                "parameters": parameters[name],
                "top1": values,
                "seconds": seconds[name],
            }
            for name, values in top1.items()
        },
        "comparisons": [
            asdict(c) | {"standard_error": c.standard_error if len(top1[c.worse]) > 1 else None, "verdict": c.verdict}
            for c in comparisons
        ],
    }
    (out / "ablation.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def videos_in(out: Path, videos_per_class: int) -> Path:
    """The folder of the videos; they are drawn if missing."""
    videos, part = out / "videos", out / "videos.part"
    if not videos.exists():
        test_videos_per_class = max(videos_per_class // 2, 1)
        draw_videos(part, train_videos_per_class=videos_per_class, test_videos_per_class=test_videos_per_class, seed=1)
        part.rename(videos)
    elif len(list((videos / "train").glob("*/*.mp4"))) != videos_per_class * len(MOTIONS):
        raise SystemExit(f"{videos} holds another number of videos: choose another --out")
    return videos


def show(
    top1: Mapping[str, Sequence[float]],
    parameters: Mapping[str, int],
    seconds: Mapping[str, Sequence[float]],
    comparisons: Sequence[Comparison],
) -> None:
    """Print the two tables."""
    console = Console(width=120)
    table = Table("variant", "parameters", "top-1", "seeds", "seconds", title="Generated motion, unseen videos")
    for name, values in top1.items():
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        each = " ".join(f"{value:.3f}" for value in values)
        mean_seconds = f"{statistics.fmean(seconds[name]):.0f}"
        table.add_row(name, f"{parameters[name]:,}", f"{statistics.fmean(values):.3f}{spread}", each, mean_seconds)
    console.print(table)
    for question in QUESTIONS:
        measured = [name for tier in question.order for name in tier if name in top1]
        if len(measured) < 2:
            continue
        order = sorted(measured, key=lambda name: statistics.fmean(top1[name]))
        console.print(f"\n[bold]{question.name}[/bold]")
        console.print(f"  paper     {' < '.join(' ~ '.join(tier) for tier in question.order)}")
        console.print(f"  measured  {' < '.join(f'{name} {statistics.fmean(top1[name]):.3f}' for name in order)}")
        for c in comparisons:
            if c.question == question.name:
                console.print(f"    {c.worse} -> {c.better}: {c.gain:+.3f} ± {c.standard_error:.3f}, {c.verdict}")


if __name__ == "__main__":
    main()
