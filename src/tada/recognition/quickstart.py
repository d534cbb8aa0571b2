"""Quickstart: draw videos, train two models on them, test both and predict one video.

The videos show eight classes of motion: four pairs, each a motion and its time reversal. So the two classes of a pair
differ only in the order of their frames. A network that averages over frames (TSN) can be right on half of the videos;
one that uses their order (TAda2D) on all.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tada.data.motion import MOTIONS, write_motion_videos
from tada.display.plots import save_comparison
from tada.errors import OptionError
from tada.recognition.evaluation import evaluate
from tada.recognition.recipe import load_recipe
from tada.recognition.recognizer import load_recognizer
from tada.recognition.training import train
from tada.system.files import write_whole
from tada.system.locks import holds, is_used
from tada.system.progress import Work

MODELS = {"tada2d": "tada2d_tiny", "tsn": "tsn_tiny"}
"""Names in the result -> the network, and the same network with averaging over frames."""


@holds("out")
def quickstart(
    out: Path,
    *,
    seed: int = 0,
    train_videos_per_class: int = 150,
    test_videos_per_class: int = 20,
    epochs: int | None = None,
    show_progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Draw videos, train both models with the same recipe, test them on unseen videos, predict one.

    Args:
        out: a new or empty folder. It receives videos/, one run for each model, comparison.png, prediction.png and
            result.json.
        epochs: by default those of the recipe ``quickstart``.

    Returns:
        The content of result.json: for each model top1, seconds (training time) and more.

    Raises:
        OptionError: ``out`` is not empty.
        OutputError: ``out`` cannot be written, or another process writes into it.
    """
    if is_used(out):
        raise OptionError(f"{out} is not empty: choose another folder with --out, or remove it")
    started = time.perf_counter()
    # Half of the cores train and half decode: the network is so small that more threads would only wait.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    say(f"drawing {len(MOTIONS) * (train_videos_per_class + test_videos_per_class)} videos of {', '.join(MOTIONS)}")
    draw_videos(
        out / "videos",
        train_videos_per_class=train_videos_per_class,
        test_videos_per_class=test_videos_per_class,
        seed=seed,
        show_progress=show_progress,
    )
    recipe = load_recipe("quickstart", seed=seed)
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs)
    result: dict[str, Any] = {}
    per_class = {}
    for name, model in MODELS.items():
        say(f"training {model}")
        run = out / name
        trained = train(replace(recipe, model=model), out / "videos", run, show_progress=show_progress, say=say)
        test = evaluate(run, out / "videos", show_progress=show_progress, say=say)
        test.save(run / "evaluation")
        of_class = test.per_class()
        per_class[model] = {motion: of_class[motion][0] for motion in MOTIONS}  # time-reversed pairs beside each other
        result[name] = {"model": model, "top1": test.accuracy(1), "seconds": trained.seconds}
        result[name]["per_class"] = per_class[model]
        say(f"{model}: {test.accuracy(1):.3f} of {len(test.paths)} unseen videos right")
    save_comparison(per_class, out / "comparison.png", title="Generated motion, unseen videos")

    video = sorted((out / "videos" / "test" / MOTIONS[0]).iterdir())[0]
    prediction = load_recognizer(out / "tada2d").predict(video)
    prediction.plot(out / "prediction.png")
    result["prediction"] = prediction.as_dict()
    result["seconds"] = time.perf_counter() - started
    write_whole(out / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    say(f"{video} shows: {prediction.label} ({prediction.top(1)[0][1]:.2f})")
    say(f"all files are in {out}, the numbers in {out / 'result.json'} ({result['seconds']:.0f} s)")
    return result


def draw_videos(
    out: Path, *, train_videos_per_class: int, test_videos_per_class: int, seed: int, show_progress: bool = False
) -> None:
    """Write the quickstart's videos into out/train and out/test: easy, small and short, to train in minutes."""
    total = len(MOTIONS) * (train_videos_per_class + test_videos_per_class)
    with Work("drawing", total, noun="videos", is_shown=show_progress) as work:
        for split, count, own_seed in (
            ("train", train_videos_per_class, 2 * seed),
            ("test", test_videos_per_class, 2 * seed + 1),
        ):
            write_motion_videos(
                out / split,
                videos_per_class=count,
                seed=own_seed,
                num_frames=12,
                width=64,
                height=48,
                clutter=(0.0, 0.15),
                easy=True,
                progress=lambda done, of_split: work.advance(),
            )
