"""Tests of trained models: every video counts once, and none is left out in silence."""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drawn_videos import MOTIONS_OF_TESTS
from tada.data.annotations import read_dataset
from tada.data.motion import write_motion_videos
from tada.data.table import Head, LabeledVideo, VideoTable
from tada.data.views import Views, read_views
from tada.errors import CheckpointError, DataError, OptionError
from tada.recognition.evaluation import check_votes, choose_videos, evaluate
from tada.recognition.recipe import Recipe
from tada.recognition.recognizer import Recognizer, load_recognizer
from tada.recognition.training import train
from tada.system.accelerator import HostCopy


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def run(small_recipe: Recipe, motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(small_recipe, motion_videos, out, num_workers=0, show_progress=False, say=silent)
    return out


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> VideoTable:
    """Other videos under the same names."""
    folder = tmp_path_factory.mktemp("unseen") / "motion"
    write_motion_videos(
        folder, videos_per_class=5, seed=1, num_frames=8, width=32, height=32, fps=8.0, motions=MOTIONS_OF_TESTS
    )
    return read_dataset(folder)


def test_scores_are_the_mean_of_the_softmax_of_all_views(run: Path, unseen: VideoTable) -> None:
    views = Views(num_clips=2, num_crops=3)
    result = evaluate(run, unseen, views=views, num_workers=0, show_progress=False, say=silent)
    recognizer = load_recognizer(run)
    assert result.paths == tuple(video.path for video in unseen.videos)
    for i in (0, 7, 14):
        scores = recognizer.scores(read_views(unseen.videos[i], recognizer.clip, views))
        assert scores.shape == (6, 3)
        np.testing.assert_allclose(result.scores[i], scores.mean(0), rtol=1e-6)
    with pytest.raises(OptionError, match=r"--actions views: '.*run' has one head \(action\)"):
        evaluate(run, unseen, actions="views", show_progress=False, say=silent)


def test_many_views_pass_the_model_a_few_at_a_time(
    run: Path, unseen: VideoTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    start_scores = Recognizer.start_scores

    def watched(recognizer: Recognizer, views: torch.Tensor) -> HostCopy:
        sizes.append(len(views))
        return start_scores(recognizer, views)

    options = {"views": Views(num_clips=3, num_crops=3), "num_workers": 0, "show_progress": False, "say": silent}
    whole = evaluate(run, unseen, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(Recognizer, "start_scores", watched)
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
    lines: list[str] = []

    def chosen(data: VideoTable, split: str | None = None) -> VideoTable:
        lines.clear()
        table = choose_videos(data, run, split, lines.append)
        lines[:] = [line for line in lines if "the name of one" not in line]  # see the next test
        return table

    seen = read_dataset(motion_videos)
    held_out = chosen(seen)
    assert lines == [f"testing on the 3 videos that {run} held out for validation"]
    assert chosen(seen, "val") == held_out
    assert lines == [f"testing on the 3 videos that {run} has in its val split"]
    with pytest.raises(DataError, match=r"12 of 12 test videos were trained on, the first: .*; choose a split"):
        chosen(seen, "train")
    assert lines == []
    assert chosen(unseen) == unseen
    assert lines == [f"none of these videos are known to {run}: all 15 are tested"]
    with pytest.raises(DataError, match=r"run has held out no videos of this data as its val split"):
        chosen(unseen, "val")

    trained_on = tuple(video for video in seen.videos if video not in held_out.videos)
    assert chosen(replace(seen, videos=(*unseen.videos, trained_on[0]))).videos == unseen.videos
    assert lines == [f"testing on 15 videos that {run} does not know; left out: 1 video that it was trained on"]
    assert chosen(replace(seen, videos=unseen.videos[:2] + seen.videos)).videos == unseen.videos[:2] + held_out.videos
    assert lines == [
        f"testing on 3 videos that {run} held out for validation and 2 videos that it does not know; left out: 12 "
        "videos that it was trained on"
    ]
    assert len(chosen(replace(seen, videos=unseen.videos[:2] + held_out.videos))) == 5
    assert lines == [f"testing on 3 videos that {run} held out for validation and 2 videos that it does not know"]
    with pytest.raises(DataError, match=r"was trained on all videos of this data \(12\), and held out none"):
        chosen(replace(seen, videos=trained_on))

    # Splits of the data's own: what is asked for must be new or held out.
    def as_test(*videos: LabeledVideo) -> VideoTable:
        return replace(seen, videos=tuple(replace(video, split="test") for video in videos))

    assert len(chosen(as_test(*unseen.videos))) == 15
    assert lines == ["testing on the data's test split", f"none of these videos are known to {run}: all 15 are tested"]
    assert len(chosen(as_test(*held_out.videos))) == 3
    assert lines == ["testing on the data's test split"]
    assert len(chosen(as_test(*held_out.videos, unseen.videos[0]))) == 4
    assert lines[1:] == [f"testing on 3 videos that {run} held out for validation and 1 video that it does not know"]
    with pytest.raises(DataError, match=r"1 of 4 test videos were trained on"):
        chosen(as_test(*held_out.videos, trained_on[0]))


def test_where_a_model_has_no_list_that_is_said(motion_videos: Path, run: Path, tmp_path: Path) -> None:
    for name in ("model.json", "model.safetensors"):
        shutil.copy(run / name, tmp_path)
    for model in (tmp_path, Path("tada2d_tiny_motion")):
        lines: list[str] = []
        assert len(choose_videos(read_dataset(motion_videos), model, None, lines.append)) == 15
        assert lines == [
            f"{model} has no list of the videos it was trained on: whether these 15 were among them cannot be told"
        ]


def test_other_parts_of_files_that_were_trained_on_are_told(motion_videos: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (video,) = read_dataset(motion_videos).videos[:1]
    rows = [{"path": video.path, "label": "left", "split": "train", "start_seconds": 0, "end_seconds": 0.25}]
    with (tmp_path / "run" / "videos.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    lines: list[str] = []
    test = VideoTable(
        heads=(Head(name="action", labels=("left",)),),
        videos=(replace(video, start_seconds=0.5, end_seconds=1.0),),
        root=str(motion_videos),
        kind="CSV",
    )
    assert choose_videos(test, tmp_path / "run", None, lines.append) == test
    assert lines == [
        f"testing on 1 video that {tmp_path / 'run'} does not know. Of the same files as what it was trained on: 1 "
        "video, other parts of them"
    ]


def test_an_old_list_whose_videos_are_gone_is_told(unseen: VideoTable, run: Path, tmp_path: Path) -> None:
    (tmp_path / "videos.csv").write_text("path,label,split,group\n/gone/a.mp4,left,train,\n/gone/b.mp4,left,val,\n")
    lines: list[str] = []
    choose_videos(unseen, tmp_path, None, lines.append)
    assert lines == [
        f"none of these videos are known to {tmp_path}: all 15 are tested. Its list was written by an earlier tada and "
        "knows videos by their paths alone: 2 of 2 are not there any more, and would not be known under another path"
    ]


def test_a_known_name_with_another_content_is_told(run: Path, motion_videos: Path, tmp_path: Path) -> None:
    """As after `ffmpeg -c copy`, or in a format that no manifest of ours speaks of."""
    rows = list(csv.DictReader((run / "videos.csv").read_text().splitlines()))
    trained = sorted(row["path"] for row in rows if row["split"] == "train")
    held_out = next(row["path"] for row in rows if row["split"] != "train")
    seen = read_dataset(motion_videos)

    def said(*copies: tuple[str, str]) -> list[str]:
        """What a test says of converted videos."""
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        (tmp_path / "new.csv").write_text("path,label\n" + "".join(f"new/{name},left\n" for _, name in copies))
        for path, name in copies:
            file = tmp_path / "new" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(Path(path).read_bytes() + b"\0\0\0\x08free")
        lines: list[str] = []
        choose_videos(read_dataset(tmp_path / "new.csv").numbered_as(seen.heads), run, None, lines.append)
        return lines

    one, two = (str(Path(path).relative_to(motion_videos)) for path in trained[:2])
    name = os.path.splitext(one)[0]
    end = f"{run} was trained on, and another content, such as 'deeper/{two}': if that is the same recording,"
    assert said((trained[0], f"{name}.mkv"), (trained[1], f"deeper/{two}")) == [
        f"none of these videos are known to {run}: all 2 are tested",
        f"2 videos have the name of one that {end} converted, the score is too good, and it should be left out",
    ]
    others = [(held_out, str(Path(held_out).relative_to(motion_videos))), (trained[0], f"{Path(one).parent}/new.mp4")]
    assert said(*others) == [f"none of these videos are known to {run}: all 2 are tested"]
    assert said(*others, (trained[0], f"{name}.mp4"))[1].startswith(f"1 video has the name of one that {run} was ")


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
    with pytest.raises(DataError, match=r"of 1 video none could be read; the first: .*broken\.mp4"):
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
