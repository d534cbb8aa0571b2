"""What is made of untrimmed videos is bound to their content: features, trimmed clips, what is trained on them."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from drawn_features import RECIPE, silent
from tada.data.annotations import read_dataset
from tada.data.prepare import prepare
from tada.errors import DataError, OptionError
from tada.localization.annotations.table import read_segments
from tada.localization.annotations.video_names import videos_by_name
from tada.localization.evaluation import evaluate_localizer
from tada.localization.features import extraction, sources
from tada.localization.features.extraction import Extraction, extract
from tada.localization.features.folder import FeatureFolder, read_card
from tada.localization.features.sources import Source
from tada.localization.localizer import load_localizer
from tada.localization.train_from_videos import match_videos, train_on_videos
from tada.localization.training import train_localizer
from tada.localization.trimmed import cut_clips
from tada.recognition.recipe import Recipe
from tada.recognition.recognizer import load_recognizer
from tada.video.find import find_videos
from tada.video.inputs import VideoSource
from tada.video.sliding_windows import SlidingWindows

SETTINGS = SlidingWindows(window_seconds=1.0, stride_seconds=0.5)


@pytest.fixture
def work(untrimmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the videos in "videos", to be named by relative paths."""
    shutil.copytree(untrimmed, tmp_path / "videos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def replace_video(name: str, by: str) -> None:
    """Another recording under the name, as old as the one before."""
    before = os.stat(f"videos/{name}.mp4")
    shutil.copy(f"videos/{by}.mp4", f"videos/{name}.mp4")
    os.utime(f"videos/{name}.mp4", ns=(before.st_atime_ns, before.st_mtime_ns))


def extract_all(backbone: Path, videos: str = "videos", out: str = "features") -> Extraction:
    files = videos_by_name(find_videos([videos]), videos)
    return extract(load_recognizer(backbone, device="cpu"), files, Path(out), SETTINGS, show_progress=False)


def test_a_source_is_known_by_its_content(work: Path) -> None:
    source = Source.of("videos/v0.mp4")
    assert source.path == str(work / "videos" / "v0.mp4")
    assert source.is_untouched("videos/v0.mp4")
    shutil.copy("videos/v0.mp4", "copy.mp4")
    assert source.is_now("copy.mp4")
    assert not source.is_untouched("copy.mp4")
    assert not source.is_now("videos/v1.mp4")
    replace_video("v0", by="v1")
    assert source.was_replaced()
    Path("videos/v0.mp4").unlink()
    assert not source.was_replaced()  # gone is not replaced
    os.mkfifo("videos/v0.mp4")
    assert not source.was_replaced()
    with pytest.raises(OSError, match="is no regular file"):
        Source.of("videos/v0.mp4")


def test_features_of_a_replaced_video_are_made_anew(work: Path, small_backbone: Path) -> None:
    assert extract_all(small_backbone).written == ("v0", "v1", "v2")
    before = {name: Path("features", f"{name}.npz").read_bytes() for name in ("v0", "v1", "v2")}
    replace_video("v0", by="v1")
    done = extract_all(small_backbone)
    assert (done.written, done.kept, done.replaced) == (("v0",), ("v1", "v2"), ("v0",))
    (line,) = done.lines()
    assert line == "replaced since their features were extracted, which were therefore made anew: 'v0'"
    after = {name: Path("features", f"{name}.npz").read_bytes() for name in ("v0", "v1", "v2")}
    assert after == {"v0": before["v1"], "v1": before["v1"], "v2": before["v2"]}
    assert not extract_all(small_backbone).lines()


def test_unchanged_videos_are_not_read_again_and_moved_ones_are_known(
    work: Path, small_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract_all(small_backbone)
    read: list[str] = []
    original = sources.content_id
    monkeypatch.setattr(sources, "content_id", lambda path: read.append(str(path)) or original(path))
    assert extract_all(small_backbone).kept == ("v0", "v1", "v2")
    assert read == []
    os.rename("videos", "recordings")
    assert extract_all(small_backbone, "recordings").kept == ("v0", "v1", "v2")
    assert set(read) == {"recordings/v0.mp4", "recordings/v1.mp4", "recordings/v2.mp4"}
    read.clear()
    assert extract_all(small_backbone, "recordings").kept == ("v0", "v1", "v2")
    assert read == []  # where they lie was noted
    assert FeatureFolder(Path("features")).places()["v0"] == str(work / "recordings" / "v0.mp4")


def test_another_video_of_the_same_name_is_refused(work: Path, small_backbone: Path) -> None:
    os.mkdir("other")
    shutil.copy("videos/v1.mp4", "other/v0.mp4")
    extract_all(small_backbone)
    before = Path("features/v0.npz").read_bytes()
    with pytest.raises(DataError, match=r"v0.json' holds the features of '.*/videos/v0.mp4', and 'other/v0.mp4' has"):
        extract_all(small_backbone, "other")
    assert Path("features/v0.npz").read_bytes() == before


def test_what_cannot_be_read_any_more_leaves_no_features_of_what_lay_there(work: Path, small_backbone: Path) -> None:
    extract_all(small_backbone)
    content = Path("videos/v0.mp4").read_bytes()
    Path("videos/v0.mp4").write_bytes(content[: len(content) // 2])
    done = extract_all(small_backbone)
    assert [failure.path for failure in done.failures] == ["videos/v0.mp4"]
    assert sorted(FeatureFolder(Path("features")).cards) == ["v1", "v2"]
    # Features whose video is gone stay: nothing says that they are wrong.
    files = {"v1": Path("videos/gone.mp4")}
    done = extract(
        load_recognizer(small_backbone, device="cpu"), files, Path("features"), SETTINGS, show_progress=False
    )
    assert done.kept == ("v1",)


def test_a_video_that_changes_while_it_is_read_has_no_features(
    work: Path, small_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = extraction.extract_video

    def change(backbone: object, video: VideoSource, *rest: object, **options: object) -> object:
        found = original(backbone, video, *rest, **options)  # type: ignore[arg-type]  # passed on as they came
        with open(video.name, "ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(extraction, "extract_video", change)
    done = extract_all(small_backbone)
    assert [failure.message for failure in done.failures] == [
        f"'videos/{name}.mp4' was changed while its features were extracted" for name in ("v0", "v1", "v2")
    ]


def forget_sources(*files: str) -> None:
    """Make cards what an older tada wrote."""
    for file in files:
        about = json.loads(Path(file).read_text())
        del about["source"]
        Path(file).write_text(json.dumps(about))


def test_features_of_an_older_tada_are_taken_as_they_are_and_bound(work: Path, small_backbone: Path) -> None:
    extract_all(small_backbone)
    forget_sources("features/v0.json", "features/v1.json")
    done = extract_all(small_backbone)
    assert (done.kept, done.assumed) == (("v0", "v1", "v2"), ("v0", "v1"))
    assert "those of 'v0', 'v1' are taken to be of the videos that are there now" in done.lines()[0]
    assert not extract_all(small_backbone).lines()
    replace_video("v0", by="v1")
    assert extract_all(small_backbone).replaced == ("v0",)


def test_nothing_is_trained_or_tested_on_features_of_replaced_videos(work: Path, small_backbone: Path) -> None:
    extract_all(small_backbone)
    replace_video("v1", by="v2")
    message = r"the features of 'v1' are not of the video that lies in '.*v1.mp4' now: it was replaced after they were"
    with pytest.raises(DataError, match=message):
        train_localizer(
            RECIPE, Path("features"), Path("videos/segments.csv"), Path("run"), show_progress=False, say=silent
        )
    assert not Path("run").exists()
    Path("videos/v1.mp4").unlink()  # that cannot be compared, and so is no fault
    train_localizer(RECIPE, Path("features"), Path("videos/segments.csv"), Path("run"), show_progress=False, say=silent)


def test_clips_of_a_replaced_video_are_cut_again(work: Path) -> None:
    said: list[str] = []

    def cut() -> bytes:
        table, files = match_videos(read_segments(Path("videos/segments.csv")), Path("videos"), show_progress=False)
        cut_clips(table, files, Path("clips"), show_progress=False, say=said.append)
        return Path("clips/v0_000.mp4").read_bytes()

    before = cut()
    assert cut() == before
    assert said == []
    replace_video("v0", by="v1")
    assert cut() != before
    assert said == ["replaced since clips were cut, which is therefore done anew: 'v0'"]
    said.clear()
    Path("clips/videos.json").unlink()
    cut()
    assert said == ["clips: clips that an older tada cut do not say of which videos: taken to be of those there now"]


def train_all(
    small_recipe: Recipe,
    said: list[str],
    *,
    backbone: str | None = None,
    resume: bool = False,
    window_seconds: float | None = None,
) -> None:
    train_on_videos(
        replace(RECIPE, epochs=1),
        Path("videos/"),
        Path("videos/segments.csv"),
        Path("run"),
        backbone=backbone,
        backbone_recipe=replace(small_recipe, epochs=1),
        num_workers=0,
        window_seconds=window_seconds,
        resume=resume,
        show_progress=False,
        say=said.append,
    )


def test_a_video_replaced_meanwhile_leaves_nothing_stale_in_a_localizer(work: Path, small_recipe: Recipe) -> None:
    said: list[str] = []
    train_all(small_recipe, said)
    replace_video("v0", by="v1")
    shutil.rmtree("run")
    message = (
        r"'run_backbone' was trained on clips of the videos 'v0', which were replaced since: remove 'run_backbone'"
    )
    with pytest.raises(DataError, match=rf"{message}, 'run_clips' to cut and train anew, or keep .*--backbone run_bac"):
        train_all(small_recipe, said)
    shutil.rmtree("run_clips")  # the backbone's run says itself what it was trained on
    with pytest.raises(DataError, match=message):
        train_all(small_recipe, said)
    said.clear()
    train_all(small_recipe, said, backbone="run_backbone")
    assert "replaced since their features were extracted, which were therefore made anew: 'v0'" in said
    assert read_card(Path("run_features/v0.json")).source == Source.of("videos/v0.mp4")


def test_point_events_are_refused_before_the_work_and_trained_on_with_a_window(
    work: Path, small_backbone: Path, small_recipe: Recipe
) -> None:
    text = Path("videos/segments.csv").read_text()
    header, *rows = (row.split(",") for row in text.splitlines())
    points = [[video, start, str(float(start) + 0.002), *rest] for video, start, _, *rest in rows]
    Path("videos/segments.csv").write_text("\n".join(",".join(row) for row in [header, *points, points[0]]) + "\n")
    for backbone in (None, str(small_backbone)):
        with pytest.raises(OptionError, match=r"half of the segments last 0.002 s or less.* or give --window-seconds"):
            train_all(small_recipe, [], backbone=backbone)
        assert not [path for path in ("run_clips", "run_backbone", "run_features") if any(Path(".").glob(f"{path}/*"))]
    said: list[str] = []
    train_all(small_recipe, said, backbone=str(small_backbone), window_seconds=1.0)
    assert "features of 1.00 s of video, one every 0.133 s" in said
    # What is worth knowing of the annotations is said once.
    number = len(rows) + 2
    assert [line for line in said if "note" in line] == [
        f"segments.csv: a note: segments.csv row {number}: the same segment and label as one before: left out"
    ]
    assert len(said) == len(set(said))


def test_a_run_is_not_resumed_on_other_videos(work: Path, small_recipe: Recipe, small_backbone: Path) -> None:
    train_all(small_recipe, [], backbone=str(small_backbone))
    train_all(small_recipe, [], backbone=str(small_backbone), resume=True)
    replace_video("v1", by="v0")
    with pytest.raises(DataError, match=r"the video 'v1' is not the one that run was started with \(videos.csv there"):
        train_all(small_recipe, [], backbone=str(small_backbone), resume=True)


# -- what is tested was not trained on --------------------------------------------------------------------------------


def evaluate(said: list[str], *, features: str = "features", split: str | None = None) -> list[str]:
    """Test the run; the names of the videos that were tested."""
    result = evaluate_localizer(
        load_localizer("run"),
        Path(features),
        Path("plain.csv"),
        tiou_thresholds=(0.5,),
        split=split,
        show_progress=False,
        say=said.append,
    )
    return [video.name for video in result.table.videos]


@pytest.fixture
def tested(work: Path, small_backbone: Path) -> Path:
    """A run that held out one of three videos by itself; plain.csv, its annotations, has no splits."""
    rows = Path("videos/segments.csv").read_text().splitlines()
    Path("plain.csv").write_text("\n".join(row.rpartition(",")[0] for row in rows))
    extract_all(small_backbone)
    train_localizer(
        replace(RECIPE, epochs=1), Path("features"), Path("plain.csv"), Path("run"), show_progress=False, say=silent
    )
    return work


def held_out() -> str:
    rows = list(csv.DictReader(Path("run/videos.csv").read_text().splitlines()))
    assert sorted(row["split"] for row in rows) == ["train", "train", "val"]
    return next(row["video"] for row in rows if row["split"] == "val")


def trained() -> list[str]:
    return [name for name in ("v0", "v1", "v2") if name != held_out()]


def test_a_localizer_is_tested_on_what_it_was_not_trained_on(tested: Path, small_backbone: Path) -> None:
    held, said = held_out(), []
    assert evaluate(said) == [held]
    assert said == ["testing on 1 video, 1 held out of training; 2 that were trained on are left out"]
    # The same by other names, elsewhere, copied: a video is what it is.
    os.mkdir("elsewhere")
    for i, name in enumerate(("v0", "v1", "v2")):
        shutil.copy(f"videos/{name}.mp4", f"elsewhere/{i}-{name}-copy.mp4")
    extract_all(small_backbone, "elsewhere", "features_elsewhere")
    text = Path("plain.csv").read_text()
    Path("plain.csv").write_text(re.sub(r"v(\d).mp4", r"\1-v\1-copy.mp4", text))
    assert evaluate([], features="features_elsewhere") == [f"{held[1]}-{held}-copy"]
    assert len(evaluate(said, features="features_elsewhere", split="train")) == 2
    assert said[-1] == "testing on 2 videos, 2 of which were trained on: such scores are too good"


def test_other_videos_of_the_same_names_were_not_trained_on(tested: Path, small_backbone: Path) -> None:
    os.mkdir("new")
    for name in ("v0", "v1", "v2"):
        Path(f"new/{name}.mp4").write_bytes(Path(f"videos/{name}.mp4").read_bytes() + b"\0\0\0\x08free")
    extract_all(small_backbone, "new", "features_new")
    said: list[str] = []
    assert evaluate(said, features="features_new") == ["v0", "v1", "v2"]
    assert said == [
        "testing on 3 videos, 3 that run does not know",
        f"2 videos have the name of one that run was trained on, and another content, such as {trained()[0]!r}: if "
        "that is the same recording, converted, the score is too good, and it should be left out",
    ]


def prepare_all(out: str, *, of: str = "videos") -> str:
    """Copies as `tada prepare` makes them; where they lie."""
    listing = Path(of, "list.csv")
    listing.write_text("path,label\n" + "".join(f"v{i}.mp4,x\n" for i in range(3)))
    prepare(read_dataset(listing), Path(out), num_processes=1, show_progress=False)
    return f"{out}/videos"


def forget_originals(folder: str) -> None:
    """Make features what a tada extracted that did not note of what copies are made."""
    for file in Path(folder).glob("*.json"):
        about = json.loads(file.read_text())
        del about["source"]["originals"]
        file.write_text(json.dumps(about))


@pytest.mark.parametrize("old_manifest", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_prepared_copies_are_their_originals(tested: Path, small_backbone: Path, old_manifest: bool) -> None:
    held, said = held_out(), []
    line = "testing on 1 video, 1 held out of training; 2 that were trained on are left out"
    copies = prepare_all("fast")
    again = prepare_all("faster", of="fast/videos")
    if old_manifest:
        manifest = Path("fast/manifest.jsonl")
        lines = [json.loads(line) for line in manifest.read_text().splitlines() if line]
        manifest.write_text("".join(json.dumps({**line, "source_content": ""}) + "\n" for line in lines))
    extract_all(small_backbone, copies, "features_fast")
    extract_all(small_backbone, again, "features_faster")
    for features in ("features_fast", "features_faster"):
        assert evaluate(said, features=features) == [held]
        assert said == [line]
        said.clear()
    forget_originals("features_fast")  # they are found while the copies lie there
    assert evaluate(said, features="features_fast") == [held]
    extract_all(small_backbone, copies, "features_fast")  # and are noted then
    os.rename("fast", "gone")
    assert evaluate(said, features="features_fast") == [held]
    # Trained on copies, tested on originals and on copies of the copies.
    shutil.rmtree("run")
    os.rename("gone", "fast")
    train_localizer(
        replace(RECIPE, epochs=1),
        Path("features_fast"),
        Path("plain.csv"),
        Path("run"),
        show_progress=False,
        say=silent,
    )
    for features in ("features", "features_faster"):
        assert evaluate(said, features=features) == [held]
    assert said == [line] * 4


def test_a_copy_is_not_trained_on_while_its_original_is_tested(work: Path, small_backbone: Path) -> None:
    prepare_all("fast")
    os.makedirs("all/videos")
    shutil.copy("fast/manifest.jsonl", "all")
    shutil.copy("fast/videos/v0.mp4", "all/videos/v0.mp4")
    shutil.copy("videos/v0.mp4", "all/original.mp4")
    shutil.copy("videos/v1.mp4", "all/v1.mp4")
    extract_all(small_backbone, "all")
    rows = [("videos/v0", "train"), ("v1", "train"), ("original", "val")]
    Path("s.csv").write_text("video,start,end,label,split\n" + "".join(f"{v},0.5,1.5,left,{s}\n" for v, s in rows))
    with pytest.raises(DataError, match=r"'original' and 'v0' are the same video \(as copies that tada prepare made\)"):
        train_localizer(RECIPE, Path("features"), Path("s.csv"), Path("run"), show_progress=False, say=silent)


def test_a_split_that_holds_trained_videos_is_refused(tested: Path) -> None:
    held = held_out()
    learned = next(name for name in ("v0", "v1", "v2") if name != held)
    header, *rows = Path("plain.csv").read_text().splitlines()
    Path("plain.csv").write_text("\n".join([f"{header},split", *(f"{row},test" for row in rows)]))
    with pytest.raises(
        DataError, match=rf"2 of the 3 videos to test on were trained on by run, the first: '{learned}'"
    ):
        evaluate([])


def test_published_features_are_known_by_their_names(tested: Path) -> None:
    forget_sources(*map(str, Path("features").glob("*.json")))
    assert evaluate([]) == [held_out()]
    text = Path("plain.csv").read_text()
    kept = [row for row in text.splitlines() if not row.startswith(held_out())]
    Path("plain.csv").write_text("\n".join(kept))
    with pytest.raises(DataError, match=r"run was trained on all 2 videos of plain.csv: scores on them would say noth"):
        evaluate([])
    Path("plain.csv").write_text(text)
    held = held_out()
    Path("run/videos.csv").unlink()  # a run of an older tada: what it held out follows from the same annotations
    said: list[str] = []
    assert evaluate(said) == [held]
    assert said == ["testing on 1 video, 1 held out of training; 2 that were trained on are left out"]
    said.clear()
    Path("plain.csv").write_text(text.replace("0.5,1.5", "0.5,1.25"))
    assert len(evaluate(said)) == 3
    assert said == [
        "the run does not say which videos it was trained on: if some of these were, the scores are too good"
    ]


def test_one_video_under_two_names_is_not_trained_on_and_tested(work: Path, small_backbone: Path) -> None:
    replace_video("v2", by="v1")
    extract_all(small_backbone)
    with pytest.raises(DataError, match=r"segments.csv: 'v1' and 'v2' are the same video .* 'train' and one in 'val'"):
        train_localizer(
            RECIPE, Path("features"), Path("videos/segments.csv"), Path("run"), show_progress=False, say=silent
        )
    assert not Path("run").exists()
