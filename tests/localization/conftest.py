"""What tests of localization share: drawn features, and a localizer that was trained on them once."""

from __future__ import annotations

from pathlib import Path

import pytest

from drawn_features import RECIPE, draw_features, silent
from tada.localization.training import train_localizer


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of features, and the list of segments."""
    return draw_features(tmp_path_factory.mktemp("localization"))


@pytest.fixture(scope="session")
def run(data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, which tests only read."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train_localizer(RECIPE, *data, out, show_progress=False, say=silent)
    return out
