"""The benchmark on thermal recordings goes on where it was; its whole course takes hours, and is not tested here."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent / "benchmarks"))

import thermal
from drawn_features import RECIPE
from tada.localization.annotations.table import read_segments


def test_a_detector_that_was_tested_is_tested_again(data: tuple[Path, Path], run: Path, tmp_path: Path) -> None:
    features, segments = data
    shutil.copytree(run, tmp_path / "actionformer")
    shutil.copytree(features, tmp_path / "features")
    first, again = (thermal._detect(RECIPE, read_segments(segments), tmp_path, "actionformer") for _ in range(2))
    assert first["average_map"] == again["average_map"] > 0
    assert (tmp_path / "actionformer" / "evaluation" / "evaluation.json").is_file()
