"""Tests of trained models: every video counts once, and none is left out in silence."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tada.data.annotations import read_dataset
from tada.data.clips import Views, read_views
from tada.data.table import Head, VideoTable
from tada.errors import CheckpointError, DataError
from tada.evaluation import check_votes, evaluate
from tada.predict import Recognizer, load
from tada.recipe import Recipe
from tada.recognition import train


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def run(small_recipe: Recipe, motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(small_recipe, motion_videos, out, num_workers=0, show_progress=False, say=silent)
    return out


@pytest.fixture(scope="module")
def unseen(motion_videos: Path) -> VideoTable:
    """The same videos under other paths, so that the run does not know them."""
    table = read_dataset(motion_videos)
    twin = motion_videos.parent / "twin"
    for video in table.videos:
        target = twin / Path(video.path).relative_to(motion_videos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(video.path).read_bytes())
    return read_dataset(twin)


def test_scores_are_the_mean_of_the_softmax_of_all_views(run: Path, unseen: VideoTable) -> None:
    views = Views(num_clips=2, num_crops=3)
    result = evaluate(run, unseen, views=views, num_workers=0, show_progress=False, say=silent)
    recognizer = load(run)
    assert result.paths == tuple(video.path for video in unseen.videos)
    for i in (0, 7, 14):
        scores = recognizer.scores(read_views(unseen.videos[i], recognizer.clip, views))
        assert scores.shape == (6, 3)
        np.testing.assert_allclose(result.scores[i], scores.mean(0), rtol=1e-6)


def test_many_views_pass_the_model_a_few_at_a_time(
    run: Path, unseen: VideoTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    scores = Recognizer.scores

    def watched(recognizer: Recognizer, views: torch.Tensor) -> torch.Tensor:
        sizes.append(len(views))
        return scores(recognizer, views)

    options = {"views": Views(num_clips=3, num_crops=3), "num_workers": 0, "show_progress": False, "say": silent}
    whole = evaluate(run, unseen, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(Recognizer, "scores", watched)
    parts = evaluate(run, unseen, clips_per_batch=4, **options)  # type: ignore[arg-type]
    assert max(sizes) == 4
    assert sum(sizes) == 9 * len(unseen)
    np.testing.assert_allclose(parts.scores, whole.scores, rtol=1e-5)


def test_votes_are_counted() -> None:
    check_votes([2, 0], 3, 1)
    for votes, videos, unreadable in (([0, 1, 1], 2, 0), ([0, 1], 3, 0), ([0, 1], 2, 1), ([0, 7], 2, 0)):
        with pytest.raises(RuntimeError, match=r"videos have voted and . could not be read"):
            check_votes(votes, videos, unreadable)


def test_the_runs_own_data_is_tested_on_what_it_held_out(run: Path, motion_videos: Path) -> None:
    lines: list[str] = []
    result = evaluate(run, motion_videos, num_workers=0, show_progress=False, say=lines.append)
    assert lines == [f"testing on the 3 videos that {run} held out for validation"]
    assert len(result.paths) == 3


def test_videos_that_were_trained_on_are_no_test(run: Path, motion_videos: Path, unseen: VideoTable) -> None:
    with pytest.raises(DataError, match=r"12 of 12 test videos were trained on, the first: .*; choose a split"):
        evaluate(run, motion_videos, split="train", num_workers=0, show_progress=False, say=silent)
    seen = read_dataset(motion_videos)
    with (run / "videos.csv").open() as file:
        trained_on = {row["path"] for row in csv.DictReader(file) if row["split"] == "train"}
    one = next(video for video in seen.videos if video.path in trained_on)
    mixed = replace(unseen, videos=(*unseen.videos, one))
    with pytest.raises(DataError, match=r"1 of 16 test videos were trained on"):
        evaluate(run, mixed, num_workers=0, show_progress=False, say=silent)


def test_a_split_of_the_data_is_chosen_by_name(run: Path, unseen: VideoTable) -> None:
    splits = ["train", "test", "val"] * 5
    videos = [replace(v, split=split) for v, split in zip(unseen.videos, splits, strict=True)]
    table = replace(unseen, videos=tuple(videos))
    options = {"num_workers": 0, "show_progress": False, "say": silent}
    assert len(evaluate(run, table, **options).paths) == 5  # type: ignore[arg-type]
    by_name = evaluate(run, table, split="val", **options)  # type: ignore[arg-type]
    assert by_name.paths == tuple(v.path for v in videos if v.split == "val")
    with pytest.raises(DataError, match=r"no 'dev' split"):
        evaluate(run, table, split="dev", **options)  # type: ignore[arg-type]


def test_an_unreadable_video_is_listed(run: Path, unseen: VideoTable, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(Path(unseen.videos[0].path).read_bytes()[:300])
    table = replace(unseen, videos=(replace(unseen.videos[0], path=str(broken)), *unseen.videos[1:]))
    result = evaluate(run, table, num_workers=0, show_progress=False, say=silent)
    assert [Path(failure.path).name for failure in result.unreadable] == ["broken.mp4"]
    assert len(result.paths) == len(table) - 1
    only = replace(unseen, videos=table.videos[:1])
    with pytest.raises(DataError, match=r"none of the 1 videos could be read; the first: .*broken\.mp4"):
        evaluate(run, only, num_workers=0, show_progress=False, say=silent)


def test_labels_are_matched_by_name(run: Path, unseen: VideoTable) -> None:
    """A test set of some classes only, numbered otherwise, is scored as before."""
    some = [video for video in unseen.videos if unseen.labels[video.label] == "up"]
    up = Head(name="action", labels=("up",))
    table = replace(unseen, heads=(up,), videos=tuple(replace(video, labels=(0,)) for video in some))
    result = evaluate(run, table, num_workers=0, show_progress=False, say=silent)
    assert set(result.targets[:, 0]) == {2}
    unknown = replace(table, heads=(replace(up, labels=("somersault",)),))
    with pytest.raises(DataError, match=r"does not know 1 of the 1 classes: somersault; it knows left, right, up"):
        evaluate(run, unknown, num_workers=0, show_progress=False, say=silent)


def test_a_flipped_byte_in_the_weights_is_found(run: Path, unseen: VideoTable, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("model.json", "model.safetensors"):
        (copy / name).write_bytes((run / name).read_bytes())
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.* is damaged"):
        evaluate(copy, unseen, num_workers=0, show_progress=False, say=silent)
