"""TAdaConv as a plug-in: small video networks with and without, trained alike.

    python benchmarks/plugin.py --out OUT [--data DATA --val-group GROUP] [--seeds 3]

Draws videos of eight motions that differ only in the order of frames (``tada.data.motion``), trains SlowOnly, R(2+1)D
and R3D for the CPU from scratch, as they are and adapted, with one recipe and the same initial kernels for both, and
tests on unseen videos. DATA, a folder or CSV as ``tada train`` takes it, replaces the drawn videos; the named group, or
a part of each class, is then held out.

Prints top-1 (mean of the seeds, lowest to highest), the gain of each seed, parameters, multiply-adds of a clip and
seconds of training. Writes OUT/plugin.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import tada
from tada.data.annotations import read_dataset
from tada.data.motion import write_motion_videos
from tada.recognition.evaluation import evaluate
from tada.recognition.training import train

HOSTS = ("slowonly_tiny", "r2plus1d_tiny", "r3d_tiny")


def main() -> None:
    """Train and test every network, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for videos and runs")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--val-group", help="of DATA's column group")
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--videos-per-class", type=int, default=150)
    parser.add_argument("--hosts", nargs="+", default=HOSTS)
    arguments = parser.parse_args()

    out: Path = arguments.out
    data: Path = arguments.data or out / "videos"
    if arguments.data is None:
        count = arguments.videos_per_class
        for split, videos_per_class, seed in (("train", count, 1), ("val", max(count // 3, 1), 2)):
            # As the quickstart's, but with all the clutter.
            write_motion_videos(
                data / split,
                videos_per_class=videos_per_class,
                seed=seed,
                num_frames=12,
                width=64,
                height=48,
                easy=True,
            )
    table = read_dataset(data)
    groups = [arguments.val_group] if arguments.val_group else []
    recipe = replace(tada.load_recipe(arguments.recipe), init="none")
    if arguments.epochs:
        recipe = replace(recipe, epochs=arguments.epochs, warmup_epochs=None)

    rows: dict[str, dict[str, Any]] = {}
    for host in arguments.hosts:
        for adapted in (False, True):
            name = f"{host}, adapted" if adapted else host
            rows[name] = cost(host, adapted, recipe) | {"top1": [], "seconds": []}
            for seed in range(arguments.seeds):
                run = out / name.replace(", ", "_") / f"seed_{seed}"
                options = {"adapted": True} if adapted else {}
                started = time.perf_counter()
                train(
                    replace(recipe, model=host, model_options=options, seed=seed),
                    table,
                    run,
                    val_groups=groups,
                    show_progress=False,
                )
                rows[name]["seconds"].append(time.perf_counter() - started)
                rows[name]["top1"].append(evaluate(run, table, show_progress=False).accuracy(1))
                print(f"{name}, seed {seed}: {rows[name]['top1'][-1]:.3f}", flush=True)
            (out / "plugin.json").write_text(json.dumps(rows, indent=2) + "\n")
    show(rows)


def cost(host: str, adapted: bool, recipe: tada.Recipe) -> dict[str, int]:
    """Parameters of a host, and its multiply-adds for a clip."""
    with torch.device("meta"):
        model = tada.create_model(host, num_classes=8, adapted=adapted).eval()
        clip = torch.empty(1, 3, recipe.clip.num_frames, recipe.clip.crop, recipe.clip.crop)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(clip)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,
    }


def show(rows: dict[str, dict[str, Any]]) -> None:
    """Print the table; beside an adapted network what it gains on the same seed."""
    table = Table("", "top-1", "gain of each seed", "parameters", "M multiply-adds", "seconds")
    for name, row in rows.items():
        plain = rows[name.removesuffix(", adapted")]
        gains = [after - before for before, after in zip(plain["top1"], row["top1"], strict=True)]
        table.add_row(
            name,
            f"{statistics.mean(row['top1']):.3f} ({min(row['top1']):.2f} to {max(row['top1']):.2f})",
            "" if row is plain else ", ".join(f"{gain:+.3f}" for gain in gains),
            f"{row['parameters']:,}",
            f"{row['multiply_adds'] / 1e6:.1f}",
            f"{statistics.mean(row['seconds']):.0f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
