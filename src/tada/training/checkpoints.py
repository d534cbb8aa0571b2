"""Checkpoints from which an interrupted run is resumed: when they are saved, also on a signal that ends the run.

A state is consistent only between two optimizer steps. A step of a large network on a CPU may take a minute, but after
a signal a process has only some seconds. Until the optimizer updates the weights, a step changes nothing in the state
except running statistics. So where steps are slow, the state after the last step is kept in memory, without copying
the weights, and can be written at almost any moment.
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
from tada.system.collectives import StepVote
from tada.system.documents import open_regular
from tada.system.files import whole_file, writing
from tada.system.signals import handle_again, leave, told

CHECKPOINT = Path("resume", "last.ckpt")
"""File in a run's folder of the state from which the run is resumed."""
_SLOW_SECONDS = 0.5  # from one step to the next; keeping a state takes some milliseconds
_STEPPING_SECONDS = 20.0  # allowed for an optimizer to update the weights of a large network


class WholeFileCheckpoints(TorchCheckpointIO):
    """Writes checkpoints atomically: a reader finds the old file or the new one, never a part.

    Differs from Lightning's class, which may leave a partial file if its temporary folder is on another disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[dict[str, Any]] | None = None

    @contextmanager
    def keeping(self) -> Iterator[list[dict[str, Any]]]:
        """Within the block, states are appended to the yielded list instead of written."""
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
            target.parent.mkdir(exist_ok=True)  # but not the run's folder: if a user removed it, it is not made again
        # Given an open file rather than a path, torch.save raises an error that says why it cannot be written.
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
    """Number of optimizer steps done when a state was saved.

    Raises:
        CheckpointError: the file is damaged.
    """
    return int(WholeFileCheckpoints().load_checkpoint(file)["global_step"])


def _check_stored(state: Any) -> None:
    """Check that no tensor is larger than its storage: a copy of such a tensor could fill the memory.

    Raises:
        ValueError: a tensor is.
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
    """Saves a state every ``every_steps`` steps, after each epoch's last step, and when a process gets a signal to end.

    After a signal all processes end, with the signal's exit code. Validation changes no state, so it can be ended at
    any moment; a run that is resumed from the state before it validates first.
    """

    def __init__(self, file: Path, *, every_steps: int, files: WholeFileCheckpoints) -> None:
        self.file, self.every_steps, self.files = file, every_steps, files
        self.saved_step: int | None = None
        """Number of optimizer steps done in the saved state; None if this start of the run has no saved state."""
        self.last_step = 0
        """Number of optimizer steps done so far."""
        self._trainer: L.Trainer | None = None
        self._has_begun = self._is_validating = self._owes_validation = False
        self._kept: dict[str, Any] | None = None  # the state after the last step, where steps are slow
        self._weights = threading.Lock()  # held during an update of the weights, and while the kept state is written
        self._is_stepping = False
        self._stepped_at = 0.0
        self._vote = StepVote()

    # -- what is saved --

    def state_dict(self) -> dict[str, Any]:
        """Whether this state ends an epoch whose validation is still to be done."""
        return {"owes_validation": self._trainer is not None and _ends_with_validation(self._trainer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._owes_validation = state_dict["owes_validation"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        handle_again()  # Lightning's handlers, which replaced ours, communicate with the other processes
        self._trainer = trainer
        self.last_step = trainer.global_step
        self.saved_step = trainer.global_step if trainer.ckpt_path else None
        self._stepped_at = time.monotonic()
        loop = trainer.fit_loop
        if loop.restarted_mid_epoch and loop.epoch_loop.batch_progress.is_last_batch:
            # The state was saved at an epoch's end. Lightning would not count the next epoch as begun, and would take a
            # state saved in the middle of that epoch for one saved at its start.
            loop.reset_restart_stage()
        if self._owes_validation and trainer.enable_validation:
            validation = trainer.fit_loop.epoch_loop.val_loop
            validation.restarting = False  # start with the first video, wherever the interrupted validation was
            trainer.validating = True
            validation.run()
            trainer.training = True
        self._owes_validation = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._has_begun = True

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self._weights.acquire()  # never returns if the kept state is being written, for then the process ends
        self._is_stepping = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.last_step:
            return  # more batches are accumulated for this step
        self.last_step = trainer.global_step
        self._kept = None
        now = time.monotonic()
        is_slow = now - self._stepped_at > _SLOW_SECONDS
        self._stepped_at = now
        is_told = self._vote.ask(told() is not None, pl_module.device)
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
        # The next forward pass changes running statistics in place, so copy these; all else only the optimizer changes.
        buffers = {buffer.data_ptr() for buffer in pl_module.buffers()}
        for weights in (state["state_dict"], state.get("current_model_state", {})):
            for name, value in weights.items():
                if value.data_ptr() in buffers:
                    weights[name] = value.clone()
        self._kept = state

    # -- when the run ends early --

    def at_once(self) -> None:
        """Handle a signal, in the main thread: exit unless an optimizer step has to be finished first."""
        if not self._has_begun or self._is_validating or self._is_waiting:
            leave()

    @property
    def _is_waiting(self) -> bool:
        """Whether the loop waits for the next batch, when the state is consistent."""
        return bool(self._trainer and getattr(self._trainer.train_dataloader, "is_waiting", False))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save the state after the last step, whatever the exception is."""
        if trainer.world_size > 1 or self._is_stepping or self._is_saved or self.last_step == 0:
            return
        with suppress(Exception):  # report the exception that ends the run, not one of saving
            if self._is_waiting:
                self._save(trainer)
            else:
                self._write_kept()

    def last_chance(self) -> None:
        """Write the kept state, if there is one; called in another thread as the process ends."""
        if self._weights.acquire(timeout=_STEPPING_SECONDS) and not self._is_saved:
            self._write_kept()

    def _write_kept(self) -> None:
        if self._kept is not None:
            self.files.save_checkpoint(self._kept, self.file)
            self.saved_step = self.last_step

    def in_words(self) -> str:
        """Which state is saved, for the last line of an interrupted command; empty if none is."""
        if self.saved_step is None:
            return "the saved state is as it was" if self.file.exists() else ""
        missing = "" if self._is_saved else f", the last that was saved; {self.last_step} were taken"
        return f"the state after step {self.saved_step} is saved{missing}"


def _ends_with_validation(trainer: L.Trainer) -> bool:
    """Whether this step is the last of an epoch after which the held-out videos are tested."""
    return trainer.is_last_batch and (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
