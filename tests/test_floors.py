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
        "tada.system.calls",
        "tada.commands",
        "tada.data",
        "tada.system.documents",
        "tada.recognition.intervals",
        "tada.localization",
        "tada.localization.detectors.segments",
        "tada.data.multi_label",
        "tada.system.terminal",
        "tada.video",
        "tada.video.numbered",
    },
    {"tada.system.progress"},
    {
        "tada.video.prefetch",
        "tada.system.array_files",
        "tada.data.identity",
        "tada.data.shared_batches",
        "tada.data.table",
        "tada.data.timing",
        "tada.data.workers",
        "tada.system.files",
        "tada.display.fonts",
        "tada.localization.features.grid",
        "tada.system.devices",
        "tada.system.typed_input",
        "tada.display.notebook",
        "tada.system.collectives",
        "tada.training.schedule",
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
        "tada.data.csv_rows",
        "tada.localization.detectors.detections",
        "tada.data.split_hashes",
        "tada.localization.annotations.video_names",
        "tada.system.signals",
        "tada.system.locks",
        "tada.models.tada2d",
        "tada.models.tadaconvnext",
        "tada.display.page",
        "tada.display.plots",
        "tada.video.captions",
        "tada.video.container",
        "tada.video.transforms",
    },
    {
        "tada.data.published_formats",
        "tada.data.plain_lists",
        "tada.data.loader",
        "tada.localization.detectors.actionformer",
        "tada.localization.features.sources",
        "tada.training.loggers",
        "tada.localization.detectors.bmn",
        "tada.models.fold",
        "tada.models.resnet3d",
        "tada.training.run_page",
        "tada.training.checkpoints",
        "tada.video.augment",
        "tada.video.index",
        "tada.video.sound",
    },
    {"tada.video.reader", "tada.video.writer"},
    {"tada.video.frames"},
    {
        "tada.training.best_epoch",
        "tada.data.clips",
        "tada.data.motion",
        "tada.data.published",
        "tada.models.gradcam",
        "tada.commands.help_screens",
        "tada.localization.annotations.formats",
        "tada.localization.annotations.frame_clock",
        "tada.models",
        "tada.models.parallel",
        "tada.recognition.recipe",
        "tada.video.inputs",
        "tada.video.stream",
    },
    {
        "tada.video.annotate",
        "tada.data.annotations",
        "tada.data.check",
        "tada.localization.annotations.labelling_xml",
        "tada.training.trainer",
        "tada.models.fuse",
        "tada.recognition.trained_part",
        "tada.models.weights",
        "tada.training.run_folder",
        "tada.training.loader_speed",
        "tada.commands.spelling",
    },
    {
        "tada.commands.arguments",
        "tada.data.run_videos",
        "tada.data.prepare",
        "tada.training.dry_run",
        "tada.recognition.explanation",
        "tada.localization.classifiers",
        "tada.localization.annotations.labelling_tools",
        "tada.models.convert",
        "tada.models.onnx_model",
        "tada.models.hub",
        "tada.recognition.task",
    },
    {
        "tada.commands.answers",
        "tada.commands.completion",
        "tada.localization.annotations.table",
        "tada.localization.features.folder",
        "tada.localization.recipe",
        "tada.models.pretrained",
        "tada.recognition.prediction",
    },
    {
        "tada.localization.metric_inputs",
        "tada.localization.features.importing",
        "tada.recognition.training_call",
        "tada.localization.naming",
        "tada.recognition.recognizer",
        "tada.recognition.results",
    },
    {
        "tada.commands.doctor",
        "tada.recognition.epic_challenge",
        "tada.recognition.evaluation",
        "tada.localization.detectors.detector",
        "tada.localization.features.extraction",
        "tada.localization.metrics",
        "tada.recognition.report",
    },
    {
        "tada.localization.localizer",
        "tada.localization.trained_videos",
        "tada.localization.trimmed",
        "tada.recognition.training",
    },
    {
        "tada.localization.evaluation",
        "tada.localization.streaming",
        "tada.localization.task",
        "tada.loading",
        "tada.recognition.quickstart",
    },
    {"tada.commands.streaming", "tada.export", "tada.recognition.streaming", "tada.localization.report"},
    {"tada.commands.live", "tada.localization.training"},
    {"tada.localization.train_from_videos"},
    {
        "tada.commands.datasets",
        "tada.commands.library",
        "tada.commands.localization",
        "tada.commands.recognition",
    },
    {"tada.commands.cli"},
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
        "def f():\n    import tada.commands.cli\n    from tada.models import weights, create_model\n"
    )
    assert sorted(imported(tmp_path / "x.py")) == [
        ("tada", 2),
        ("tada.commands.cli", 4),
        ("tada.models", 5),
        ("tada.models.weights", 5),
    ]


def test_what_the_command_line_reads_first_comes_without_torch() -> None:
    read_first = "tada.errors, tada.recognition.recipe, tada.data.annotations, tada.video.sampling"
    code = f"import sys, tada, {read_first}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "lightning", "matplotlib"} & set(loaded)
