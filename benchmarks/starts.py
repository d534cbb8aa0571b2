"""Which start serves 150 real clips best? What `tada train` does by default is chosen by this table.

    python benchmarks/starts.py DATA [--only START ...] [--runs 3] [--lite-motion RUN]
    python benchmarks/starts.py --report                    # the page alone, of what was run so far

DATA holds the folders lips, gestures, interactions and thermal, as in benchmarks.md. Run s of every start trains with
seed s on at most 150 clips, the same for all, and is tested on groups (speakers, rooms, recordings, subjects) that
training has not seen. Each run becomes a line of benchmarks/starts.jsonl; one that has a line is not repeated. The
table is written to PAGE/starts.md.

``--lite-motion`` is the run of `python benchmarks/motion_weights.py OUT --model tada_lite0`; without it, the starts
from these weights are left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from claims_report import Rows
from run_lines import (
    ends_in_a_line,
    fault_of_counts,
    output_file,
    output_folder,
    positive,
    read_runs,
    run_all,
    trained_model,
)
from tada.data.annotations import read_dataset
from tada.data.table import VideoTable
from tada.localization.annotations.table import read_segments
from tada.localization.train_from_videos import match_videos
from tada.localization.trimmed import cut_clips
from tada.recognition.evaluation import evaluate
from tada.recognition.recipe import Recipe
from tada.recognition.training import train

HERE = Path(__file__).parent
OWN_LINES = HERE / "starts.jsonl"
NUM_CLIPS = 150
"""To train on, at most: evenly of all classes."""
LITE_MOTION = "LITE_MOTION"
"""Stands for the folder that --lite-motion names."""


def square(pixels: int) -> dict[str, Any]:
    """The recipe's default clip, enlarged or reduced to a crop of so many pixels."""
    return {
        "clip": replace(Recipe().clip, short_side=round(pixels * 55 / 48), crop=pixels),
        "short_side_range": (pixels, round(pixels * 64 / 48)),
    }


_LITE = square(64) | {
    "model": "tada_lite0",
    "init": "image",
    "epochs": 15,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "head_learning_rate_factor": 2.0,
    "weight_decay": 0.01,
}
STARTS: dict[str, dict[str, Any]] = {
    "tada2d_tiny, nothing, 48 pixels": {"init": "none"},
    "tada2d_tiny, motion, 48 pixels": {},
    "tada2d_tiny, motion, 80 pixels": square(80),
    "tada2d_tiny, motion, 112 pixels": square(112),
    "tada2d_tiny, motion, 48 pixels, calibration": {"train": "calibration"},
    "tada_lite0, image, 64 pixels": _LITE,
    "tada_lite0, image, 64 pixels, calibration": _LITE | {"train": "calibration"},
    "tada_lite0, image and motion, 64 pixels": _LITE | {"init": LITE_MOTION},
    "tada_lite0, image and motion, 64 pixels, calibration": _LITE | {"init": LITE_MOTION, "train": "calibration"},
}
"""By name, what differs from the default recipe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """Clips, and the groups that run s is tested on."""

    folder: str
    """Below DATA."""
    tested: Sequence[str] | int
    """Groups that are tested, or a number f of folds: then groups s, s + f, ... in alphabetical order."""
    only: str = ""
    """Only videos with this in their name."""


DATA_SETS = {
    "lips": DataSet(folder="lips", tested=4, only="_p"),  # phrases
    "gestures": DataSet(folder="gestures", tested=["A"]),
    "interactions": DataSet(folder="interactions", tested=3),
    "thermal": DataSet(folder="thermal", tested=["val"]),
}


@ends_in_a_line()
def main() -> None:
    """Run what is missing, then show everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument(
        "--out", type=output_file, default=OWN_LINES, help="file of the runs; by default the repository's"
    )
    parser.add_argument(
        "--page", type=output_folder, help="a folder for the table; by default docs, or beside --out if given"
    )
    parser.add_argument(
        "--clips", type=output_folder, default=Path("runs/thermal/clips"), help="for thermal segments (%(default)s)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=STARTS,
        default=list(STARTS),
        metavar="START",
        help="; ".join(f"'{name}'" for name in STARTS),
    )
    parser.add_argument(
        "--sets", nargs="+", choices=DATA_SETS, default=list(DATA_SETS), metavar="SET", help=", ".join(DATA_SETS)
    )
    parser.add_argument("--lite-motion", type=trained_model, help="the folder of tada_lite0's motion weights")
    parser.add_argument("--runs", type=positive, default=3, help="of each start (3)")
    parser.add_argument("--workers", type=positive, default=2, help="processes of one thread each (2)")
    parser.add_argument("--report", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if not arguments.report:
        if arguments.data is None:
            parser.error("DATA is missing, or --report")
        run_missing(arguments)
    page = arguments.page or (HERE.parent / "docs" if arguments.out == OWN_LINES else arguments.out.parent)
    show(read_runs(arguments.out, fault_of_counts), page)


def run_missing(arguments: argparse.Namespace) -> None:
    """Train what has no line yet: all first runs, then all second ones, ..."""
    done = {(line["start"], line["set"], line["run"]) for line in read_runs(arguments.out, fault_of_counts)}
    wanted = [
        (start, name, run)
        for run in range(arguments.runs)
        for start in arguments.only
        for name in arguments.sets
        if (start, name, run) not in done
        and (arguments.lite_motion is not None or STARTS[start].get("init") != LITE_MOTION)
    ]
    tables = {name: read(DATA_SETS[name], arguments.data, arguments.clips) for name in {name for _, name, _ in wanted}}
    jobs = [(*job, tables[job[1]], arguments.lite_motion) for job in wanted]
    run_all(train_and_test, jobs, arguments.out, num_workers=arguments.workers)


def read(data_set: DataSet, data: Path, clips: Path) -> VideoTable:
    """The videos of a data set; of thermal recordings, which are untrimmed, their segments."""
    folder = data / data_set.folder
    if not folder.is_dir():
        raise SystemExit(
            f"DATA: {folder} is missing; give the folder that holds {data_set.folder}, or leave it out (--sets)"
        )
    if (folder / "segments.csv").exists():
        segments, files = match_videos(read_segments(folder / "segments.csv"), folder, show_progress=False)
        table = cut_clips(segments, files, clips, show_progress=False)
        return replace(table, videos=tuple(replace(video, group=video.split, split=None) for video in table.videos))
    table = read_dataset(folder / "clips.csv")
    chosen = tuple(video for video in table.videos if data_set.only in Path(video.path).name)
    labels = sorted({table.label_names(video)[0] for video in chosen})
    own = {table.labels.index(label): number for number, label in enumerate(labels)}
    videos = tuple(replace(video, labels=(own[video.labels[0]],)) for video in chosen)
    return replace(table, heads=(replace(table.heads[0], labels=tuple(labels)),), videos=videos)


def split(table: VideoTable, data_set: DataSet, run: int) -> tuple[VideoTable, VideoTable]:
    """At most NUM_CLIPS videos to train on, evenly of all classes, and all of the groups to test on."""
    tested = data_set.tested
    if isinstance(tested, int):
        tested = table.groups[run % tested :: tested]
    parts = [tuple(v for v in table.videos if (v.group in tested) == is_test) for is_test in (False, True)]
    # Groups have done their part: without them, training does not ask for some to hold out.
    training, test = (replace(table, videos=tuple(replace(v, group=None) for v in videos)) for videos in parts)
    return training.limited(NUM_CLIPS, seed=run), test


def train_and_test(start: str, name: str, run: int, table: VideoTable, lite_motion: Path | None) -> dict[str, object]:
    """One run: its line."""
    torch.set_num_threads(1)
    changes = STARTS[start]
    if changes.get("init") == LITE_MOTION:
        changes |= {"init": str(lite_motion)}
    recipe = replace(Recipe(), **changes, seed=run)
    training, test = split(table, DATA_SETS[name], run)
    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(recipe, training, out, val_fraction=0, num_workers=0, show_progress=False, say=lambda line: None)
        seconds = time.perf_counter() - started
        result = evaluate(out, test, num_workers=0, show_progress=False, say=lambda line: None)
    right = result.scores.argmax(1) == result.targets[:, 0]
    return {
        "start": start,
        "set": name,
        "run": run,
        "trained_on": len(training),
        "right": int(right.sum()),
        "count": len(right),
        "seconds": round(seconds),
    }


def show(lines: Sequence[Mapping[str, Any]], page: Path) -> None:
    """Print the table, and write it to PAGE/starts.md: a row for each start, the best mean of all data sets first."""
    top1: dict[str, dict[str, list[float]]] = {}
    fastest: dict[str, dict[str, float]] = {}
    for line in sorted(lines, key=lambda line: int(line["run"])):
        top1.setdefault(line["start"], {}).setdefault(line["set"], []).append(line["right"] / line["count"])
        of_sets = fastest.setdefault(line["start"], {})
        of_sets[line["set"]] = min(line["seconds"], of_sets.get(line["set"], line["seconds"]))
    rows = []
    for start, found in top1.items():
        means = {name: statistics.fmean(runs) for name, runs in found.items()}
        cells = [
            f"{means[name]:.2f} ({', '.join(f'{run:.2f}' for run in found[name])})" if name in found else ""
            for name in DATA_SETS
        ]
        mean = f"{statistics.fmean(means.values()):.3f}" if len(means) == len(DATA_SETS) else ""
        rows.append((mean, start, *cells, f"{statistics.fmean(fastest[start].values()) / 60:.1f}"))
    table = Rows(
        title="Starts",
        header=("mean", "network, first weights, pixels", *DATA_SETS, "minutes of a core"),
        rows=sorted(rows, reverse=True),
    )
    Console(width=150).print(table.to_print())
    page.mkdir(parents=True, exist_ok=True)
    (page / "starts.md").write_text(f"{_HEAD}\n\n{table.to_markdown()}\n", encoding="utf-8")


_HEAD = f"""# The start that serves few real clips best

Written by `python benchmarks/starts.py --report` from `benchmarks/starts.jsonl`. Top-1 on groups that training has not
seen, the mean and each run. Run s of every start has seed s and the same clips, at most {NUM_CLIPS}. "calibration":
only the classifier, routing functions and second norms are trained. Minutes: of one training, on one core, with other
work beside it; of each data set's fastest run, the mean over data sets."""


if __name__ == "__main__":
    main()
