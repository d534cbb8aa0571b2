"""Make the weights that ship with tada: a small network learns generated motion.

    python benchmarks/motion_weights.py OUT                     # tada2d_tiny, into the package
    python benchmarks/motion_weights.py OUT --model tsn_tiny    # the same for TSN; stays in OUT
    python benchmarks/motion_weights.py OUT --model tada_lite0  # its calibrations alone, kernels frozen at ImageNet's
    python benchmarks/motion_weights.py OUT --seed 1            # other ones, for claims.py; stay in OUT

Learns the quickstart's easy videos of eight motions first, then hard ones of all motions and strokes (recipe
``motion``): from random weights the hard ones are learned late or never. Tests on unseen videos, and prints how many of
each class were right. Reproducible: the same command gives the same weights on the same kind of machine. What OUT holds
already is used: an interrupted call goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import tada
from run_lines import ends_in_a_line, output_folder
from tada.data.annotations import read_dataset
from tada.data.motion import MOTIONS, STROKES, write_motion_videos
from tada.models.weights import CARD_FILE, load_model, save_model
from tada.recognition.evaluation import evaluate
from tada.recognition.quickstart import draw_videos
from tada.recognition.recipe import Recipe
from tada.recognition.training import train

PACKAGE = Path(tada.__file__).parent / "models" / "weights_data"
# The eight motions are to be known for themselves; strokes are there so that the weights know more of real videos.
TURNS = ("clockwise", "counterclockwise")  # the hardest
TRAIN_VIDEOS = {TURNS: 360, tuple(m for m in MOTIONS if m not in TURNS): 150, STROKES: 80}
TEST_VIDEOS = {MOTIONS: 40, STROKES: 10}
FROM_IMAGES: dict[str, dict[str, Any]] = {
    "tada_lite0": {
        "train": "calibration",
        "epochs": 8,
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "weight_decay": 0.01,
    }
}
"""Models that know images: what differs from the recipe. They need no easy videos first."""


@ends_in_a_line()
def main() -> None:
    """Draw videos, train, test, save the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=output_folder, help="a folder for the videos and the runs")
    parser.add_argument("--model", default="tada2d_tiny", choices=tada.list_models(), metavar="MODEL")
    parser.add_argument("--videos", type=output_folder, help="videos that an earlier call has drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings; the videos are always the same")
    arguments = parser.parse_args()

    out: Path = arguments.out
    videos: Path = arguments.videos or out / "videos"
    _draw_once(videos, _draw_hard)
    read_dataset(videos)  # a folder of anything else is told before the easy ones are drawn and learned
    seed: int = arguments.seed
    of_seed = f"_seed_{seed}" if seed else ""
    recipe = replace(tada.load_recipe("motion"), model=arguments.model, seed=seed)
    if arguments.model in FROM_IMAGES:
        recipe = replace(recipe, init="image", **FROM_IMAGES[arguments.model])
    else:
        easy = out / f"{arguments.model}_easy{of_seed}"
        _draw_once(out / "easy", partial(draw_videos, train_videos_per_class=150, test_videos_per_class=20, seed=0))
        _train(tada.load_recipe("quickstart", model=arguments.model, seed=seed), out / "easy", easy)
        recipe = replace(recipe, init=str(easy))
    run = out / f"{arguments.model}{of_seed}"
    _train(recipe, videos, run)
    result = evaluate(run, videos)
    result.save(run / "evaluation", overwrite=True)
    per_class = result.per_class()
    for label, (top1, count) in sorted(per_class.items()):
        print(f"{label:<24}{top1:6.3f}  of {count}")
    motions = sum(per_class[motion][0] for motion in MOTIONS) / len(MOTIONS)
    print(f"{arguments.model}: top-1 {result.accuracy(1):.3f} over all, {motions:.3f} over the eight motions")

    model, card = load_model(run)
    card = replace(
        card,
        metrics={"generated_top1": result.accuracy(1), "generated_motions_top1": motions},
        made_by=f"python benchmarks/motion_weights.py OUT --model {arguments.model}{f' --seed {seed}' if seed else ''}",
        license="Apache-2.0",
        trained_from="the image weights" if arguments.model in FROM_IMAGES else "random weights, easy motions first",
    )
    ships = arguments.model.startswith("tada2d") and seed == 0
    folder = (PACKAGE if ships else out) / f"{arguments.model}_motion{of_seed}"
    save_model(folder, model, card)
    print(json.dumps({"weights": str(folder), **card.metrics}, indent=2))


def _draw_hard(folder: Path) -> None:
    for split, counts, seed in (("train", TRAIN_VIDEOS, 7), ("test", TEST_VIDEOS, 8)):
        for motions, count in counts.items():
            write_motion_videos(folder / split, videos_per_class=count, seed=seed, motions=motions)


def _draw_once(folder: Path, draw: Callable[[Path], None]) -> None:
    """Draw the videos of a folder, unless it is there; it gets its name when it is whole."""
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        draw(part)
        part.rename(folder)


def _train(recipe: Recipe, videos: Path, run: Path) -> None:
    """Train, unless the run is whole; go on if it has begun."""
    if not (run / CARD_FILE).exists():
        train(recipe, videos, run, resume=(run / "resume" / "last.ckpt").exists())


if __name__ == "__main__":
    main()
