"""Dry run: train two steps, discard them, and estimate time and memory of the training. Nothing is written."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from tada.data.clips import ResumableLoader
from tada.data.loader import VideoLoader, closing
from tada.errors import OptionError, counted
from tada.system.devices import Processes
from tada.training.step_clock import StepClock
from tada.training.trainer import PRECISIONS, AveragedWeights, LoopRecipe, quiet, strategy_for

if sys.platform != "win32":
    import resource

_STEPS = 2  # the first is slower than those that follow


def try_training(
    out: Path,
    task: L.LightningModule,
    recipe: LoopRecipe,
    loader: ResumableLoader,
    val_loader: VideoLoader | None,
    callbacks: list[Callback],
    *,
    processes: Processes,
    num_held_out: int,
    num_tests: int,
    steps_done: int,
    say: Callable[[str], None],
) -> None:
    """Train two steps, test one batch, and print the time that the training will take and the peak memory.

    Args:
        out: the folder that the run would have.
        callbacks: those that may refuse the run.
        num_held_out: videos of each test.
        num_tests: tests of the whole training.
        steps_done: optimizer steps done by earlier starts of the run.

    Raises:
        UserError: any error that the training itself would raise.
    """
    if not os.access(_nearest_folder(out), os.W_OK):
        raise OptionError(f"{out} cannot be written: choose another folder with --out")
    clock = StepClock(waits=True)
    if recipe.ema_decay is not None:
        callbacks = [*callbacks, AveragedWeights(recipe.ema_decay)]
    val_seconds = 0.0
    with tempfile.TemporaryDirectory(prefix="tada_dry_run_") as folder, closing(loader, val_loader), quiet():
        trainer = L.Trainer(
            **processes.lightning(),
            default_root_dir=folder,
            max_steps=_STEPS,
            strategy=strategy_for(processes),
            precision=PRECISIONS[recipe.precision],  # type: ignore[arg-type]  # each is one it has
            accumulate_grad_batches=recipe.accumulate,
            gradient_clip_val=recipe.clip_gradient_norm,
            limit_val_batches=1,
            callbacks=[clock, *callbacks],
            logger=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, loader)
        if val_loader is not None:
            started = time.perf_counter()
            trainer.validate(task, val_loader, verbose=False)
            tested = min((val_loader.batch_size or 1) * processes.world, num_held_out)
            val_seconds = (time.perf_counter() - started) / tested * num_held_out
        device = trainer.strategy.root_device
    epochs, batch_size, _ = recipe.numbers
    steps_per_epoch = len(loader.batches) // recipe.accumulate
    network = float(np.sum(clock.seconds[-recipe.accumulate :]))
    reading = batch_size / processes.world * float(np.median(loader.times.clip_seconds or [0.0]))
    if loader.num_workers:
        reading /= loader.num_workers
        step = max(network, reading)
    else:
        step = network + reading
    num_steps = epochs * steps_per_epoch
    left = 1 - steps_done / num_steps
    total = left * (num_steps * step + num_tests * val_seconds)
    line = f"a step takes {_in_words(step)} (the network {_in_words(network)}, reading its clips {_in_words(reading)}"
    line += f" of {loader.num_workers} processes)" if loader.num_workers else ")"
    if num_held_out:
        line += f", a test of {counted(num_held_out, 'video')} {_in_words(val_seconds)}"
    whole = f"{counted(epochs, 'epoch')} of {counted(steps_per_epoch, 'step')}"
    if steps_done:
        whole += f", of which {counted(num_steps - steps_done, 'step')} are left,"
    say(f"{line}: {whole} take about {_in_words(total)}")
    say(f"memory, at most: {_memory(device, bool(loader.num_workers))}")
    say(f"dry run: {trainer.global_step} steps were trained and thrown away; nothing was written")


def _nearest_folder(out: Path) -> Path:
    """The path itself if it exists, else its nearest parent that does."""
    return next(folder for folder in (out, *out.absolute().parents) if folder.exists())


def _memory(device: torch.device, has_workers: bool) -> str:
    parts = _memory_of_processes(has_workers)
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        parts.append(f"{_size(torch.cuda.max_memory_allocated(device))} of the GPU's {_size(whole)}")
    return ", ".join(parts)


def _memory_of_processes(has_workers: bool) -> list[str]:
    if sys.platform == "win32":
        return ["not known of processes (Windows counts in another way)"]
    else:  # an else, since mypy looks at names behind a return too
        unit = 1 if sys.platform == "darwin" else 1024  # of getrusage, in bytes
        parts = [f"{_size(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)} of this process"]
        if has_workers:
            children = unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            parts.append(f"{_size(children)} of each that reads clips")
        return parts


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _in_words(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
