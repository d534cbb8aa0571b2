"""Videos with two motions at once: mAP of `tada train` on unseen videos, from the weights that ship with tada.

    python benchmarks/several_labels.py OUT

Each video shows none, one or two of left, right, up and down at a time, each by its own patch; the CSV has a column for
each class. The test videos are drawn from other seeds and are not in the training data.
"""

from __future__ import annotations

import argparse
import csv
from itertools import combinations
from pathlib import Path

import numpy as np

from run_lines import ends_in_a_line, output_folder
from tada.data.motion import draw_motions
from tada.recognition.evaluation import evaluate
from tada.recognition.recipe import Recipe
from tada.recognition.results import Evaluation
from tada.recognition.training import train
from tada.video.writer import write_video

CLASSES = ("left", "right", "up", "down")
SETS = [some for size in range(3) for some in combinations(CLASSES, size)]
"""What a video may show: nothing, one motion, or two."""


def write_videos(out: Path, *, count: int, seed: int, easy: bool = False) -> Path:
    """Write so many videos, and the CSV that lists them: ``out/videos.csv``."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        chosen = SETS[number % len(SETS)]
        order = [chosen[int(i)] for i in rng.permutation(len(chosen))]
        frames = draw_motions(order, rng, num_frames=16, width=80, height=64, clutter=0.5, easy=easy)
        name = f"{seed}_{number:04d}.mp4"
        write_video(out / name, frames, fps=8.0)
        rows.append([name, *(int(label in chosen) for label in CLASSES)])
    with (out / "videos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", *CLASSES], *rows])
    return out / "videos.csv"


def measure(out: Path, *, num_training: int, num_tested: int, epochs: int, seed: int = 0) -> Evaluation:
    """Train on some videos, and test on others."""
    data = write_videos(out / "training", count=num_training, seed=seed)
    unseen = write_videos(out / "unseen", count=num_tested, seed=seed + 1000)
    train(Recipe(init="motion", epochs=epochs, seed=seed), data, out / "run")
    return evaluate(out / "run", unseen)


@ends_in_a_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=output_folder, help="a new folder")
    parser.add_argument("--training", type=int, default=220, help="training videos")
    parser.add_argument("--tested", type=int, default=220, help="unseen videos")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = measure(
        options.out,
        num_training=options.training,
        num_tested=options.tested,
        epochs=options.epochs,
        seed=options.seed,
    )
    result.save(options.out / "report")
    print(result)
    for score in result.class_scores():
        print(score)


if __name__ == "__main__":
    main()
