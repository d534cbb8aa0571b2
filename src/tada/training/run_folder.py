"""The folder of a run: making it, resuming a run in it, and writing its last file.

The recipe is written first. A run whose folder has it can be resumed, with or without a saved state; without it the
run was never begun.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from tada.errors import CheckpointError, OptionError, listed
from tada.system.documents import read_json
from tada.system.files import remove_dead_parts, write_whole, writing
from tada.system.locks import names_in, was_made
from tada.system.signals import last_chance, tell_state
from tada.system.terminal import command_line, printable
from tada.training.checkpoints import CHECKPOINT
from tada.training.recipe import METRICS_FILE, RECIPE_FILE

NON_FINITE_FILE = "non_finite_batch.txt"
COMMANDS_FILE = "commands.txt"
"""The commands that have started and continued the run, one in each line."""
_DATA_FILES = ("videos.csv", "data.json", COMMANDS_FILE)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """The result of a run."""

    run: Path
    """The run's folder, for `tada.load`."""
    metrics: dict[str, float]
    """A recognizer's: train_loss of the last epoch; with held-out videos, val_top1 and val_loss (one center view) of
    the last epoch, or of the best one and kept_epoch if the recipe keeps the best. A localizer's: train_loss of the
    last epoch; with held-out videos, val_map of the best."""
    seconds: float
    """Wall time of the training loop, over all starts of the run."""


def check_free(out: Path) -> None:
    """Check that a run can begin in a folder: it does not exist, or is empty except for a failed start's file.

    Raises:
        OptionError: the folder is not free.
    """
    if out.exists() and not out.is_dir():
        raise OptionError(f"{out} is no folder: choose another with --out")
    if any(name != NON_FINITE_FILE for name in names_in(out)):
        raise OptionError(f"{out} is not empty: choose another folder with --out, or continue its run with --resume")


@contextmanager
def begun(out: Path, recipe: str, write_data: Callable[[Path], None]) -> Iterator[None]:
    """Make the folder of a new run, and remove it again if the block fails before a state is saved.

    Args:
        recipe: as YAML.
        write_data: writes the files that record the run's data into the folder.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]

    def remove() -> None:
        if (out / CHECKPOINT).exists():
            return
        for name in (RECIPE_FILE, *_DATA_FILES):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "logs", ignore_errors=True)
        for folder in ((out / CHECKPOINT).parent, *made):
            with suppress(OSError):  # something else is in it
                folder.rmdir()

    with last_chance(remove):
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_whole(out / RECIPE_FILE, recipe.encode())
            write_data(out)
            yield
        except BaseException:
            remove()
            raise


@contextmanager
def within_run(out: Path, recipe: str, write_data: Callable[[Path], None], *, goes_on: bool) -> Iterator[None]:
    """Train in the folder of a run, made by ``begun`` unless the run is resumed; the command is added to its list.

    Args:
        goes_on: whether the run is resumed.
    """
    with nullcontext() if goes_on else begun(out, recipe, write_data):
        note_command(out)
        yield


def note_command(out: Path) -> None:
    """Append the typed command line to the run's commands; nothing if tada was not called as a command."""
    line = printable(command_line())
    if line:
        with writing(out / COMMANDS_FILE), (out / COMMANDS_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def noted_commands(out: Path) -> list[str]:
    """The typed commands that started and continued the run."""
    file = out / COMMANDS_FILE
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def was_begun(out: Path) -> bool:
    """Whether a run to be resumed has begun; it has not if it was killed before its recipe was written.

    Raises:
        OptionError: ``out`` is not a folder, or holds other files.
    """
    if not out.is_dir() or was_made(out):
        raise OptionError(f"{out} is no folder, so there is no run to resume: begin it without --resume")
    if (out / RECIPE_FILE).exists():
        return True
    others = [name for name in names_in(out) if name not in (NON_FINITE_FILE, *_DATA_FILES)]
    if others:
        raise OptionError(f"{out} holds no run (no {RECIPE_FILE}), but {listed(others)}")
    return False


def saved_state(out: Path, say: Callable[[str], None]) -> Path | None:
    """The saved state to resume a run from; None, with a message, if none was saved yet."""
    remove_dead_parts((out / CHECKPOINT).parent)  # this start may save no state, which would remove them
    if (out / CHECKPOINT).exists():
        return out / CHECKPOINT
    say(f"{out} was interrupted before its first saved state: it starts from its beginning")
    return None


def finished_result(out: Path) -> TrainingResult | None:
    """The result of a finished run; None for an unfinished one.

    Raises:
        CheckpointError: the file of metrics is damaged.
    """
    file = out / METRICS_FILE
    if not file.exists():
        return None
    try:
        metrics: dict[str, float] = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(file)!r} is damaged ({error}); remove it and resume the run") from error
    seconds = metrics.pop("seconds", 0.0)
    return TrainingResult(run=out, metrics=metrics, seconds=seconds)


def go_on(out: Path, recipe: str) -> None:
    """Turn a run, finished or not, into one that continues by another recipe (YAML); its weights are not touched.

    If the process is killed in between, the run can be finished by its old recipe.
    """
    with writing(out / METRICS_FILE):
        (out / METRICS_FILE).unlink(missing_ok=True)
    write_whole(out / RECIPE_FILE, recipe.encode())


def end_run(out: Path, metrics: dict[str, float], *, seconds: float, is_first: bool = True) -> TrainingResult:
    """Write the last file of a run. A resumed run that lacks it writes all final files again.

    Args:
        is_first: whether this process is the one that writes.
    """
    if is_first:
        write_whole(out / METRICS_FILE, (json.dumps(metrics | {"seconds": seconds}, indent=2) + "\n").encode())
    tell_state(str)  # an interruption after this does not interrupt the training
    return TrainingResult(run=out, metrics=metrics, seconds=seconds)
