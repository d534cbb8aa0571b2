"""A small real data set in which time order decides: does motion learned on drawn videos help on real ones?

    python benchmarks/gestures.py DATA --out OUT [--seeds 3] [--tsn-motion RUN] [--parts]

DATA holds clips.csv (video, label, group) and its videos: first-person clips of a hand that draws in the air, recorded
in two groups. Trains on group C, tests on group A (other rooms, other days), TAda2D against TSN, each from scratch and
from weights that learned generated motion, with the same recipe (``gestures``). Prints top-1 over all ten classes and
on {left, right, up, down} alone: mean, lowest and highest of the seeds. Writes OUT/gestures.json and one run for each.

With --parts: accuracy if only the classifier, or the classifier and the calibration, are trained from the motion
weights (``--train head``, ``calibration`` and ``all``).

TSN's motion weights do not ship; ``benchmarks/motion_weights.py OUT --model tsn_tiny`` makes them, by the same recipe.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import tada
from run_lines import ends_in_a_line, output_folder, positive, trained_model
from tada.data.annotations import read_dataset
from tada.data.views import Views
from tada.models import create_model
from tada.recognition.evaluation import evaluate
from tada.recognition.trained_part import train_only
from tada.recognition.training import train

DIRECTIONS = ("left", "right", "up", "down")


@ends_in_a_line()
def main() -> None:
    """Train and test every combination, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=output_folder, default=Path("runs/gestures"))
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--recipe", default="gestures")
    parser.add_argument(
        "--tsn-motion",
        type=trained_model,
        help="the folder of TSN's motion weights; without it, TSN's rows from motion weights are left out",
    )
    parser.add_argument("--parts", action="store_true", help="in place of the other rows: parts of a network trained")
    parser.add_argument("--only", help="one row alone, such as 'tada2d_tiny from motion weights'")
    arguments = parser.parse_args()

    recipe = tada.load_recipe(arguments.recipe)
    table = read_dataset(arguments.data / "clips.csv")
    starts = {
        "tada2d_tiny from scratch": ("tada2d_tiny", "none", "all"),
        "tsn_tiny from scratch": ("tsn_tiny", "none", "all"),
        "tada2d_tiny from motion weights": ("tada2d_tiny", "motion", "all"),
    }
    if arguments.tsn_motion is not None:
        starts["tsn_tiny from motion weights"] = ("tsn_tiny", str(arguments.tsn_motion), "all")
    if arguments.parts:
        starts = {f"--train {part}": ("tada2d_tiny", "motion", part) for part in ("head", "calibration", "all")}
    if arguments.only not in (None, *starts):
        raise SystemExit(f"--only: no row is called {arguments.only!r}; there are {', '.join(map(repr, starts))}")
    rows = {}
    for row, (model, init, part) in starts.items():
        if arguments.only not in (None, row):
            continue
        network = create_model(model, num_classes=len(table.labels))
        train_only(network, part, model)
        count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        rows[row] = {"top1": [], "directions_top1": [], "seconds": [], "trained_parameters": count}
        for seed in range(arguments.seeds):
            run = arguments.out / row.lstrip("-").replace(" ", "_") / f"seed_{seed}"
            started = time.perf_counter()
            own = replace(recipe, model=model, init=init, train=part, seed=seed)
            train(own, table, run, val_groups=["A"], show_progress=False)
            result = evaluate(run, table, views=Views(num_clips=3), show_progress=False)
            result.save(run / "evaluation")
            right = result.scores.argmax(1) == result.targets[:, 0]
            directed = np.isin(result.targets[:, 0], [result.labels.index(name) for name in DIRECTIONS])
            assert len(right) == 100, "group A has 100 clips"
            rows[row]["top1"].append(float(right.mean()))
            rows[row]["directions_top1"].append(float(right[directed].mean()))
            rows[row]["seconds"].append(time.perf_counter() - started)
            print(f"{row}, seed {seed}: {right.mean():.3f}, directions {right[directed].mean():.3f}", flush=True)
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "gestures.json").write_text(json.dumps(rows, indent=2) + "\n")

    report = Table("trained on C, tested on A", "top-1", "left, right, up, down", "trained parameters", "seconds")
    for row, values in rows.items():
        report.add_row(
            row,
            _spread(values["top1"]),
            _spread(values["directions_top1"]),
            f"{values['trained_parameters']:,}",
            f"{statistics.mean(values['seconds']):.0f}",
        )
    Console(width=110).print(report)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
