"""A small real data set of untrimmed videos: when does somebody sit down, when does he stand up?

    python benchmarks/thermal.py DATA --out OUT [--seeds 0 1 2] [--tsn-motion RUN] [--videos N]

DATA holds segments.csv (video, start, end, label, subject, split) and its videos: thermal recordings of a room from
above, 64 x 64 pixels, six people, ten classes. Trains on the training split (subjects 1 to 4), tests on the validation
split (5 and 6), TAda2D against TSN: a backbone on the trimmed segments, dense features with it, then ActionFormer and
BMN on these. Nothing is chosen by the test: a detector keeps the weights of its last epoch. Prints mAP at
tIoU 0.3 to 0.7 and every class: mean, lowest and highest of the seeds. Sitting down against standing up shows whether
the order of time is used: no single frame tells them apart. Writes OUT/thermal.json, and a folder for each run; a run
that was interrupted goes on where it was.

TAda2D starts from the motion weights that ship. TSN's do not; ``benchmarks/motion_weights.py OUT --model tsn_tiny``
makes them, by the same recipe, for --tsn-motion; without them, TSN's rows are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import tada
from run_lines import ends_in_a_line, output_folder, positive, trained_model
from tada.localization.annotations.table import SegmentTable, read_segments
from tada.localization.evaluation import evaluate_localizer
from tada.localization.features.extraction import extract
from tada.localization.localizer import load_localizer
from tada.localization.metrics import THUMOS_TIOUS
from tada.localization.recipe import LocalizationRecipe
from tada.localization.train_from_videos import match_videos
from tada.localization.training import train_localizer
from tada.localization.trimmed import cut_clips
from tada.models.weights import CARD_FILE
from tada.recognition.evaluation import evaluate
from tada.recognition.recognizer import load_recognizer
from tada.recognition.training import train
from tada.video.sliding_windows import SlidingWindows

FPS = 9  # of the recordings
DETECTORS = {
    "actionformer": LocalizationRecipe(
        dim=128,
        epochs=40,
        warmup_epochs=4.0,
        batch_size=8,
        last_batch="drop",
        train_on_background=False,
        normaliser=50.0,
    ),
    "bmn": LocalizationRecipe(
        detector="bmn",
        epochs=10,
        warmup_epochs=1.0,
        batch_size=8,
        last_batch="drop",
        learning_rate=1e-3,
        weight_decay=1e-4,
        ema_decay=None,  # a mean over a hundred steps would hold much of the start
    ),
}


@ends_in_a_line()
def main() -> None:
    """Train and test every combination, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=output_folder, default=Path("runs/thermal"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backbone-recipe", default="gestures")
    parser.add_argument("--tsn-motion", type=trained_model, help="the folder of TSN's motion weights")
    parser.add_argument("--stride-frames", type=float, default=2, help="from one feature to the next")
    parser.add_argument("--only", default="", help="rows that begin so, such as 'tada2d_tiny' or 'tsn_tiny bmn'")
    parser.add_argument("--videos", type=positive, help="only so many of each split, to see that it runs")
    parser.add_argument("--epochs", type=positive, help="of all trainings, to see that it runs")
    arguments = parser.parse_args()

    inits = {"tada2d_tiny": "motion"}
    if arguments.tsn_motion is not None:
        inits["tsn_tiny"] = str(arguments.tsn_motion)
    names = [f"{model} {detector}" for model in inits for detector in DETECTORS]
    if not any(name.startswith(arguments.only) for name in names):
        raise SystemExit(f"--only: no row begins with {arguments.only!r}; there are {', '.join(map(repr, names))}")
    table = read_segments(arguments.data / "segments.csv")
    if arguments.videos is not None:
        parts = [table.of_split(split).videos for split in ("train", "val")]
        chosen = [v for part in parts for v in part[:: max(len(part) // arguments.videos, 1)]]
        table = replace(table, videos=tuple(chosen))
    table, files = match_videos(table, arguments.data, show_progress=False)
    clips = cut_clips(table, files, arguments.out / "clips", show_progress=False)
    lengths = [s.seconds for video in table.of_split("train").videos for s in video.segments]
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in arguments.seeds:
        for model, init in inits.items():
            detectors = {name: own for name, own in DETECTORS.items() if f"{model} {name}".startswith(arguments.only)}
            if not detectors:
                continue
            started = time.perf_counter()
            folder = arguments.out / f"{model}_seed_{seed}"
            recipe = replace(tada.load_recipe(arguments.backbone_recipe), model=model, init=init, seed=seed)
            recipe = replace(recipe, flip_probability=0.5)  # the room has no left and right, and no class has
            recipe = _shortened(recipe, arguments.epochs)
            backbone = folder / "backbone"
            if not (backbone / CARD_FILE).exists():
                is_started = (backbone / "resume" / "last.ckpt").exists()
                train(recipe, clips.of_split("train"), backbone, val_fraction=0, resume=is_started, show_progress=False)
            trimmed = evaluate(backbone, clips.of_split("val"), split="val", show_progress=False).accuracy()
            recognizer = load_recognizer(backbone)
            settings = SlidingWindows.for_clips(
                recognizer.clip, stride_seconds=arguments.stride_frames / FPS, segment_seconds=lengths
            )
            extract(recognizer, files, folder / "features", settings, show_progress=False)
            seconds = time.perf_counter() - started
            for detector, own in detectors.items():
                row = f"{model} {detector}"
                found = _detect(replace(_shortened(own, arguments.epochs), seed=seed), table, folder, detector)
                rows.setdefault(row, []).append(found | {"trimmed_top1": trimmed, "backbone_seconds": seconds})
                print(f"{row}, seed {seed}: mAP {found['average_map']:.3f}, trimmed top-1 {trimmed:.3f}", flush=True)
                (arguments.out / "thermal.json").write_text(json.dumps(rows, indent=2) + "\n")
    _print(rows)


def _shortened(recipe: Any, epochs: int | None) -> Any:
    if epochs is None:
        return recipe
    warmup_epochs = recipe.warmup_epochs if recipe.warmup_epochs is None else min(recipe.warmup_epochs, epochs)
    return replace(recipe, epochs=epochs, warmup_epochs=warmup_epochs)


def _detect(recipe: LocalizationRecipe, table: SegmentTable, folder: Path, name: str) -> dict[str, Any]:
    """Train on the training videos alone, so that no epoch is chosen by the test; then test."""
    run = folder / name
    started = time.perf_counter()
    if not (run / "localizer.json").exists():
        is_started = (run / "resume" / "last.ckpt").exists()
        training = table.of_split("train")
        train_localizer(recipe, folder / "features", training, run, resume=is_started, show_progress=False)
    result = evaluate_localizer(
        load_localizer(run), folder / "features", table, tiou_thresholds=THUMOS_TIOUS, split="val", show_progress=False
    )
    result.save(run / "evaluation", overwrite=True)
    return result.as_dict() | {"detector_seconds": time.perf_counter() - started}


def _print(rows: dict[str, list[dict[str, Any]]]) -> None:
    report = Table("trained on subjects 1-4, tested on 5-6", *(f"mAP@{t:g}" for t in THUMOS_TIOUS), "average")
    for row, found in rows.items():
        per_threshold = [statistics.mean(entry["map"][f"{t:g}"] for entry in found) for t in THUMOS_TIOUS]
        average = [entry["average_map"] for entry in found]
        report.add_row(row, *(f"{value:.3f}" for value in per_threshold), _spread(average))
    Console(width=130).print(report)
    labels = sorted({label for found in rows.values() for entry in found for label in entry["per_class"]})
    report = Table("average precision", *rows)
    for label in labels:
        report.add_row(label, *(_spread([entry["per_class"][label] for entry in found]) for found in rows.values()))
    Console(width=130).print(report)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
