"""What all tests share: one thread for each process, small data sets of drawn motion, an untrained network."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from drawn_videos import MOTIONS_OF_TESTS
from tada.data.motion import draw_motion, write_motion_videos
from tada.models import create_model
from tada.models.weights import ModelCard, save_model
from tada.recognition.recipe import Recipe
from tada.video.isolation.readers import Readers
from tada.video.sampling import ClipSpec
from tada.video.writer import write_video

# Tests import ONNX Runtime by themselves too, and it is not to report that.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# A shell that starts the tests in the background has them ignore Ctrl-C, and so would all commands that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests run side by side, one process for each core.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def readers() -> Iterator[Readers]:
    """Processes that decode, started once: that takes seconds."""
    readers = Readers()
    readers.start()
    yield readers
    readers.close()


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


@pytest.fixture(scope="session")
def untrimmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three untrimmed videos of 4 s, each with a motion to the left and one upwards; and segments.csv."""
    folder = tmp_path_factory.mktemp("untrimmed")
    rows = ["video,start,end,label,split"]
    for v in range(3):
        frames = np.full((32, 32, 32, 3), 30, np.uint8)
        for k, motion in enumerate(("left", "up")):
            clip = draw_motion(motion, np.random.default_rng(10 * v + k), num_frames=8, width=32, height=32)
            frames[4 + 14 * k : 12 + 14 * k] = clip
            start = (4 + 14 * k) / 8
            rows.append(f"v{v}.mp4,{start},{start + 1},{motion},{'val' if v == 2 else 'train'}")
        write_video(folder / f"v{v}.mp4", frames, fps=8)
    (folder / "segments.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    options = {"widths": [8, 8, 8, 8], "stem_width": 8}
    card = ModelCard(
        model="tada2d_tiny",
        options=options,
        labels=("left", "up"),
        clip=ClipSpec(num_frames=4, sampling="segment", short_side=24, crop=20),
        trained_from="random weights",
    )
    folder = tmp_path_factory.mktemp("backbone") / "run"
    save_model(folder, create_model("tada2d_tiny", num_classes=2, **options), card)
    return folder
