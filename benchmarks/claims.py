"""The paper's claims on small real data: what calibration, aggregation and the plug-in give, with intervals.

    python benchmarks/claims.py DATA [--only EXPERIMENT ...] [--runs 5]
    python benchmarks/claims.py --report                    # the tables and the picture alone, of what was run so far

DATA is a folder with the folders lips, gestures and interactions, each with clips.csv (video, label, group; lips also
kind) and its videos. An experiment trains several arms (networks, or ways in which a network sees time) on the same
clips with the same budget: run s of every arm has seed s and tests on the same groups, so arms are compared run by run.
Each run becomes a line of OUT/runs.jsonl as soon as it is done. A run that has a line is not repeated: an interrupted
benchmark goes on, and the tables of ``--report`` are true at any time. They are written to PAGE/claims.md, with
pictures. CLIPS holds the decoded frames. All experiments with five runs take about twenty hours of two cores.

``--workers`` processes of ``--threads`` threads each train side by side; with ``--device cuda`` all share the GPU.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR

from claims_data import TASKS, Clips, listing_of
from claims_networks import Arm, arms, build, logits, parameter_groups
from claims_report import show
from run_lines import ends_in_a_line, fault_of_counts, output_folder, positive, read_runs, run_all, trained_model
from tada.system.locks import held_folder

HERE = Path(__file__).parent
OWN_FOLDER = HERE / "claims"
BATCH = 16
WARMUP_STEPS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How long and how fast all arms of an experiment learn (AdamW, half a cosine after a warm-up)."""

    epochs: int
    rate: float
    """Peak learning rate of weights that were trained before."""
    new_rate: float
    """That of routing functions, pooled norms and classifiers; from scratch, both are the same."""
    decay: float = 0.01
    """AdamW's weight decay."""


FINE_TUNING = Budget(epochs=6, rate=1e-3, new_rate=2e-3)
FEW_CLIPS = Budget(epochs=20, rate=1e-3, new_rate=2e-3)
SCRATCH = Budget(epochs=24, rate=4e-3, new_rate=4e-3, decay=0.05)
SCRATCH_VARIED = replace(SCRATCH, epochs=40)
SCRATCH_LAYER_NORMS = replace(SCRATCH, rate=2e-3, new_rate=2e-3)
# Of gestures' 146 clips, about as many steps as of 900 phrases.
FINE_TUNING_GESTURES = replace(FINE_TUNING, epochs=40)
SCRATCH_GESTURES = replace(SCRATCH, epochs=120)

OWN_MOTION = "motion weights of each seed"
"""The experiment that needs --motion-weights."""
WAYS = ("averaged frames", "shift", "aggregation", "calibration", "both")
IMAGE_HOSTS = [
    *arms("mobilenetv2", ("plain", "adapted"), "ImageNet"),
    *arms("tada_lite0", ("averaged frames", "calibration"), "ImageNet"),
]
SMALL_HOSTS = [
    arm for host in ("slowonly_tiny", "r2plus1d_tiny", "r3d_tiny") for arm in arms(host, ("plain", "adapted"))
]
WIDTHS = [  # of the routing functions' hidden layers; by default C / 4, but at most 6
    arm for r in (4, 16, 64) for arm in arms("mobilenetv2", ("adapted",), "ImageNet", note=f"r = {r}", ratio=r)
]
_MEAN: dict[str, Any] = {"routing_global_context": True, "routing_head_channels": None}
_ATTENTION: dict[str, Any] = {"routing_global_context": False, "routing_head_channels": 8}


def second_paper(grid: tuple[int, int]) -> tuple[Arm, ...]:
    """The second paper's networks; ``grid`` is TAdaFormer's: rows and columns of patches of 8 x 8 pixels."""
    return (
        *arms("convnext_mini", ("not calibrated",)),
        *(
            arm
            for host in ("tadaconvnext_mini", "tadaconvnextv2_mini")
            for way, own in (("clip's mean", _MEAN), ("attention", _ATTENTION))
            for arm in arms(host, (way,), **own)
        ),
        *arms("tadaformer_tiny", ("not calibrated",), tada_blocks=0, grid=grid),
        *arms("tadaformer_tiny", ("attention",), grid=grid),
    )


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "of the output": ("both", {"calibrate": "out"}),
    # Aggregation mixes frames as well; without it, calibration has to.
    "no context": ("calibration", {"routing_kernel_sizes": (1, 1), "routing_global_context": False}),
    "global context": ("calibration", {"routing_kernel_sizes": (1, 1)}),
    "local context": ("calibration", {"routing_global_context": False}),
    "one layer of 1": ("calibration", {"routing_kernel_sizes": (1,)}),
    "one layer of 3": ("calibration", {"routing_kernel_sizes": (3,)}),
    "r = 2": ("both", {"routing_ratio": 2}),
    "r = 8": ("both", {"routing_ratio": 8}),
    "r = 16": ("both", {"routing_ratio": 16}),
    "pooled by max": ("both", {"aggregation": "max"}),
    "pooled by mix": ("both", {"aggregation": "mix"}),
}
"""The paper's ablations beside the five ways: by name, what differs from which of them."""
# The network's own default is start="motion", which is not the paper's.
PARTS = arms("tada2d_tiny", WAYS, start="image")
ABLATION = [
    arm for note, (way, own) in VARIANTS.items() for arm in arms("tada2d_tiny", (way,), note=note, start="image", **own)
]

BEST_START = [*arms("tada2d_tiny", ("both",), "motion"), *arms("tada2d_tiny", ("averaged frames",), start="image")]
"""The weights that ship, and the network without their parts, which has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """Arms that are trained alike on one task. Those of several experiments of one task and budget can be compared."""

    about: str
    """What is compared, for ``--help``."""
    task: str
    """A key of ``TASKS``."""
    arms: tuple[Arm, ...]
    budget: Budget


EXPERIMENTS = {
    "parts": Experiment(
        about="averaged frames, shift, and each part of TAda2D alone and with the other",
        task="phrases",
        arms=tuple(PARTS),
        budget=SCRATCH,
    ),
    "image hosts": Experiment(
        about="image networks plain and adapted: MobileNetV2 and EfficientNet-Lite0",
        task="phrases",
        arms=tuple(IMAGE_HOSTS),
        budget=FINE_TUNING,
    ),
    "motion start": Experiment(
        about="as parts, with start: motion",
        task="phrases",
        arms=tuple(arms("tada2d_tiny", WAYS, note="motion start", start="motion")),
        budget=SCRATCH,
    ),
    "motion weights": Experiment(
        about="both parts, from the motion weights that ship",
        task="phrases",
        arms=tuple(arms("tada2d_tiny", ("both",), "motion")),
        budget=SCRATCH,
    ),
    OWN_MOTION: Experiment(
        about="the same from motion weights of each run's seed (--motion-weights)",
        task="phrases",
        arms=tuple(arms("tada2d_tiny", ("both",), "motion of its seed")),
        budget=SCRATCH,
    ),
    "small hosts": Experiment(
        about="SlowOnly, R(2+1)D and R3D, plain and adapted", task="phrases", arms=tuple(SMALL_HOSTS), budget=SCRATCH
    ),
    "widths": Experiment(
        about="MobileNetV2 adapted with other widths of the routing functions",
        task="phrases",
        arms=tuple(WIDTHS),
        budget=FINE_TUNING,
    ),
    "words": Experiment(
        about="MobileNetV2 plain and adapted", task="words", arms=tuple(IMAGE_HOSTS[:2]), budget=FINE_TUNING
    ),
    "words from scratch": Experiment(
        about="averaged frames and calibration",
        task="words",
        arms=tuple(arms("tada2d_tiny", ("averaged frames", "calibration"), start="image")),
        budget=SCRATCH,
    ),
    "interactions": Experiment(
        about="MobileNetV2 plain and adapted", task="interactions", arms=tuple(IMAGE_HOSTS[:2]), budget=FEW_CLIPS
    ),
    "second paper": Experiment(
        about="TAdaConvNeXt, its V2 and TAdaFormer: the clip's mean or attention",
        task="phrases",
        arms=second_paper((4, 8)),
        budget=replace(SCRATCH_LAYER_NORMS, epochs=60),  # after 24 they are hardly better than chance
    ),
    "generated motions": Experiment(
        about="averaged frames and both parts, on drawn videos",
        task="generated motions",
        arms=(PARTS[0], PARTS[-1]),
        budget=replace(SCRATCH, epochs=12),
    ),
    "generated motions, second paper": Experiment(
        about="as second paper, on drawn videos",
        task="generated motions",
        arms=second_paper((4, 5)),
        budget=replace(SCRATCH_LAYER_NORMS, epochs=12),
    ),
    "ablation": Experiment(
        about="one part of TAda2D changed at a time", task="phrases", arms=tuple(ABLATION), budget=SCRATCH
    ),
    **{
        task: Experiment(
            about="both parts and averaged frames, with larger and varied clips",
            task=task,
            arms=tuple(BEST_START),
            budget=SCRATCH_VARIED,
        )
        for task in ("phrases, best start", "words, best start")
    },
    "gestures, image hosts": Experiment(
        about="as image hosts", task="gestures", arms=tuple(IMAGE_HOSTS), budget=FINE_TUNING_GESTURES
    ),
    "gestures, small hosts": Experiment(
        about="as small hosts", task="gestures", arms=tuple(SMALL_HOSTS), budget=SCRATCH_GESTURES
    ),
    "image parts": Experiment(
        about="EfficientNet-Lite0 with shift, aggregation and both parts",
        task="phrases",
        arms=tuple(arms("tada_lite0", ("shift", "aggregation", "both"), "ImageNet")),
        budget=FINE_TUNING,
    ),
}
"""By name, in the order in which they are run."""


def _experiments_in_words() -> str:
    lines = [f"  {name!r} ({own.task}, {len(own.arms)} arms): {own.about}" for name, own in EXPERIMENTS.items()]
    return "\n".join(["experiments, in the order in which they are run:", *lines])


@ends_in_a_line()
def main() -> None:
    """Run what is missing, then show everything."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=_experiments_in_words(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument(
        "--out", type=output_folder, default=OWN_FOLDER, help="of the runs; by default the repository's"
    )
    parser.add_argument(
        "--page", type=output_folder, help="a folder for tables and pictures; by default docs, or --out if given"
    )
    parser.add_argument(
        "--clips", type=output_folder, default=Path("runs/claims"), help="for decoded frames (runs/claims)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=EXPERIMENTS,
        default=list(EXPERIMENTS),
        metavar="EXPERIMENT",
        help="some of those below; by default all",
    )
    parser.add_argument(
        "--motion-weights",
        nargs="+",
        type=trained_model,
        default=[],
        metavar="FOLDER",
        help=f"of run 0, 1, ..., for {OWN_MOTION!r}: python benchmarks/motion_weights.py OUT --seed RUN",
    )
    parser.add_argument("--runs", type=positive, default=5, help="of each arm (5)")
    parser.add_argument("--workers", type=positive, default=2, help="processes side by side (2)")
    parser.add_argument("--threads", type=positive, default=1, help="of each worker (1)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--report", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if not arguments.report:
        if arguments.data is None:
            parser.error("DATA is missing, or --report")
        with held_folder(arguments.out):  # or another process writes there
            run_missing(arguments)
    page = arguments.page or (HERE.parent / "docs" if arguments.out == OWN_FOLDER else arguments.out)
    show(read_runs(arguments.out / "runs.jsonl", fault_of), arguments.out, page)


def fault_of(run: dict[str, Any]) -> str | None:
    """What is wrong with a line of the file of runs."""
    if type(run.get("parameters")) is not int:
        return "'parameters' should be a whole number"
    arms_of_task = [arm.name for own in EXPERIMENTS.values() if own.task == run.get("task") for arm in own.arms]
    if run.get("arm") not in arms_of_task:
        return f"no experiment trains {run.get('arm')!r} on {run.get('task')!r}"
    return fault_of_counts(run)


def run_missing(arguments: argparse.Namespace) -> None:
    """Train what has no line yet: all experiments' first runs, then their second ones, ..."""
    file: Path = arguments.out / "runs.jsonl"
    done = {(run["task"], run["arm"], run["run"]) for run in read_runs(file, fault_of)}
    motion: list[Path] = arguments.motion_weights
    wanted = [
        (experiment.task, arm, experiment.budget, run, motion[run] if name == OWN_MOTION else None)
        for run in range(arguments.runs)
        for name, experiment in ((name, EXPERIMENTS[name]) for name in arguments.only)
        for arm in experiment.arms
        if (experiment.task, arm.name, run) not in done and (name != OWN_MOTION or run < len(motion))
    ]
    if OWN_MOTION in arguments.only and len(motion) < arguments.runs:
        print(f"{OWN_MOTION!r}: {len(motion)} of {arguments.runs} runs, since --motion-weights has so many folders")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no GPU here; leave the option away")
    # What is missing is told before videos are decoded or drawn, which takes minutes.
    tasks = sorted({task for task, *_ in wanted})
    for task in tasks:
        if not TASKS[task].is_drawn:
            listing_of(TASKS[task], arguments.data)
    for arm in {arm for _, arm, *_ in wanted if arm.weights == "ImageNet"}:
        build(arm, 2)
    for task in tasks:
        clips_of(task, arguments.data, arguments.clips)  # so that workers find them
    own = (arguments.data, arguments.clips, arguments.device, arguments.threads)
    jobs = [(*job, *own) for job in wanted]
    run_all(train_and_test, jobs, file, num_workers=arguments.workers, in_words=_in_words)


def _in_words(run: dict[str, Any]) -> str:
    top1 = run["right"] / run["count"]
    return f"{run['task']}: {run['arm']}, run {run['run']}: {top1:.3f} ({run['seconds']:.0f} s)"


@cache
def clips_of(task: str, data: Path, folder: Path) -> Clips:
    """A task's clips, read once by each process; ``folder`` keeps their frames."""
    return Clips(TASKS[task], data, folder / f"{task}.npz")


def train_and_test(
    task: str,
    arm: Arm,
    budget: Budget,
    run: int,
    motion: Path | None,
    data: Path,
    folder: Path,
    device: str,
    threads: int,
) -> dict[str, object]:
    """One run of an arm: its line in the file of runs."""
    torch.set_num_threads(threads)
    clips = clips_of(task, data, folder)
    train, test = clips.split(run)
    if len(train) < BATCH:
        raise SystemExit(f"{task}: {len(train)} clips to train on are less than a batch of {BATCH}")
    torch.manual_seed(run)
    rng = np.random.default_rng(run)
    network = build(arm, len(clips.labels), motion).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(network, budget.rate, budget.new_rate, budget.decay))
    steps = budget.epochs * (len(train) // BATCH)
    warmup = min(WARMUP_STEPS, steps // 5 + 1)
    schedule = LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 1) * (1 + np.cos(np.pi * min(step / steps, 1))) / 2
    )
    started = time.perf_counter()
    losses = []
    for _ in range(budget.epochs):
        network.train()
        for chosen in _batches(train, rng):
            batch, targets = clips.training_batch(chosen, rng)
            scores = logits(network, batch.to(device))
            loss = F.cross_entropy(scores, targets.to(device), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    network.eval()
    right = []
    with torch.inference_mode():
        for start in range(0, len(test), BATCH):
            batch, targets = clips.test_batch(test[start : start + BATCH])
            views = (batch, batch.flip(4)) if clips.task.is_varied else (batch,)
            scores = torch.stack([logits(network, view.to(device)).softmax(1) for view in views])
            right += (scores.mean(0).argmax(1).cpu() == targets).tolist()
    return {
        "task": task,
        "arm": arm.name,
        "run": run,
        "right": sum(right),
        "count": len(right),
        "last_loss": round(float(np.mean(losses[-(len(train) // BATCH) :])), 4),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "epochs": budget.epochs,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _batches(train: list[int], rng: np.random.Generator) -> Iterator[list[int]]:
    order = rng.permutation(train)
    for start in range(0, len(order) - BATCH + 1, BATCH):
        yield order[start : start + BATCH].tolist()


if __name__ == "__main__":
    # For the workers: glibc would give each large tensor's memory back to the system, which clears it anew. Not in
    # main(), whose caller would hand it on to every process that it starts.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
    main()
