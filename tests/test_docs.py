"""Every Python block of the guides and of the README runs.

The ``python`` blocks of a file run in their order, in one process and one namespace, in an empty folder. A block that
begins with ``# needs NAME`` is left out where the package NAME is not installed. ``sh`` blocks are commands for a shell
and ``text`` blocks what something prints: they are not run here. Every block says which it is.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from hang import HANG_SECONDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KINDS = ("python", "sh", "text", "yaml")


def blocks(text: str) -> list[tuple[str, int, list[str]]]:
    """Kind, number of the first line, and lines of every fenced block."""
    found: list[tuple[str, int, list[str]]] = []
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            if not inside:
                found.append((line.removeprefix("```").strip(), number + 1, []))
            inside = not inside
        elif inside:
            found[-1][2].append(line)
    assert not inside, "a block without an end"
    return found


def program(text: str) -> str:
    """The Python blocks as one program whose lines have the numbers they have in the text."""
    lines = [""] * len(text.splitlines())
    for kind, first, block in blocks(text):
        needed = re.match(r"# needs (\w+)", block[0]) if block else None
        if kind == "python" and not (needed and find_spec(needed[1]) is None):
            lines[first - 1 : first - 1 + len(block)] = block
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Path) -> None:
    for kind, first, _ in blocks(page.read_text(encoding="utf-8")):
        assert kind in KINDS, f"{page.name}:{first - 1}: a block is one of {KINDS}, not {kind!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    code = program(page.read_text(encoding="utf-8"))
    if not code.strip():
        pytest.skip("no Python in it")
    file = tmp_path / page.with_suffix(".py").name.replace("-", "_")
    file.write_text(code, encoding="utf-8")
    folder = tmp_path / "folder"
    folder.mkdir()
    done = subprocess.run([sys.executable, str(file)], cwd=folder, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, f"{page.name}, lines as in {file.name}:\n{done.stderr}"


def test_the_reports_table_is_what_is_printed(tmp_path: Path) -> None:
    """The guide shows a report: it is the one that its first block prints."""
    text = (ROOT / "docs" / "plug-in.md").read_text(encoding="utf-8")
    found = blocks(text)
    code = "\n".join(next(block for kind, _, block in found if kind == "python"))
    shown = "\n".join(next(block for kind, _, block in found if kind == "text"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == shown


def test_the_rules() -> None:
    """The test of the test."""
    text = (
        "a\n```python\nx = 1\n```\n```sh\nrm x\n```\n```python\n# needs no_such_package\nimport no_such_package\n```\nb"
    )
    assert program(text).split("\n") == ["", "", "x = 1", *[""] * 9]
    with pytest.raises(AssertionError, match=r"a block without an end"):
        blocks("```python\nx")
