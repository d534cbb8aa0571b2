"""The quickstart leaves what it promises. Whether it learns is for `make demo`, which takes minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tada.data.motion import MOTIONS
from tada.errors import OptionError
from tada.recognition.quickstart import quickstart
from tada.recognition.recognizer import load_recognizer


def silent(line: str) -> None:
    pass


def test_a_short_quickstart_leaves_all_its_files(tmp_path: Path) -> None:
    out = tmp_path / "quick"
    result = quickstart(
        out, train_videos_per_class=4, test_videos_per_class=1, epochs=1, show_progress=False, say=silent
    )
    assert json.loads((out / "result.json").read_text()) == result
    for name in ("tada2d", "tsn"):
        assert 0 <= result[name]["top1"] <= 1
        assert result[name]["seconds"] > 0
        assert set(result[name]["per_class"]) == set(MOTIONS)
        assert load_recognizer(out / name).labels == tuple(sorted(MOTIONS))
    assert result["prediction"]["label"] in MOTIONS
    for picture in ("comparison.png", "prediction.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert len(list((out / "videos" / "train").rglob("*.mp4"))) == 4 * len(MOTIONS)
    assert len(list((out / "videos" / "test").rglob("*.mp4"))) == len(MOTIONS)


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(OptionError, match=r"is not empty: choose another folder with --out, or remove it"):
        quickstart(tmp_path, say=silent)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_the_quickstart_shows_what_it_is_for(tmp_path: Path) -> None:
    """The whole of it, some minutes: order is learned by TAda2D alone."""
    result = quickstart(tmp_path / "quick", show_progress=False, say=silent)
    assert result["tada2d"]["top1"] >= 0.85
    assert result["tsn"]["top1"] <= 0.60
