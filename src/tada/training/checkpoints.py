"""The states that an interrupted run goes on from: when they are saved, and how a run that is told to end leaves one.

A state is whole between two optimizer steps only. A step of a large network on a CPU may take a minute, though, and a
run that is told to end has some seconds. But until the optimizer moves the weights a step changes nothing that a state
holds, except for running statistics: so where steps are slow, the state of the last one is kept, without copying the
weights, and can be written at almost any moment.
"""

from __future__ import annotations

import pickle
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tada.errors import CheckpointError
from tada.system.array_files import check_unpacked
from tada.system.collectives import on_any
from tada.system.documents import open_regular
from tada.system.files import whole_file, writing
from tada.system.signals import handle_again, leave, told

CHECKPOINT = Path("resume", "last.ckpt")
"""Where a run's folder holds the state it goes on from."""
_SLOW_SECONDS = 0.5  # from one step to the next; keeping a state takes some milliseconds
_STEPPING_SECONDS = 20.0  # that an optimizer may need to move the weights of a large network


class WholeFileCheckpoints(TorchCheckpointIO):
    """Writes a state whole or not at all: whoever reads it meets the old one or the new one.

    Differs from Lightning's own, which may leave a part of a file where its temporary folder is on another disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[dict[str, Any]] | None = None

    @contextmanager
    def keeping(self) -> Iterator[list[dict[str, Any]]]:
        """Inside of the block states are not written but put into this list."""
        kept: list[dict[str, Any]]
        self._kept = kept = []
        try:
            yield kept
        finally:
            self._kept = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if self._kept is not None:
            self._kept.append(checkpoint)
            return
        target = Path(path)
        with writing(target):
            target.parent.mkdir(exist_ok=True)  # not the run's folder: who has removed that wants no run there
        # Of a file that is open, torch.save says why it cannot be written.
        with whole_file(target) as part, part.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        try:
            with open_regular(path) as file:
                check_unpacked(file)
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            _check_stored(state)
        except (RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path} is damaged and cannot be read: start anew without --resume") from error
        return state


def steps_of_state(file: Path) -> int:
    """Optimizer steps that were done when a state was saved.

    Raises:
        CheckpointError: it is damaged.
    """
    return int(WholeFileCheckpoints().load_checkpoint(file)["global_step"])


def _check_stored(state: Any) -> None:
    """See that no tensor is larger than what is stored of it: copied, it could fill any memory.

    Raises:
        ValueError: one is.
    """
    if isinstance(state, torch.Tensor):
        if state.numel() * state.element_size() > state.untyped_storage().nbytes():
            raise ValueError(f"a tensor of {list(state.shape)} has {state.untyped_storage().nbytes()} bytes")
    elif isinstance(state, Mapping):
        for value in state.values():
            _check_stored(value)
    elif isinstance(state, list | tuple):
        for value in state:
            _check_stored(value)


class SavedStates(Checkpoint):
    """Saves a state every so many steps, after each epoch's last, and when any process is told to end.

    Then all processes end, with the signal's exit code. Validation changes nothing and can be ended at any moment; a
    run that goes on from the state before it validates first.
    """

    def __init__(self, file: Path, *, every_steps: int, files: WholeFileCheckpoints) -> None:
        self.file, self.every_steps, self.files = file, every_steps, files
        self.saved_step: int | None = None
        """Optimizer steps that the file's state has seen."""
        self.last_step = 0
        """Optimizer steps that were taken."""
        self._trainer: L.Trainer | None = None
        self._has_begun = self._is_validating = self._owes_validation = False
        self._kept: dict[str, Any] | None = None  # the state after the last step, where steps are slow
        self._weights = threading.Lock()  # held while they move, and while a state of them is written
        self._is_stepping = False
        self._stepped_at = 0.0

    # -- what is saved --

    def state_dict(self) -> dict[str, Any]:
        """Whether the epoch that ends with this state has still to be validated."""
        return {"owes_validation": self._trainer is not None and _ends_with_validation(self._trainer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._owes_validation = state_dict["owes_validation"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        handle_again()  # Lightning's handlers talk to the other processes
        self._trainer = trainer
        self.last_step = trainer.global_step
        self.saved_step = trainer.global_step if trainer.ckpt_path else None
        self._stepped_at = time.monotonic()
        loop = trainer.fit_loop
        if loop.restarted_mid_epoch and loop.epoch_loop.batch_progress.is_last_batch:
            # The state is that of an epoch's end. Lightning would not count the next one as begun, and so take a state
            # in the middle of that for one of its start.
            loop.reset_restart_stage()
        if self._owes_validation and trainer.enable_validation:
            validation = trainer.fit_loop.epoch_loop.val_loop
            validation.restarting = False  # from its first video on, whatever the one before has seen
            trainer.validating = True
            validation.run()
            trainer.training = True
        self._owes_validation = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._has_begun = True

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self._weights.acquire()  # for ever, if the state before is being written: the process ends then
        self._is_stepping = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.last_step:
            return  # a part of a step
        self.last_step = trainer.global_step
        self._kept = None
        now = time.monotonic()
        is_slow = now - self._stepped_at > _SLOW_SECONDS
        self._stepped_at = now
        is_told = on_any(told() is not None, pl_module.device)
        if is_told or _ends_with_validation(trainer) or self.last_step % self.every_steps == 0:
            self._save(trainer)
        elif is_slow and trainer.world_size == 1:
            self._keep(trainer, pl_module)
        self._is_stepping = False
        self._weights.release()
        if is_told or (told() is not None and trainer.world_size == 1 and self._is_saved):
            leave()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._is_validating = True
        if told() is not None and trainer.world_size == 1:
            leave()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._is_validating = False

    @property
    def _is_saved(self) -> bool:
        return self.saved_step == self.last_step

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.file)
        self.saved_step = trainer.global_step

    def _keep(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with self.files.keeping() as kept:
            trainer.save_checkpoint(self.file)
        (state,) = kept
        # The next step's forward pass changes running statistics in place; its optimizer all else, and not before.
        moving = {buffer.data_ptr() for buffer in pl_module.buffers()}
        for weights in (state["state_dict"], state.get("current_model_state", {})):
            for name, value in weights.items():
                if value.data_ptr() in moving:
                    weights[name] = value.clone()
        self._kept = state

    # -- when the run ends before its time --

    def at_once(self) -> None:
        """When the signal comes, in the main thread: leave where nothing is under way that has to be finished."""
        if not self._has_begun or self._is_validating or self._is_waiting:
            leave()

    @property
    def _is_waiting(self) -> bool:
        """Whether the next batch is waited for: the state is whole then."""
        return bool(self._trainer and getattr(self._trainer.train_dataloader, "is_waiting", False))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Whatever ends the run, what was learned until then is saved."""
        if trainer.world_size > 1 or self._is_stepping or self._is_saved or self.last_step == 0:
            return
        with suppress(Exception):  # what ends the run is what is told
            if self._is_waiting:
                self._save(trainer)
            else:
                self._write_kept()

    def last_chance(self) -> None:
        """In another thread, as the process ends: write the state after the last step, if there is one to write."""
        if self._weights.acquire(timeout=_STEPPING_SECONDS) and not self._is_saved:
            self._write_kept()

    def _write_kept(self) -> None:
        if self._kept is not None:
            self.files.save_checkpoint(self._kept, self.file)
            self.saved_step = self.last_step

    def in_words(self) -> str:
        """What is saved, for the line at the end of an interrupted command; empty for nothing."""
        if self.saved_step is None:
            return "the saved state is as it was" if self.file.exists() else ""
        missing = "" if self._is_saved else f", the last that was saved; {self.last_step} were taken"
        return f"the state after step {self.saved_step} is saved{missing}"


def _ends_with_validation(trainer: L.Trainer) -> bool:
    """Whether an epoch ends with this step, and the held-out videos are tested after it."""
    return trainer.is_last_batch and (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
