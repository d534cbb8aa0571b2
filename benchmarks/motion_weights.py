"""Make the weights that ship with tada: a small network learns generated motion.

    python benchmarks/motion_weights.py OUT                     # tada2d_tiny, into the package
    python benchmarks/motion_weights.py OUT --model tsn_tiny    # the same for TSN; stays in OUT

Draws videos of all motions and strokes, trains with the recipe ``motion``, tests on unseen videos, and prints how many
of each class were right. Reproducible: the same command gives the same weights on the same kind of machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import tada
from tada.data.motion import MOTIONS, STROKES, write_motion_videos
from tada.models.weights import load_model, save_model
from tada.recognition.evaluation import evaluate
from tada.recognition.training import train

PACKAGE = Path(tada.__file__).parent / "models" / "weights_data"
# The eight motions are to be known for themselves; strokes are there so that the weights know more of real videos.
TURNS = ("clockwise", "counterclockwise")  # the hardest
TRAIN_VIDEOS = {TURNS: 360, tuple(m for m in MOTIONS if m not in TURNS): 150, STROKES: 80}
TEST_VIDEOS = {MOTIONS: 40, STROKES: 10}


def main() -> None:
    """Draw videos, train, test, save the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new folder for the videos and the run")
    parser.add_argument("--model", default="tada2d_tiny")
    parser.add_argument("--videos", type=Path, help="videos that an earlier call has drawn")
    arguments = parser.parse_args()

    out: Path = arguments.out
    videos: Path = arguments.videos or out / "videos"
    if arguments.videos is None:
        for split, counts, seed in (("train", TRAIN_VIDEOS, 7), ("test", TEST_VIDEOS, 8)):
            for motions, count in counts.items():
                write_motion_videos(videos / split, videos_per_class=count, seed=seed, motions=motions)
    run = out / arguments.model
    train(replace(tada.load_recipe("motion"), model=arguments.model), videos, run)
    result = evaluate(run, videos)
    result.save(run / "evaluation")
    per_class = result.per_class()
    for label, (top1, count) in sorted(per_class.items()):
        print(f"{label:<24}{top1:6.3f}  of {count}")
    motions = sum(per_class[motion][0] for motion in MOTIONS) / len(MOTIONS)
    print(f"{arguments.model}: top-1 {result.accuracy(1):.3f} over all, {motions:.3f} over the eight motions")

    model, card = load_model(run)
    card = replace(
        card,
        metrics={"generated_top1": result.accuracy(1), "generated_motions_top1": motions},
        made_by=f"python benchmarks/motion_weights.py OUT --model {arguments.model}",
        license="Apache-2.0",
    )
    folder = (PACKAGE if arguments.model.startswith("tada2d") else out) / f"{arguments.model}_motion"
    save_model(folder, model, card)
    print(json.dumps({"weights": str(folder), **card.metrics}, indent=2))


if __name__ == "__main__":
    main()
