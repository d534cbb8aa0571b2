"""HTML report of a training: its curves, the final test, the recipe, the data and the commands.

Curves are read from the run's logs: loss, scores on held-out videos, learning rate. A resumed run has a folder of logs
for each start; if two starts logged an epoch, the later one counts.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tada.display.page import PAGE, Picture, Section, Table, write_page
from tada.display.plots import save_curves

CURVES_FILE = "curves.png"
VALIDATION = "validation"
"""Folder within a run's folder of the test on its held-out videos."""
LOGS = "logs"
RATE = "learning_rate"
"""Name in the logs of the learning rate at the start of an epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A number that was measured at the end of some epochs."""

    epochs: tuple[int, ...]
    """From 1; increasing."""
    values: tuple[float, ...]


def read_curves(run: Path) -> dict[str, Curve]:
    """The numbers of a run by their names in the logs, such as train_loss, val_top1; empty without logs.

    Incomplete lines, left by a killed process, are skipped.
    """
    found: dict[str, dict[int, float]] = {}
    for file in sorted(run.glob(f"{LOGS}/start_*/metrics.csv"), key=_start_number):
        with file.open(newline="", encoding="utf-8", errors="replace") as lines:
            for row in csv.DictReader(lines):
                for name, cell in row.items():
                    if name and name.startswith(("train_", "val_", RATE)) and cell:
                        try:
                            found.setdefault(name, {})[int(row["epoch"]) + 1] = float(cell)
                        except (KeyError, TypeError, ValueError):
                            continue
    return {
        name: Curve(epochs=tuple(sorted(values)), values=tuple(values[epoch] for epoch in sorted(values)))
        for name, values in found.items()
    }


def tested_epochs(run: Path) -> tuple[int, ...]:
    """The epochs, counted from 1, after which held-out videos were tested, from the logs of all starts of a run."""
    curve = read_curves(run).get("val_loss")
    return () if curve is None else curve.epochs


def _start_number(file: Path) -> int:
    number = file.parent.name.partition("_")[2]
    return int(number) if number.isdecimal() else -1


def draw_curves(curves: Mapping[str, Curve], file: Path) -> None:
    """Draw curves into panels below each other: losses, scores on held-out videos, the learning rate.

    Raises:
        OutputError: the file cannot be written.
    """
    panels = {
        "loss in training": [name for name in curves if name.startswith("train_")],
        "loss on held-out videos": [name for name in curves if name == "val_loss"],
        "on held-out videos": [name for name in curves if name.startswith("val_") and name != "val_loss"],
        "learning rate": [name for name in curves if name == RATE],
    }
    save_curves(
        {
            title: {_short(name): (curves[name].epochs, curves[name].values) for name in sorted(names)}
            for title, names in panels.items()
            if names
        },
        file,
    )


def _short(name: str) -> str:
    return name.removeprefix("train_").removeprefix("val_").replace("_", " ")


def write_run_page(
    run: Path,
    facts: Sequence[tuple[str, str]],
    tested: Sequence[Section],
    *,
    lead: str,
    recipe: str,
    commands: Sequence[str],
) -> None:
    """Write report.html and curves.png into a run's folder.

    Args:
        facts: the rows (name, value) of the table "What was trained".
        tested: sections of the test on the held-out videos.
        lead: the line below the title, with the result.
        recipe: as YAML.
        commands: the commands that started and continued the run.

    Raises:
        OutputError: a file cannot be written.
    """
    sections = []
    curves = read_curves(run)
    if curves:
        draw_curves(curves, run / CURVES_FILE)
        caption = "Over the epochs of the training. Numbers behind the curves are those of the last epoch."
        sections.append(Section(heading="Curves", pictures=[Picture.of_file(run / CURVES_FILE, caption)]))
    sections += [
        *tested,
        Section(heading="What was trained", tables=[Table(rows=facts)], lines=commands),
        Section(heading="Recipe", lines=recipe.splitlines()),
    ]
    write_page(run / PAGE, f"Training {run.absolute().name}", sections, lead=lead)
