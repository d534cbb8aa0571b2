"""Jobs as commands: what they print, their exit codes, and words that are not where they belong."""

from __future__ import annotations

from pathlib import Path

import pytest

from drawn_videos import draw_plain
from tada.commands.cli import main

RUN = "tada2d_tiny_motion"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clips").mkdir()
    draw_plain(Path("clips/a.mp4"), 10)
    Path("clips/b.mp4").write_bytes(b"no video")
    Path("list.csv").write_text("path\nclips/a.mp4\nclips/b.mp4\n")
    Path("shards").mkdir()
    Path("shards/shards.jsonl").touch()


def test_a_second_run_tells_of_the_faults_of_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", RUN, "clips", "--out", "out", "--num-workers", "0"]
    assert main(command) == 1
    assert capsys.readouterr().out.splitlines()[0].startswith("2 videos: 0 were there, 1 done now, 1 without a result")
    assert main(command) == 1  # as the first time: one has no answer
    assert capsys.readouterr().out.splitlines() == [
        "2 videos: 2 were there (1 of them without a result), 0 done now, 0 without a result",
        "to try those again that had no result, remove rows/faults-*.parquet",
        "they are in out: rows/*.parquet, summary.json",
    ]
    Path("clips/b.mp4").unlink()
    assert main(command) == 0
    assert main([*command, "--top", "3"]) == 2
    told = "'out' holds results of a job with another top (5): give another folder, or these options as they were"
    assert told in capsys.readouterr().err


def test_features_say_where_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extract", RUN, "clips/a.mp4", "out", "--shards", "--window-seconds", "0.3"]) == 0
    told = "they are in out: rows/*.parquet, arrays/*.safetensors, summary.json"
    assert capsys.readouterr().out.splitlines()[-1] == told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["predict", RUN, "list.csv"], "'list.csv' is a list of videos, or an address: these go with --out DIR"),
        (["predict", "list.csv"], "'list.csv' is a list of videos, or an address: these go with --out DIR"),
        (["predict", "s3://bucket/a.mp4"], "'s3://bucket/a.mp4' is a list of videos, or an address: these go with"),
        (["predict", "list.csv", "clips"], "'list.csv' is a list of videos, or an address: these go with --out DIR"),
        (["predict", "s3://bucket/a.mp4", "--out", "out"], "'s3://bucket/a.mp4' is not below an allowed address"),
        (
            ["extract", RUN, "list.csv", "out", "--window-seconds=1"],
            "or an address: these go with --shards or --ray",
        ),
        (["predict", RUN, "shards"], "'shards' holds shards; the videos in them are listed in 'shards/videos.csv'"),
        (["predict", RUN, "shards", "--out", "out"], "the videos in them are listed in 'shards/videos.csv': give that"),
        (["predict", RUN, "clips", "--out", "out", "--ray", "head"], "'head' is not there: give a video, "),
        (
            ["predict", "clips", RUN, "--out", "out"],
            f"'clips' is no run, and '{RUN}' is one: the run comes first, `tada",
        ),
        (["predict", RUN, "clips", "--max-file-mb", "5"], "--ray, --allow and --max-file-mb go with --out DIR"),
        (["prepare", "list.csv", "out", "--shard-megabytes", "5"], "is the size of shards: give --shards too"),
        (
            ["predict", RUN, "clips", "--out", "out", "--ray", "head"],
            "; --ray takes HOST:PORT, ray://HOST:PORT or",
        ),
    ],
)
def test_words_that_are_not_where_they_belong(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err
    assert not Path("out").exists()
