"""What tests of data sets share."""

from __future__ import annotations

from pathlib import Path

import pytest

from packed_shards import packed, shards_in


@pytest.fixture(scope="module")
def shards(motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The videos of ``motion_videos`` in several shards."""
    out = tmp_path_factory.mktemp("shards") / "out"
    result = packed(motion_videos, out)
    assert (result.num_videos, result.num_new, result.failures) == (15, 15, ())
    assert result.num_shards == len(shards_in(out)) > 2
    return out
