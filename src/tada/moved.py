"""Old names of moved or renamed modules, functions and classes.

Importing an old name raises an ImportError with the new one.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # type checkers take it as true; importing ``typing`` would delay the handling of Ctrl-C
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import NoReturn

MOVED = {
    "ahead": "video.prefetch",
    "arrays": "system.array_files",
    "best_epoch": "training.best_epoch",
    "calls": "system.calls",
    "cli": "commands.cli",
    "commands.live": "commands.predict_stream",
    "commands.localization": "commands.localize",
    "commands.localizers": "commands.localize_train",
    "commands.recognition": "commands.predict",
    "commands.streaming": "commands.localize_stream",
    "completion": "commands.completion",
    "data.known": "data.run_videos",
    "data.lists": "data.published_formats",
    "data.parcels": "data.shared_batches",
    "data.rows": "data.csv_rows",
    "data.timing": "data.loader_timing",
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
"""Old names of modules -> new ones, without ``tada.``."""

MOVED_NAMES = {
    "data.annotations": {
        "data.labeled_csv": "write_table",
        "data.listed_videos": "IDENTITY_COLUMNS SEPARATOR",
    },
    "data.clips": {
        "data.table": "Unreadable",
        "data.views": "TestVideos ViewBatch Views collate_views read_views test_loader",
    },
    "data.csv_rows": {
        "data.times_and_splits": "check_all_or_none_split decimal_number parse_seconds "
        "seconds segment split_cell split_name",
        "system.files": "absolute_path",
    },
    "data.table": {
        "data.times_and_splits": "SPLIT_OF",
        "data.hold_out": "check_each_label_in_each_split hold_out hold_out_groups with_splits",
        "errors": "listed",
    },
    "localization.annotations": {
        "localization.annotations.table": (
            "DUPLICATE_SECONDS GRACE_SECONDS VAL_FRACTION Segment SegmentTable UntrimmedVideo check_for_training "
            "named_like read_segments with_durations with_splits"
        ),
    },
    "localization.annotations.formats": {"data.times_and_splits": "parse_seconds split_name"},
    "localization.detectors": {
        "localization.detectors.actionformer": "ActionFormerDetector",
        "localization.detectors.bmn": "BMNDetector",
        "localization.detectors.detector": "detector_of new_detector",
        "localization.detectors.samples": "Piece RollingView Sample SampleBatch pad truths",
    },
    "localization.detectors.actionformer": {
        "localization.detectors.actionformer_losses": "LevelOutputs Loss Targets assign diou_loss focal_loss losses",
    },
    "localization.detectors.bmn": {
        "localization.detectors.bmn_losses": "BMNLosses BMNOutputs BMNTargets bmn_losses targets valid_cells",
        "localization.features.interpolation": "at_times",
    },
    "localization.features": {
        "localization.features.folder": (
            "Array FeatureCard FeatureFolder PUBLISHED_ENDINGS VideoFeatures has_features read_card write_card "
            "write_features"
        ),
    },
    "localization.features.extraction": {"video.sliding_windows": "clips_of", "video.transforms": "frame_crops"},
    "localization.streaming": {"video.sliding_windows": "ReadyClip clips_as_they_come"},
    "localization.training": {
        "localization.run_outputs": "thresholds_of",
        "localization.training_data": "prepare_table",
        "training.best_epoch": "BEST",
    },
    "localization.training_step": {"training.best_epoch": "BestEpoch"},
    "recognition": {"recognition.training": "train", "training.run_folder": "TrainingResult"},
    "recognition.recipe": {
        "training.recipe": (
            "METRICS_FILE RECIPE_FILE changed check_recipe find_recipe fps_of_run named_recipes read_recipe "
            "recipe_of_run recipe_yaml resumed typed_recipe"
        ),
    },
    "recognition.recognizer": {"video.find": "find_videos"},
    "recognition.training_call": {
        "recognition.resumed_run": "more_epochs_in_words of_same_run yaml_of_run",
        "recognition.training_data": "augmentation",
    },
    "recognition.training_step": {"training.loss_check": "NonFiniteLossError"},
    "training.schedule": {"data.epochs": "LastBatch steps_of_epoch"},
    "training.trainer": {"training.schedule": "learning_rate_factor"},
    "video.transforms": {"video.sampling": "MEAN STD"},
}
"""Old module (by its present name) -> new module -> the names that were moved; modules without ``tada.``."""

RENAMED = {
    "commands.spelling.normalised": "commands.spelling.normalized",
    "data.clips.Sample": "data.clips.TrainingClip",
    "data.clips.open_labelled": "data.clips.open_labeled",
    "data.plain_lists.read_plain": "data.plain_lists.read_plain_lists",
    "data.prepare.Failure": "data.prepare.NotCopied",
    "data.table.LabelledVideo": "data.table.LabeledVideo",
    "localization.annotations.LabelSet": "data.table.Head",
    "localization.features.extraction.ExtractionSettings": "video.sliding_windows.SlidingWindows",
    "localization.features.extraction.Failure": "data.table.Unreadable",
    "localization.features.extraction.joined": "localization.features.extraction.join_outputs",
    "localization.features.extraction.settings_of": "localization.features.extraction.settings_as_dict",
    "localization.features.importing.read_published": "localization.features.importing.read_feature_file",
    "localization.naming.named": "localization.naming.name_segments",
    "localization.recipe.named_localization_recipes": "training.recipe.named_recipes",
    "localization.training.LocalizationResult": "training.run_folder.TrainingResult",
    "models.parallel.synchronise_batch_norms": "models.parallel.synchronize_batch_norms",
    "models.pretrained.initialise": "models.pretrained.initialize",
    "models.resnet3d.Block": "models.resnet3d.Bottleneck3d",
    "models.tadaconvnext.Block": "models.tadaconvnext.ConvNeXtBlock",
    "recognition.recognizer.load": "recognition.recognizer.load_recognizer",
    "training.run_folder.finished_metrics": "training.run_folder.finished_result",
    "training.run_folder.write_metrics": "training.run_folder.end_run",
    "video.augment.random_resized_crop": "video.augment.draw_resized_crop",
    "video.transforms.centre_crop": "video.transforms.center_crop",
    "video.transforms.normalise": "video.transforms.normalize",
    "video.transforms.recolour": "video.transforms.recolor",
}
"""Old names of classes and functions -> new ones, without ``tada.``."""

_LOST_NAMES = {*MOVED_NAMES, *(name.rpartition(".")[0] for name in RENAMED)}


def new_place(old: str) -> str | None:
    """The new name of a moved module, function or class; None if it was not moved. Both without ``tada.``."""
    module, _, name = old.rpartition(".")
    for place, names in MOVED_NAMES.get(module, {}).items():
        if name in names.split():
            return f"{place}.{name}"
    return MOVED.get(old) or RENAMED.get(old)


class Signpost:
    """Import hook (a ``MetaPathFinder``) that Python asks before its own finders.

    It raises ImportError for old names of modules, and adds a ``__getattr__`` to modules from which names were moved.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "tada":
            return None
        place = new_place(name)
        if place is not None:
            raise ImportError(f"{fullname} is tada.{place} now", name=fullname)
        return self._find_with_lost_names(fullname, path, target) if name in _LOST_NAMES else None

    def _find_with_lost_names(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        loader = None if spec is None else spec.loader
        if loader is not None:
            run = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                if module.__name__ == fullname:  # some loaders serve several modules
                    vars(module)["__getattr__"] = lambda name: _refuse(module, name)
                run(module)

            vars(loader)["exec_module"] = exec_module
        return spec


def put_up_signpost() -> None:
    """Install the import hook, once."""
    if not any(isinstance(finder, Signpost) for finder in sys.meta_path):
        sys.meta_path.insert(0, Signpost())


def _refuse(module: ModuleType, name: str) -> NoReturn:
    """Raise an error with the new name of a moved one: an ImportError for ``from module import name``.

    Other lookups of an attribute (``hasattr``, ``inspect``, ``pickle``) get the AttributeError that they expect.
    """
    place = new_place(f"{module.__name__.removeprefix('tada.')}.{name}")
    message = f"module {module.__name__!r} has no attribute {name!r}"
    if place is not None:
        from opcode import opmap

        asks = sys._getframe(2)
        if asks.f_code.co_code[asks.f_lasti] == opmap["IMPORT_FROM"]:
            raise ImportError(f"{module.__name__}.{name} is tada.{place} now", name=module.__name__)
        message = f"{message}: it is tada.{place} now"
    raise AttributeError(message, name=name, obj=module)
