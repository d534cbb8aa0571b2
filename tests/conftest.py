"""What all tests share: one thread for each process, and a small data set of drawn motion."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tada.data.motion import write_motion_videos
from tada.recipe import Recipe
from tada.video.sampling import ClipSpec

# Tests import ONNX Runtime by themselves too, and it is not to report that.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Tests run side by side, one process for each core.
torch.set_num_threads(1)

MOTIONS_OF_TESTS = ("left", "right", "up")


@pytest.fixture(scope="session")
def motion_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders: three classes, five videos of 32x32 pixels and eight frames each."""
    folder = tmp_path_factory.mktemp("data") / "motion"
    write_motion_videos(
        folder, videos_per_class=5, seed=0, num_frames=8, width=32, height=32, fps=8.0, motions=MOTIONS_OF_TESTS
    )
    return folder


@pytest.fixture(scope="session")
def small_recipe() -> Recipe:
    """Two epochs of three steps on twelve clips of four frames."""
    return Recipe(
        model="tada2d_tiny",
        model_options={"widths": [8, 8, 8, 8], "stem_width": 8},
        init="none",
        clip=ClipSpec(num_frames=4, sampling="segment", short_side=24, crop=20, antialias=True),
        short_side_range=(20, 26),
        epochs=2,
        warmup_epochs=1.0,
        batch_size=4,
        optimizer="adamw",
        learning_rate=1e-2,
        head_learning_rate_factor=1.0,
        weight_decay=0.05,
        label_smoothing=0.0,
        clip_gradient_norm=None,
    )
