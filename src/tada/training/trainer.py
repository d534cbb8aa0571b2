"""Training loop: Lightning's trainer, set up for our runs, and its callbacks."""

from __future__ import annotations

import csv
import logging
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tada.data.clips import Batch
from tada.data.loader import VideoLoader, closing
from tada.data.table import Unreadable
from tada.data.views import ViewBatch
from tada.errors import DataError, OptionError, counted
from tada.system.accelerator import HostNumbers, fast_numerics
from tada.system.collectives import TIMEOUT, StepVote, gathered
from tada.system.devices import Processes
from tada.system.files import whole_file
from tada.system.progress import Work, rate_text
from tada.system.signals import DEFERRED_SECONDS, deferring, tell_state
from tada.training.checkpoints import CHECKPOINT, SavedStates, WholeFileCheckpoints
from tada.training.loggers import make_loggers
from tada.training.run_page import RATE
from tada.training.schedule import Numbers, Pace, learning_rate_factor
from tada.training.step_clock import StepClock

RANKS_SECONDS = 25.0
"""Time for several processes to finish a step after a signal to end, in seconds: clusters kill them after 30 s."""
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp64": "64-true"}
"""Our names of precisions -> Lightning's; "auto" is replaced by one of them before."""


class LoopRecipe(Protocol):
    """The fields of a recipe that the loop uses."""

    @property
    def numbers(self) -> Numbers: ...

    @property
    def accumulate(self) -> int: ...

    @property
    def ema_decay(self) -> float | None: ...

    @property
    def clip_gradient_norm(self) -> float | None: ...

    @property
    def precision(self) -> str: ...


def make_trainer(
    recipe: LoopRecipe,
    out: Path,
    callbacks: Sequence[Callback],
    *,
    processes: Processes,
    pace: Pace,
    save_every_steps: int | None = None,
    clock: StepClock | None = None,
    noun: str = "clips",
    show_progress: bool,
    say: Callable[[str], None],
) -> L.Trainer:
    """Make Lightning's trainer with our loggers, checkpoints, strategy and progress display.

    Args:
        callbacks: run in this order, after the clock and before what else is added here.
        save_every_steps: optimizer steps between saved states; None: as ``pace`` says.
        clock: measures steps; given if some of the callbacks read it too.
        noun: what a batch holds, in the plural.
    """
    start = "start_0"
    if processes.is_first:  # only the first process writes
        (out / "logs").mkdir(parents=True, exist_ok=True)
        start = f"start_{len(list((out / 'logs').iterdir()))}"  # a resumed run adds a folder
    clock = StepClock() if clock is None else clock
    callbacks = [clock, *callbacks]
    if recipe.ema_decay is not None:
        callbacks.append(AveragedWeights(recipe.ema_decay))
    callbacks.append(RunProgress(clock, noun=noun, is_shown=show_progress and processes.is_first))
    files = WholeFileCheckpoints()
    callbacks.append(SavedStates(out / CHECKPOINT, every_steps=save_every_steps or pace.save_every_steps, files=files))
    arguments = processes.lightning()
    arguments["plugins"] += [files]
    with quiet():
        return L.Trainer(
            **arguments,
            default_root_dir=out,
            max_epochs=recipe.numbers.epochs,
            check_val_every_n_epoch=pace.test_every_epochs,
            strategy=strategy_for(processes),
            precision=PRECISIONS[recipe.precision],  # type: ignore[arg-type]  # each is one it has
            accumulate_grad_batches=recipe.accumulate,
            gradient_clip_val=recipe.clip_gradient_norm,
            callbacks=callbacks,
            logger=make_loggers(processes.machine.logger, out, start, vars(recipe), say),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,  # RunProgress shows the whole run instead
            enable_model_summary=False,
        )


def fit(
    trainer: L.Trainer,
    task: L.LightningModule,
    loader: VideoLoader,
    val_loader: VideoLoader | None,
    *,
    state: Path | None,
) -> None:
    """Train, from a saved state or the beginning, until the end or until a signal ends the process.

    Raises:
        KeyboardInterrupt: Ctrl-C, with the state saved.
        SystemExit: SIGTERM or SIGHUP, with the state saved.
        WorkerLostError: a process that reads videos has died.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    states = next(callback for callback in callbacks if isinstance(callback, SavedStates))
    progress = next(callback for callback in callbacks if isinstance(callback, RunProgress))
    tell_state(states.in_words)
    # Several processes have to finish a step together.
    seconds = DEFERRED_SECONDS if trainer.world_size == 1 else RANKS_SECONDS
    with (
        closing(loader, val_loader),
        deferring(at_once=states.at_once, chance=states.last_chance, seconds=seconds),
        quiet(),
        progress.work,
        fast_numerics(trainer.strategy.root_device),
    ):
        trainer.fit(task, loader, val_loader, ckpt_path=None if state is None else str(state), weights_only=True)


def strategy_for(processes: Processes) -> Strategy | str:
    """Lightning's strategy: FSDP, DDP, or "auto" for a single device."""
    if processes.machine.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=processes.world,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=TIMEOUT,
        )
    if processes.machine.strategy == "ddp" or processes.world > 1:
        # The only buffers are those of batch norms: equal on all devices if synchronized, else separate on each.
        return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True, timeout=TIMEOUT)
    return "auto"


class quiet(warnings.catch_warnings):
    """Hide Lightning's advice on settings, which are chosen here and not by the user."""

    def __enter__(self) -> None:
        super().__enter__()
        for part in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(part).setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", module=r"lightning\.")


# --- the learning rate ----------------------------------------------------------------------------------------------


def scheduled(
    optimizer: torch.optim.Optimizer,
    *,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: float,
    warmup_start: float,
    end: float = 0.0,
    after_warmup: bool = False,
) -> OptimizerLRSchedulerConfig:
    """Lightning's configuration of an optimizer (its learning rates are the peaks) and the schedule of its rates.

    The schedule is that of ``learning_rate_factor``.
    """

    def factor(step: int) -> float:
        return learning_rate_factor(
            step / steps_per_epoch,
            epochs=epochs,
            warmup_epochs=warmup_epochs,
            warmup_start=warmup_start,
            end=end,
            after_warmup=after_warmup,
        )

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


# --- callbacks ------------------------------------------------------------------------------------------------------


class AveragedWeights(WeightAveraging):
    """Moving average of the weights (EMA), which is tested and saved; frozen weights stay bitwise the same.

    Differs from Lightning's class, which makes the average where the weights are before they are moved to the device,
    and so leaves it on the CPU.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._average_model = _MovingAverage(pl_module, decay=self.decay)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._average_model is not None
        self._average_model.module.to(pl_module.device)

    @property
    def state_key(self) -> str:
        """The key in the states of older runs, which used Lightning's EMAWeightAveraging."""
        return "EMAWeightAveraging"


class _MovingAverage(AveragedModel):
    """PyTorch's model of averaged weights; unlike there, nothing is read from the device or copied to it."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        means, values = _weights(self.module), _weights(model)
        is_first = not int(self.n_averaged)  # a number on the host, also where the weights are on a GPU
        averaged = [not is_first and mean.is_floating_point() for mean in means]  # counts are copied
        if any(averaged):
            # All at once, in a few kernels: mean + (1 - decay) * (value - mean), so a frozen weight keeps its bits.
            old, new = (list(compress(tensors, averaged)) for tensors in (means, values))
            torch._foreach_lerp_(old, new, 1 - self.decay)
        for mean, value, is_averaged in zip(means, values, averaged, strict=True):
            if not is_averaged:
                mean.copy_(value)
        self.n_averaged += 1


def _weights(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


class SameRun(Callback):
    """Checks that all processes have the same recipe and data."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(set(gathered([self.fingerprint]))) > 1:
            raise OptionError("the processes of this run have different recipes or data: give all of them the same")


class UnreadableVideos(Callback):
    """Collects the videos that could not be read, and stops the run when there are more than allowed."""

    def __init__(self, *, allowed: int) -> None:
        self.allowed = allowed
        self.found: dict[str, str] = {}
        self.of_validation: list[Unreadable] = []
        self._vote = StepVote()
        self._of_training: list[Unreadable] = []  # until the other processes have been told

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._of_training += batch.unreadable
        if self._vote.ask(bool(batch.unreadable), pl_module.device):
            self._gather()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._gather()

    def _gather(self) -> None:
        own, self._of_training = self._of_training, []
        self.add(gathered(own))

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: ViewBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.of_validation += batch.unreadable

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not earlier: the processes do not have the same number of batches here.
        self.add(gathered(self.of_validation))
        self.of_validation = []

    def add(self, videos: Sequence[Unreadable]) -> None:
        """Add unreadable videos.

        Raises:
            DataError: there are more than ``allowed``.
        """
        self.found.update(videos)
        if len(self.found) > self.allowed:
            count = counted(len(self.found), "unreadable video")
            last = next(reversed(self.found.values()))
            raise DataError(f"{last} ({count}, {self.allowed} allowed; --skip-unreadable N allows N)")

    def write(self, path: Path) -> None:
        """Write the list of unreadable videos as CSV, if there are any."""
        if self.found:
            with (
                whole_file(path) as part,
                part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
            ):
                csv.writer(file).writerows([("path", "reason"), *self.found.items()])


class EpochLines(Callback):
    """Prints a line of metrics after each epoch that ends with a test, and keeps the last epoch's metrics."""

    def __init__(self, say: Callable[[str], None], *, told: Collection[int] = ()) -> None:
        """Start without metrics.

        Args:
            told: epochs, counted from 1, whose lines an earlier start of the run printed; they are not printed again.
        """
        self.say, self.told = say, told
        self.metrics: dict[str, float] = {}
        self.seconds_before = 0.0
        """Training time of earlier starts of the run."""
        self.began = time.perf_counter()
        self.started = time.perf_counter()
        self.is_in_epoch = False

    @property
    def seconds(self) -> float:
        """Training time over all starts of the run."""
        return self.seconds_before + time.perf_counter() - self.began

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds_before = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = self.started = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rate = max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
        for logger in trainer.loggers:
            logger.log_metrics({RATE: rate, "epoch": trainer.current_epoch}, step=trainer.global_step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.is_in_epoch = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.is_in_epoch:  # the previous epoch's test, repeated since it was interrupted
            self._tell(trainer, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.is_in_epoch = False
        epoch = trainer.current_epoch + 1
        if epoch % (trainer.check_val_every_n_epoch or 1) == 0:
            self._tell(trainer, epoch)

    def _tell(self, trainer: L.Trainer, epoch: int) -> None:
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in sorted(self.metrics.items()))
        seconds = time.perf_counter() - self.started
        self.started += seconds
        if epoch not in self.told:
            self.say(f"epoch {epoch}/{trainer.max_epochs}  {numbers}  ({seconds:.1f} s)")


class RunProgress(Callback):
    """Progress display of the run: epoch, steps, loss, last test, clips per second, share of time spent on data."""

    def __init__(self, clock: StepClock, *, noun: str, is_shown: bool) -> None:
        self.clock, self.noun = clock, noun
        self.work = Work("training", noun="steps", is_shown=is_shown)
        self.work.has_rate = False  # clips per second are shown instead: steps differ in size
        self.work.details = (f"waiting for the first {noun}",)
        self._tested: list[str] = []
        self._losses = (0.0, 0)  # the sum over the epoch's clips, and their number
        self._coming: HostNumbers[int] = HostNumbers()  # losses that the device computes
        self._times: deque[tuple[float, float, int]] = deque(maxlen=50)  # per step: waited and used seconds, clips
        self._is_first = True  # step of this start, whose wait includes the start of the workers

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.work.done, self.work.total = trainer.global_step, trainer.estimated_stepping_batches
        self._begin_epoch(trainer)  # a run resumed within an epoch gets no on_train_epoch_start

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin_epoch(trainer)

    def _begin_epoch(self, trainer: L.Trainer) -> None:
        self.work.words = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._losses = (0.0, 0)
        self._coming.clear()
        if not self._is_first:
            self._tell()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        count = len(batch[0])  # clips or features, of either task
        for value, its_count in self._coming.add(outputs["loss"], count):
            loss = float(value) * trainer.accumulate_grad_batches
            self._losses = self._losses[0] + loss * its_count, self._losses[1] + its_count
        loader: Any = trainer.train_dataloader
        if not self._is_first:
            waited = loader.times.waited_seconds[-1]
            self._times.append((waited, self.clock.seconds[-1], count * trainer.world_size))
        self._is_first = False
        self._tell()
        self.work.advance_to(trainer.global_step)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._tell(f"testing batch {batch_idx + 1} of {trainer.num_val_batches[0]}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found = sorted(trainer.callback_metrics.items())
        shown = [f"{name} {value:.4f}" for name, value in found if name.startswith("val_") and name != "val_loss"]
        epoch = round(trainer.global_step / (self.work.total or 1) * (trainer.max_epochs or 1))
        self._tested = [f"{shown[0]} after epoch {epoch}"] if shown else []
        self._tell()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.work.note_told()  # EpochLines prints the line

    def _tell(self, doing: str = "") -> None:
        total, count = self._losses
        details = [f"train_loss {total / count:.4f}"] if count else []
        waited, used, clips = (sum(column) for column in zip(*self._times, strict=True)) if self._times else (0, 0, 0)
        if clips:
            share = waited / (waited + used)
            details.append(rate_text(clips / (waited + used), self.noun))
            doing = doing or f"{100 * share:.0f} % data, {100 * (1 - share):.0f} % compute"
        self.work.details = [*details, *self._tested, *filter(None, [doing])]
