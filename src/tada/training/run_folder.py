"""The folder of a run: from its first file to its last, whenever the run ends.

The recipe is written first. A folder that has it can be gone on with, with or without a saved state; one that has not
was never begun.
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
    """How a run ended."""

    run: Path
    """The run's folder, for `tada.load`."""
    metrics: dict[str, float]
    """Of a recognizer's last epoch: train_loss, and val_top1 and val_loss (one center view) where videos were held out;
    of a recipe that keeps the best epoch, what was measured after that on held-out videos, and kept_epoch. Of a
    localizer: train_loss of the last epoch; val_map of the best, where videos were held out."""
    seconds: float
    """Wall time of the training loop, over all starts of the run."""


def check_free(out: Path) -> None:
    """Refuse to begin a run in a folder that holds something, but for what a start that failed has left.

    Raises:
        OptionError: it does.
    """
    if out.exists() and not out.is_dir():
        raise OptionError(f"{out} is no folder: choose another with --out")
    if any(name != NON_FINITE_FILE for name in names_in(out)):
        raise OptionError(f"{out} is not empty: choose another folder with --out, or continue its run with --resume")


@contextmanager
def begun(out: Path, recipe: str, write_data: Callable[[Path], None]) -> Iterator[None]:
    """Make the folder of a new run, and take it away again where the block ends before a state is saved.

    Args:
        recipe: as YAML.
        write_data: writes what says which data the run is on, into the folder.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]

    def take_away() -> None:
        if (out / CHECKPOINT).exists():
            return
        for name in (RECIPE_FILE, *_DATA_FILES):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "logs", ignore_errors=True)
        for folder in ((out / CHECKPOINT).parent, *made):
            with suppress(OSError):  # something else is in it
                folder.rmdir()

    with last_chance(take_away):
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_whole(out / RECIPE_FILE, recipe.encode())
            write_data(out)
            yield
        except BaseException:
            take_away()
            raise


@contextmanager
def within_run(out: Path, recipe: str, write_data: Callable[[Path], None], *, goes_on: bool) -> Iterator[None]:
    """Train in the folder of a run, which is ``begun`` if it does not go on; the command is noted there."""
    with nullcontext() if goes_on else begun(out, recipe, write_data):
        note_command(out)
        yield


def note_command(out: Path) -> None:
    """Add the command that is carried out to those of the run, where it is one that was typed."""
    line = printable(command_line())
    if line:
        with writing(out / COMMANDS_FILE), (out / COMMANDS_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def noted_commands(out: Path) -> list[str]:
    """The commands that have started and continued the run, as far as they were typed."""
    file = out / COMMANDS_FILE
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def was_begun(out: Path) -> bool:
    """Whether a run that is to be continued has begun: not if it was killed before its recipe was written.

    Raises:
        OptionError: the folder is none, or of something else.
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
    """The state that a run which has begun goes on from; None where none was saved yet, which is said."""
    remove_dead_parts((out / CHECKPOINT).parent)  # there may be no other state to write
    if (out / CHECKPOINT).exists():
        return out / CHECKPOINT
    say(f"{out} was interrupted before its first saved state: it starts from its beginning")
    return None


def finished_result(out: Path) -> TrainingResult | None:
    """How a run has ended; None for one that has not come to its end.

    Raises:
        CheckpointError: what it has written then is damaged.
    """
    file = out / METRICS_FILE
    if not file.exists():
        return None
    try:
        metrics: dict[str, float] = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(file)!r} is damaged ({error}); remove it, and the run ends anew") from error
    seconds = metrics.pop("seconds", 0.0)
    return TrainingResult(run=out, metrics=metrics, seconds=seconds)


def go_on(out: Path, recipe: str) -> None:
    """Make of a run, which may be finished, one that goes on by another recipe (YAML); its weights stay till then.

    Killed in between, it is one that ends as before.
    """
    with writing(out / METRICS_FILE):
        (out / METRICS_FILE).unlink(missing_ok=True)
    write_whole(out / RECIPE_FILE, recipe.encode())


def end_run(out: Path, metrics: dict[str, float], *, seconds: float, is_first: bool = True) -> TrainingResult:
    """Write the last file of a run: without it, a run that goes on ends once more, and writes all the others.

    Args:
        is_first: whether this process is the one that writes.
    """
    if is_first:
        write_whole(out / METRICS_FILE, (json.dumps(metrics | {"seconds": seconds}, indent=2) + "\n").encode())
    tell_state(str)  # an interruption from here on is not one of the training
    return TrainingResult(run=out, metrics=metrics, seconds=seconds)
