"""The architecture as a test: a module stands on a floor and imports only from the floors below it.

A new module takes its place in ``FLOORS``. If an import breaks the rule, it is the module that has to move.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "tada"

FLOORS = [
    {"tada.errors"},
    {
        "tada.calls",
        "tada.commands",
        "tada.data",
        "tada.documents",
        "tada.intervals",
        "tada.localization",
        "tada.localization.segments",
        "tada.several_labels",
        "tada.terminal",
        "tada.video",
        "tada.video.numbered",
    },
    {"tada.progress"},
    {
        "tada.ahead",
        "tada.arrays",
        "tada.data.identity",
        "tada.data.parcels",
        "tada.data.table",
        "tada.data.timing",
        "tada.data.workers",
        "tada.files",
        "tada.fonts",
        "tada.localization.grid",
        "tada.machine",
        "tada.mistakes",
        "tada.notebook",
        "tada.ranks",
        "tada.schedule",
        "tada.tadaconv",
        "tada.video.boxes",
        "tada.video.live",
        "tada.video.pictures",
        "tada.video.pixels",
        "tada.video.sampling",
    },
    {
        "tada.adaptation",
        "tada.data.balance",
        "tada.data.manifest",
        "tada.data.recordings",
        "tada.data.rows",
        "tada.localization.detections",
        "tada.data.splits",
        "tada.localization.video_names",
        "tada.interruption",
        "tada.locks",
        "tada.models.tada2d",
        "tada.models.tadaconvnext",
        "tada.page",
        "tada.plots",
        "tada.video.captions",
        "tada.video.container",
        "tada.video.transforms",
    },
    {
        "tada.data.lists",
        "tada.data.plain_lists",
        "tada.data.loader",
        "tada.localization.actionformer",
        "tada.localization.sources",
        "tada.loggers",
        "tada.localization.bmn",
        "tada.models.fold",
        "tada.models.hosts",
        "tada.run_page",
        "tada.saved_states",
        "tada.video.augment",
        "tada.video.index",
        "tada.video.sound",
    },
    {"tada.video.reader", "tada.video.writer"},
    {"tada.video.frames"},
    {
        "tada.best_epoch",
        "tada.data.clips",
        "tada.data.motion",
        "tada.data.published",
        "tada.gradcam",
        "tada.help_screens",
        "tada.localization.forms",
        "tada.localization.frame_clock",
        "tada.models",
        "tada.models.parallel",
        "tada.recipe",
        "tada.video.inputs",
        "tada.video.stream",
    },
    {
        "tada.video.annotate",
        "tada.data.annotations",
        "tada.data.check",
        "tada.localization.labelling_xml",
        "tada.loop",
        "tada.models.fuse",
        "tada.models.trained_part",
        "tada.models.weights",
        "tada.run_folder",
        "tada.speed",
        "tada.spelling",
    },
    {
        "tada.commands.arguments",
        "tada.data.known",
        "tada.data.prepare",
        "tada.dry_run",
        "tada.explanation",
        "tada.localization.classifiers",
        "tada.localization.labelling_tools",
        "tada.models.convert",
        "tada.models.exported",
        "tada.models.hub",
        "tada.recognition_task",
    },
    {
        "tada.commands.answers",
        "tada.completion",
        "tada.localization.annotations",
        "tada.localization.features",
        "tada.localization.recipe",
        "tada.models.initial",
        "tada.prediction",
    },
    {
        "tada.localization.events",
        "tada.localization.importing",
        "tada.training_call",
        "tada.localization.naming",
        "tada.recognizer",
        "tada.results",
    },
    {
        "tada.doctor",
        "tada.epic",
        "tada.evaluation",
        "tada.localization.detectors",
        "tada.localization.extraction",
        "tada.localization.metrics",
        "tada.report",
    },
    {
        "tada.localization.localizer",
        "tada.localization.trained_videos",
        "tada.localization.trimmed",
        "tada.recognition",
    },
    {
        "tada.localization.evaluation",
        "tada.localization.streaming",
        "tada.localization.training_loop",
        "tada.loading",
        "tada.quickstart",
    },
    {"tada.commands.streaming", "tada.export", "tada.live", "tada.localization.report"},
    {"tada.commands.live", "tada.localization.task"},
    {"tada.localization.pipeline"},
    {
        "tada.commands.datasets",
        "tada.commands.library",
        "tada.commands.localization",
        "tada.commands.recognition",
    },
    {"tada.cli"},
    {"tada.__main__"},
    {"tada"},
]
FLOOR = {module: i for i, modules in enumerate(FLOORS) for module in modules}


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


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


def test_every_module_is_on_a_floor() -> None:
    assert FILES.keys() - FLOOR.keys() == set(), "put each new module on a floor"
    assert sum(len(modules) for modules in FLOORS) == len(FLOOR), "a module stands on one floor only"


@pytest.mark.parametrize("module", FILES)
def test_imports_only_go_down(module: str) -> None:
    for below, line in imported(FILES[module]):
        where = f"{FILES[module].name}:{line}"
        assert below != "tada", f"{where}: import from the module that defines it, not from tada"
        assert below in FLOOR, f"{where}: {below} is no module of tada"
        assert FLOOR[below] < FLOOR[module], f"{where}: {module} must not import {below}, which is on no lower floor"


def test_an_import_upwards_is_seen(tmp_path: Path) -> None:
    """The test of the test: imports in functions, of modules and of names in them."""
    (tmp_path / "x.py").write_text(
        "import os\nfrom tada import errors\n"
        "def f():\n    import tada.cli\n    from tada.models import weights, create_model\n"
    )
    assert sorted(imported(tmp_path / "x.py")) == [
        ("tada", 2),
        ("tada.cli", 4),
        ("tada.models", 5),
        ("tada.models.weights", 5),
    ]


def test_what_the_command_line_reads_first_comes_without_torch() -> None:
    code = "import sys, tada, tada.errors, tada.recipe, tada.data.annotations, tada.video.sampling; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "lightning", "matplotlib"} & set(loaded)
