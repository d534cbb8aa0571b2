"""Wrong media files: pictures or an error of ours, soon, in little memory. Never a crash, a hang, a foreign error.

The full number is a slow test: ``pytest -m slow -k mutated_media``. It prints a table (``-s``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mutated_media import FORMS
from tada import errors

QUICK, FULL = 20, 400
"""Wrong files of each form."""
MAX_MEGABYTES, SECONDS = 1000, 30
"""The most that one of them may cost: beside what the libraries take, and of a processor's time."""
REASONS = {kind.reason for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "reason")}


def read_wrong_media(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """What came of so many wrong files of each form; those that end in a fault are kept in the folder."""
    program = Path(__file__).parents[1].joinpath("mutated_media.py")
    paths = [str(program.parent), str(program.parent.parent / "src")]
    done = subprocess.run(
        [sys.executable, str(program), str(folder), str(count), str(seed)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{lines[-1:]}\n{done.stderr}"  # it crashed, hung, or left a file open
    found = [line for line in lines if "kind" in line]
    faults = [line for line in found if line["kind"] not in {"pictures", *REASONS}]
    assert not faults, f"{len(faults)} faults, such as {faults[0]}\n{done.stderr}"
    return found


def table(found: list[dict[str, Any]]) -> str:
    """One line for each form: how many files, what came of them, the slowest and the largest."""
    lines = []
    for form in [*FORMS, ""]:
        of_form = [line for line in found if form in ("", line["form"])]
        kinds = ", ".join(f"{kind} {number}" for kind, number in Counter(line["kind"] for line in of_form).items())
        seconds, megabytes = (max(line[name] for line in of_form) for name in ("seconds", "megabytes"))
        lines.append(f"{form or 'all':14} {len(of_form):5} {seconds:6.2f} s {megabytes:4} MB  {kinds}")
    return "\n".join(lines)


def check_costs(found: list[dict[str, Any]]) -> None:
    assert max(line["seconds"] for line in found) < SECONDS
    assert max(line["megabytes"] for line in found) < MAX_MEGABYTES
    # What is there is said to be there, and what is said of most files is that they can be read, or break off.
    kinds = Counter(line["kind"] for line in found)
    assert kinds["not_found"] == kinds["not_a_regular_file"] == kinds["timeout"] == 0
    assert min(kinds[kind] for kind in ("pictures", "truncated", "corrupt")) > 0


def test_mutated_media(tmp_path: Path) -> None:
    found = read_wrong_media(QUICK, 1, tmp_path)
    assert len(found) == QUICK * len(FORMS)
    check_costs(found)


@pytest.mark.slow
def test_many_mutated_media(tmp_path: Path) -> None:
    found = read_wrong_media(FULL, int(os.environ.get("MUTATION_SEED", 0)), tmp_path)
    assert len(found) == FULL * len(FORMS) > 6000
    print(f"\n{table(found)}")
    check_costs(found)
