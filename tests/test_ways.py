"""Which files a clip crosses on its way: few, and each for a reason.

A file is on the way if one of its functions takes or returns the clip's content: decoded frames, or arrays and tensors
of two dimensions or more, which are pixels, feature maps, features, logits and segments. Functions that only take
paths, headers, times and options are beside the way. A new file on a way is a decision: it takes its place in the list.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import av
import numpy as np
import torch
from torch import nn

import tada
from small_localizer import small_localizer
from tada.data.annotations import read_dataset
from tada.data.clips import TrainingClips, collate_clips
from tada.recognition.recipe import Recipe
from tada.recognition.recognizer import load_recognizer
from tada.recognition.training_data import augmentation
from tada.recognition.training_step import RecognitionTask

PACKAGE = Path(tada.__file__).parent


def _is_of_a_clip(value: Any, depth: int = 3) -> bool:
    """Whether a value is, or holds, frames, features or logits."""
    if isinstance(value, av.VideoFrame):
        return True
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim >= 2
    if depth == 0 or isinstance(value, nn.Module | type):
        return False
    parts: Iterable[Any] = ()
    if isinstance(value, tuple | list):
        parts = value
    elif isinstance(value, dict):
        parts = value.values()
    elif dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return any(_is_of_a_clip(part, depth - 1) for part in parts)


def files_crossed(work: Callable[[], object]) -> list[str]:
    """The files of tada whose functions take or return what is in a clip, in all threads, in alphabetical order."""
    crossed: set[str] = set()

    def look(frame: FrameType, event: str, returned: Any) -> None:
        code = frame.f_code
        file = Path(code.co_filename)
        if event not in ("call", "return") or not file.is_relative_to(PACKAGE):
            return
        name = file.relative_to(PACKAGE).as_posix()
        if name in crossed:
            return
        num_taken = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4)  # 4: it has *args
        values = [frame.f_locals.get(each) for each in code.co_varnames[:num_taken]] if event == "call" else [returned]
        if any(map(_is_of_a_clip, values)):
            crossed.add(name)

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # as documented
    return sorted(crossed)


def test_from_a_file_to_the_answer(motion_videos: Path, small_backbone: Path) -> None:
    recognizer = load_recognizer(small_backbone, device="cpu")
    video = next(motion_videos.rglob("*.mp4"))
    assert files_crossed(lambda: recognizer.predict(video)) == [
        "models/fuse.py",
        "models/fused_parts.py",
        "models/tada2d.py",
        "recognition/recognizer.py",
        "recognition/video_clips.py",
        "system/accelerator.py",
        "video/prefetch.py",
        "video/reader.py",
        "video/transforms.py",
    ]


def test_from_a_row_to_the_loss(motion_videos: Path) -> None:
    table = read_dataset(motion_videos)
    recipe = Recipe(epochs=1, batch_size=2, warmup_epochs=0.0, erase_probability=1.0)
    network = tada.create_model(recipe.model, num_classes=len(table.heads[0].labels))
    clips = TrainingClips(table, recipe.clip, augmentation(recipe, table.heads), seed=0)
    step = RecognitionTask(
        network, recipe, steps_per_epoch=1, head_sizes={head.name: len(head.labels) for head in table.heads}
    )
    step.log = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer
    crossed = files_crossed(lambda: step.training_step(collate_clips([clips[0, 0], clips[0, 1]]), 0))
    assert crossed == [
        "data/clips.py",
        "models/tada2d.py",
        "recognition/training_step.py",
        "tadaconv/__init__.py",
        "video/augment.py",
        "video/reader.py",
        "video/transforms.py",
    ]


def test_from_an_untrimmed_video_to_its_segments(untrimmed: Path, small_backbone: Path) -> None:
    localizer = small_localizer(small_backbone)
    assert files_crossed(lambda: localizer.localize(untrimmed / "v0.mp4", min_score=0.0)) == [
        "localization/detectors/actionformer.py",
        "localization/detectors/nms.py",
        "localization/features/extraction.py",
        "localization/features/grid.py",
        "localization/localizer.py",
        "models/fuse.py",
        "models/fused_parts.py",
        "models/tada2d.py",
        "recognition/recognizer.py",
        "system/accelerator.py",
        "video/prefetch.py",
        "video/reader.py",
        "video/sliding_windows.py",
        "video/transforms.py",
    ]
