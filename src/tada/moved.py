"""Where modules went when the two tasks were built on one plan: an import by an old name says the new one."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as type checkers take it; ``typing`` costs time before Ctrl-C is received
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any

MOVED = {
    "ahead": "video.prefetch",
    "arrays": "system.array_files",
    "best_epoch": "training.best_epoch",
    "calls": "system.calls",
    "cli": "commands.cli",
    "completion": "commands.completion",
    "data.known": "data.run_videos",
    "data.lists": "data.published_formats",
    "data.parcels": "data.shared_batches",
    "data.rows": "data.csv_rows",
    "data.splits": "data.split_hashes",
    "doctor": "commands.doctor",
    "documents": "system.documents",
    "dry_run": "training.dry_run",
    "epic": "recognition.epic_challenge",
    "evaluation": "recognition.evaluation",
    "explanation": "recognition.explanation",
    "files": "system.files",
    "fonts": "display.fonts",
    "gradcam": "models.gradcam",
    "help_screens": "commands.help_screens",
    "interruption": "system.signals",
    "intervals": "recognition.intervals",
    "live": "recognition.streaming",
    "localization.actionformer": "localization.detectors.actionformer",
    "localization.bmn": "localization.detectors.bmn",
    "localization.detections": "localization.detectors.nms",
    "localization.detectors.detections": "localization.detectors.nms",
    "localization.events": "localization.metric_inputs",
    "localization.extraction": "localization.features.extraction",
    "localization.forms": "localization.annotations.formats",
    "localization.frame_clock": "localization.annotations.frame_clock",
    "localization.grid": "localization.features.grid",
    "localization.importing": "localization.features.importing",
    "localization.labelling_tools": "localization.annotations.labeling_tools",
    "localization.labelling_xml": "localization.annotations.cvat_elan",
    "localization.pipeline": "localization.train_from_videos",
    "localization.segments": "localization.detectors.nms",
    "localization.sources": "localization.features.sources",
    "localization.task": "localization.training",
    "localization.training_loop": "localization.training_step",
    "localization.video_names": "localization.annotations.video_names",
    "locks": "system.locks",
    "loggers": "training.loggers",
    "loop": "training.trainer",
    "machine": "system.devices",
    "mistakes": "system.typed_input",
    "models.clip_shape": "models.tada2d",
    "models.exported": "models.onnx_model",
    "models.fold": "models.fold_norms",
    "models.hosts": "models.resnet3d",
    "models.initial": "models.pretrained",
    "models.trained_part": "recognition.trained_part",
    "notebook": "display.notebook",
    "page": "display.page",
    "plots": "display.plots",
    "prediction": "recognition.prediction",
    "progress": "system.progress",
    "quickstart": "recognition.quickstart",
    "ranks": "system.collectives",
    "recipe": "recognition.recipe",
    "recognition_task": "recognition.training_step",
    "recognizer": "recognition.recognizer",
    "report": "recognition.report",
    "results": "recognition.results",
    "run_folder": "training.run_folder",
    "run_page": "training.run_page",
    "saved_states": "training.checkpoints",
    "schedule": "training.schedule",
    "several_labels": "data.multi_label",
    "speed": "training.loader_speed",
    "spelling": "commands.spelling",
    "terminal": "system.terminal",
    "training_call": "recognition.training_call",
    "video.pixels": "video.reader",
}
"""Modules by their old names and their new ones, below ``tada``."""


class Signpost:
    """A finder of modules, asked for those that nobody else has found (a ``MetaPathFinder``)."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        package, _, name = fullname.partition(".")
        if package == "tada" and name in MOVED:
            raise ImportError(f"{fullname} is tada.{MOVED[name]} now", name=fullname)


def put_up_signpost() -> None:
    """Have old names answered with the new ones."""
    if not any(isinstance(finder, Signpost) for finder in sys.meta_path):
        sys.meta_path.append(Signpost())


def names_now_in(package: str, module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package that was a module: an import of a name that it had says where that is now.

    Imports alone are answered: others that look for an attribute want to hear that it is not there.
    """

    def look(name: str) -> Any:
        is_import = sys._getframe(1).f_code.co_name == "_handle_fromlist"  # of importlib
        if is_import and not name.startswith("__"):
            from importlib import import_module
            from importlib.util import find_spec

            if find_spec(f"{package}.{name}") is None and hasattr(import_module(module), name):
                raise ImportError(f"{package}.{name} is in {module} now", name=package)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return look
