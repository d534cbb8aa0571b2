"""What tests of the page share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tada.data.motion import draw_motion
from tada.video.writer import write_video


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Left, then up: two seconds each."""
    parts = [
        draw_motion(motion, np.random.default_rng(5), num_frames=32, width=160, height=120, clutter=0.3, easy=True)
        for motion in ("left", "up")
    ]
    file = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(file, np.concatenate(parts), fps=16)
    return file
