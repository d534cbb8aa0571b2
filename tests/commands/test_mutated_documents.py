"""Wrong annotations, cards, recipes and lists: a result or an error of ours, soon. Never a traceback, a hang, a crash.

The full number of mutations is a slow test: ``pytest -m slow -k mutat``.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from drawn_features import RECIPE, draw_features, silent
from drawn_videos import draw_plain
from mutations import wrong_documents, wrong_text
from tada.data.annotations import read_dataset
from tada.errors import CheckpointError, UserError
from tada.localization.annotations.formats import read_names
from tada.localization.annotations.table import read_segments
from tada.localization.classifiers import read_video_scores
from tada.localization.evaluation import evaluate_predictions
from tada.localization.features.folder import FeatureFolder
from tada.localization.localizer import load_localizer
from tada.localization.recipe import LocalizationRecipe
from tada.localization.trained_videos import TrainedVideos
from tada.localization.training import train_localizer
from tada.models import create_model
from tada.models.weights import ModelCard, load_model, save_model
from tada.recognition.recipe import Recipe
from tada.training.recipe import read_recipe, recipe_yaml
from tada.video.sampling import ClipSpec

HANG_SECONDS, SECONDS = 900, 30
"""A guard against hanging, and the most that a processor may work on one."""
MAX_KILOBYTES = 1_000_000
"""The most that the process may grow by."""
QUICK, FULL = 30, 400
"""Mutations of each form."""


@contextmanager
def soon() -> Iterator[None]:
    """Fail where something hangs, or takes half a minute of a processor; all of this takes less than a second."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_SECONDS)
    started = time.process_time()
    try:
        yield
        assert time.process_time() - started < SECONDS
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- right documents, and what reads them -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory, small_recipe: Recipe, motion_videos: Path) -> Path:
    """A folder with one of each."""
    folder = tmp_path_factory.mktemp("right")
    spec = ClipSpec(num_frames=4, sampling="segment", short_side=24, crop=20, antialias=True)
    options = {"widths": [8, 8], "depths": [1, 1], "stem_width": 8}
    card = ModelCard(
        model="tada2d_tiny",
        options=options,
        labels=("a", "b", "c"),
        head_sizes={"verb": 1, "noun": 2},
        clip=spec,
        metrics={"val_top1": 0.5},
        trained_from="nothing",
    )
    save_model(folder / "model", create_model("tada2d_tiny", num_classes=3, num_frames=4, **options), card)
    features, segments = draw_features(folder / "features_of", num_videos=4)
    train_localizer(
        replace(RECIPE, epochs=1), features, segments, folder / "localizer", show_progress=False, say=silent
    )
    (folder / "recipe.yaml").write_text(recipe_yaml(small_recipe))
    (folder / "localization.yaml").write_text(recipe_yaml(LocalizationRecipe()))
    (folder / "videos").mkdir()
    for name in ("a", "b", "c_000000_000010"):
        draw_plain(folder / "videos" / f"{name}.mp4", 10)
    (folder / "list.csv").write_text(
        "path,label,group,start,end\na.mp4,left,g1,0,1.5\nb.mp4,right,g2,0:01,00:00:02.5\n"
    )
    (folder / "kinetics.csv").write_text("label,youtube_id,time_start,time_end,split\nleft,c,0,10,train\n")
    (folder / "train.json").write_text(json.dumps([{"id": "a", "template": "Holding [something]"}, {"id": "b"}]))
    (folder / "segments.csv").write_text("video,start,end,label,split\na,0.5,1:02.5,x,train\nb,1,2,y,val\n")
    annotations = [{"segment": [0.5, 3.0], "label": "x"}, {"segment": [4, 7.25], "label": "y"}]
    database = {
        "a": {"duration": 10.0, "subset": "training", "annotations": annotations},
        "b": {"duration_second": "9.5", "subset": "validation", "annotations": annotations[:1]},
    }
    (folder / "anet.json").write_text(json.dumps({"version": "1.3", "database": database}))
    detections = {"a": [{"segment": [0.4, 3.1], "label": "x", "score": 0.9}], "b": []}
    (folder / "predictions.json").write_text(json.dumps({"version": "1", "results": detections}))
    (folder / "classifier.json").write_text(json.dumps({"class": ["x", "y"], "results": {"a": [0.3, 0.7]}}))
    (folder / "names.txt").write_text("a\nb\nc\n")
    studio = [
        {
            "data": {"video": "a.mp4"},
            "annotations": [
                {
                    "result": [
                        {
                            "type": "timelinelabels",
                            "value": {"ranges": [{"start": 1, "end": 9}], "timelinelabels": ["x"]},
                        }
                    ]
                }
            ],
        }
    ]
    (folder / "studio.json").write_text(json.dumps(studio))
    (folder / "elan.eaf").write_text(
        '<ANNOTATION_DOCUMENT FORMAT="3.0"><HEADER><MEDIA_DESCRIPTOR MEDIA_URL="file:///a.mp4"/></HEADER><TIME_ORDER>'
        '<TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="500"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="2500"/></TIME_ORDER>'
        '<TIER TIER_ID="actions"><ANNOTATION><ALIGNABLE_ANNOTATION TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">'
        "<ANNOTATION_VALUE>x</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER></ANNOTATION_DOCUMENT>"
    )
    return folder


def load_and_run(folder: Path) -> None:
    model, card = load_model(folder)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, card.clip.num_frames, card.clip.crop, card.clip.crop)).shape == (
            1,
            len(card.labels),
        )


def load_and_detect(folder: Path, right: Path) -> None:
    localizer = load_localizer(folder, device="cpu")
    features = FeatureFolder(right / "features_of" / "features")
    found = localizer.detector.detect(localizer.detector.prepare(features.read("v0")))
    localizer.named(found, "v0.mp4", 8.0)


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "model/model.json": lambda file, right: load_and_run(file.parent),
    "localizer/localizer.json": lambda file, right: load_localizer(file.parent, device="cpu"),
    "localizer/recipe.yaml": lambda file, right: load_localizer(file.parent, device="cpu"),
    "localizer/videos.csv": lambda file, right: TrainedVideos(file.parent),
    "features_of/features/v0.json": lambda file, right: FeatureFolder(file.parent).read("v0"),
    "recipe.yaml": lambda file, right: read_recipe(file, Recipe),
    "localization.yaml": lambda file, right: read_recipe(file, LocalizationRecipe),
    "list.csv": lambda file, right: read_dataset(file, root=right / "videos"),
    "kinetics.csv": lambda file, right: read_dataset(file, root=right / "videos"),
    "train.json": lambda file, right: read_dataset(file, root=right / "videos"),
    "segments.csv": lambda file, right: read_segments(file),
    "anet.json": lambda file, right: read_segments(file),
    "studio.json": lambda file, right: read_segments(file),
    "elan.eaf": lambda file, right: read_segments(file),
    "predictions.json": lambda file, right: evaluate_predictions(
        file, right / "anet.json", tiou_thresholds=(0.5,), split="train"
    ),
    "classifier.json": lambda file, right: read_video_scores(file),
    "names.txt": lambda file, right: read_names(file),
}


def wrong_files(name: str, right: Path, folder: Path, count: int) -> Iterator[Path]:
    """Write wrong ones of a right document, one at a time, beside what belongs to it."""
    source = right / name
    target = folder / name
    if source.parent != right:
        shutil.copytree(source.parent, target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    content = source.read_bytes()
    seed = sum(name.encode()) + int(os.environ.get("MUTATION_SEED", 0))
    rng = np.random.default_rng(seed)
    if name.endswith(".json"):
        texts = (text.encode("utf-8", "surrogateescape") for text in wrong_documents(json.loads(content), count, seed))
    elif name.endswith(".yaml"):
        import yaml

        of_values = wrong_documents(yaml.safe_load(content), count, seed)
        texts = (
            next(of_values).encode("utf-8", "surrogateescape") if i % 2 else wrong_text(content, rng)
            for i in range(count)
        )
    else:
        texts = (wrong_text(content, rng) for _ in range(count))
    for text in texts:
        target.write_bytes(text)
        yield target


def read_all(name: str, right: Path, folder: Path, count: int) -> int:
    """Read so many wrong ones; how many were refused."""
    told: list[str] = []
    open_files = len(os.listdir("/proc/self/fd"))
    most_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, file in enumerate(wrong_files(name, right, folder, count)):
        try:
            with soon():
                READERS[name](file, right)
        except UserError as error:
            told.append(str(error))
        except BaseException:
            kept = folder.parent / f"mutation_{number}_{file.name}"
            shutil.copy(file, kept)
            print(f"kept as {kept}")
            raise
    assert len(os.listdir("/proc/self/fd")) == open_files
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most_before < MAX_KILOBYTES
    assert not [message for message in told if len(message) > 2000 or "\n" in message]
    return len(told)


@pytest.mark.parametrize("name", READERS)
def test_mutated_documents(name: str, right: Path, tmp_path: Path) -> None:
    READERS[name](right / name, right)  # it is right
    assert read_all(name, right, tmp_path / "wrong", QUICK) > 0


def test_a_localizer_of_sizes_that_no_machine_has(right: Path, tmp_path: Path) -> None:
    shutil.copytree(right / "localizer", tmp_path / "localizer")
    card = json.loads((tmp_path / "localizer" / "localizer.json").read_text())
    for size in (2**31, 2**62):
        wrong = card | {"shape": card["shape"] | {"dim": size}}
        (tmp_path / "localizer" / "localizer.json").write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match="the shape of the detector is not as tada writes it"):
            load_localizer(tmp_path / "localizer", device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_mutated_documents(name: str, right: Path, tmp_path: Path) -> None:
    assert read_all(name, right, tmp_path / "wrong", FULL) > 0
