"""The table of released checkpoints, and `tada models --published`."""

from __future__ import annotations

import json

import pytest

from tada.commands.cli import main
from tada.models import MODELS, normalization_of
from tada.models.published import DATA_SETS, PROTOCOLS, published_checkpoints
from tada.recognition.recipe import EXPECTED


def test_the_published_accuracies() -> None:
    """Those of recipes are the recipes'; the second paper's are written out again here."""
    found = {
        (row.network, row.data_set, row.num_frames): (row.top1, row.top5) for row in published_checkpoints("tada2d_*")
    }
    assert found == {
        ("tada2d_r50", data_set, num_frames): tuple(
            round(100 * EXPECTED[recipe].metrics[name], 1) for name in ("top1", "top5")
        )
        for data_set, num_frames, recipe in (
            ("k400", 8, "k400_tada2d_r50_8x8"),
            ("k400", 16, "k400_tada2d_r50_16x5"),
            ("ssv2", 8, "ssv2_tada2d_r50_8"),
            ("ssv2", 16, "ssv2_tada2d_r50_16"),
        )
    }
    second = [row for row in published_checkpoints() if "tadaconvv2" in row.page]
    assert [row.top1 for row in second if row.data_set == "k400"] == [
        *(79.6, 80.8, 80.8, 81.9, 82.9, 81.4, 82.3, 83.7),
        *(84.5, 87.6, 86.6, 88.9, 89.5, 89.9),
    ]
    assert [row.top1 for row in second if row.data_set == "ssv2"] == [
        *(67.2, 69.8, 68.4, 70.0, 70.6, 71.1),
        *(70.4, 71.3, 72.4, 73.6),
    ]
    assert len(published_checkpoints()) == 5 + len(second)


def test_the_command_takes_the_frames_of_the_row() -> None:
    for row in published_checkpoints():
        command = row.command()
        assert row.data_set in DATA_SETS
        assert row.views == {"k400": "10x3" if "tada2d" in row.network else "4x3", "ssv2": "2x3"}[row.data_set] or (
            row.network == "tadaconvnext_t"
        )
        is_former = row.network.startswith("tadaformer")
        assert row.network in MODELS
        assert command is not None
        if "nextv2" in row.network and (row.data_set, row.num_frames) == ("k400", 32):
            size = "--clip.mode official --clip.short-side 256 --clip.crop 256"
            assert command == f"tada convert FILE --out DIR --clip.num-frames 32 --clip.interval INTERVAL {size}"
            continue
        clip = PROTOCOLS[command.removeprefix("tada convert FILE --out DIR --protocol ")]
        assert clip.num_frames == (row.num_frames or 16)
        assert (clip.sampling == "segment") == (row.data_set == "ssv2" or is_former)
        assert (clip.crop, clip.short_side) == ((224, 224) if is_former else (256, 256))
        assert clip.normalization == normalization_of(row.network)


def test_the_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "tada2d", "--published"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "https://github.com/alibaba-mmai-research/TAdaConv (MODEL_ZOO.md):"
    assert " ".join(lines[1].split()) == "tada2d_r50 Kinetics-400 8 frames, 10x3 views top-1 76.7 %, top-5 92.6 %"
    assert lines[2].strip() == "from ImageNet-1k: tada convert FILE --out DIR --protocol k400-8x8"
    assert len(lines) == 1 + 2 * 4
    assert main(["models", "--published", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(published_checkpoints())
    assert rows[3] == {
        "network": "tada2d_r50",
        "data_set": "ssv2",
        "trained_from": "ImageNet-1k",
        "num_frames": 16,
        "views": "2x3",
        "top1": 65.6,
        "top5": 89.1,
        "page": "https://github.com/alibaba-mmai-research/TAdaConv (MODEL_ZOO.md)",
        "command": "tada convert FILE --out DIR --protocol ssv2-16",
    }
    assert main(["models", "tada2d_tin", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": "tada2d_tiny", "parameters": 600504, "weights": "tada2d_tiny_motion"}
    ]
    assert main(["models", "slow", "--published"]) == 2
    assert "no released checkpoint's name fits 'slow'; `tada models --published` lists all" in capsys.readouterr().err
