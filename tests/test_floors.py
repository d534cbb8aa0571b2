"""The architecture as a test: rooms stand above each other, and a file imports from its own room and those below.

A new file or folder at the top of the package takes its place in ``ROOMS``. If an import breaks the rule, it is the
module that has to move.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "tada"

ROOMS = [
    "errors",
    "moved",
    "system",
    "display",
    "tadaconv",
    "adaptation",
    "video",
    "models",
    "data",
    "training",
    "recognition",
    "localization",
    "loading",
    "jobs",
    "demo",
    "export",
    "serving",
    "commands",
    "__main__",
    "__init__",
]
"""From the bottom up."""


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imported(path: Path) -> list[tuple[str, int]]:
    """What a file imports from the package, at its top or inside functions, with the line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(name.name, node.lineno) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: write the whole name instead of the dots"
            for name in node.names:
                # ``from tada.models import weights`` means the module, ``create_model`` the package.
                inner = f"{node.module}.{name.name}"
                is_module = inner in FILES and node.module != "tada"
                found.append((inner if is_module else str(node.module), node.lineno))
    return [(name, line) for name, line in found if name.split(".")[0] == "tada"]


IMPORTS = {module: imported(path) for module, path in FILES.items()}


def test_every_room_has_its_place() -> None:
    entries = {path.stem for path in SOURCE.iterdir() if path.name not in ("__pycache__", "py.typed")}
    assert entries == set(ROOMS), "put each new file or folder at the top into ROOMS"
    assert len(entries) <= 20, "what serves others lies in a room"


def test_imports_only_go_down() -> None:
    for module, found in IMPORTS.items():
        for below, line in found:
            where = f"{FILES[module].relative_to(SOURCE)}:{line}"
            assert below != "tada", f"{where}: import from the module that defines it, not from tada"
            assert below in FILES, f"{where}: {below} is no module of tada"
            rises = ROOMS.index(room_of(below)) > ROOMS.index(room_of(module))
            assert not rises, f"{where}: {module} must not import {below}, whose room is above"


def test_imports_make_no_circle() -> None:
    graph = {module: {below for below, _ in found} for module, found in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_an_import_upwards_is_seen(tmp_path: Path) -> None:
    """The test of the test: imports in functions, of modules and of names in them."""
    (tmp_path / "x.py").write_text(
        "import os\nfrom tada import errors\n"
        "def f():\n    import tada.export\n    from tada.models import weights, create_model\n"
    )
    assert sorted(imported(tmp_path / "x.py")) == [
        ("tada", 2),
        ("tada.export", 4),
        ("tada.models", 5),
        ("tada.models.weights", 5),
    ]


def test_what_the_command_line_reads_first_comes_without_torch() -> None:
    read_first = "tada.errors, tada.recognition.recipe, tada.data.annotations, tada.video.sampling"
    code = f"import sys, tada, {read_first}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "lightning", "matplotlib"} & set(loaded)
