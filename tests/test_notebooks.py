"""The notebooks run from the first cell to the last, with small settings, and are committed without outputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hang import HANG_SECONDS

FOLDER = Path(__file__).parent.parent / "notebooks"
SMALL = {
    "first_steps": [("= 150, 18, 32", "= 3, 1, 4")],
    "your_clips": [('Path("clips"), 20', 'Path("clips"), 1'), ("videos_per_class=12", "videos_per_class=4")],
    "plug_in": [],
}
"""What is replaced in each notebook's code for the tests."""
CHECKS = {
    "first_steps": "assert set(accuracy) == {'tsn_tiny', 'tada2d_tiny'} and Path('why.png').is_file()",
    "your_clips": "assert len(answers) == 4 and Path('answer.mp4').is_file()",
    "plug_in": "assert right > 0.95",
}


def cells(name: str) -> list[dict[str, object]]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def program(name: str) -> str:
    """The code of a notebook, made small."""
    code = "\n\n".join("".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "code")
    for long, short in SMALL[name]:
        assert code.count(long) == 1, f"{name} says {long!r} no more"
        code = code.replace(long, short)
    return f"{code}\n\n{CHECKS[name]}\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_notebooks_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "notebook.py").write_text(program(name), encoding="utf-8")
    command = [sys.executable, "notebook.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr


def test_notebooks_have_no_outputs() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)
    for name in SMALL:
        for cell in cells(name):
            assert not cell.get("outputs"), f"{name}: clear the outputs"
            assert cell.get("execution_count") is None, f"{name}: clear the outputs"
