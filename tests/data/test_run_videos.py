"""A run recognizes its videos by content, under any name and path."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tada.data import run_videos as module
from tada.data.annotations import read_dataset
from tada.data.hold_out import hold_out
from tada.data.identity import content_id
from tada.data.manifest import Copy
from tada.data.run_videos import (
    as_in_run,
    in_two_splits,
    known_videos,
    marks,
    read_run_list,
    splits_of,
    with_contents,
    write_run_list,
)
from tada.data.split_hashes import MOST_PARTS, PART, Splits
from tada.data.table import VideoTable
from tada.errors import CheckpointError, DataError

RUN = Path("runs/c")


def silent(line: str) -> None:
    pass


def listed(run: Path = RUN) -> Any:
    rows = read_run_list(run)
    assert rows is not None
    return rows


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VideoTable:
    """What a run was trained on, given by a relative path; its list is in runs/c. All files have the same size."""
    monkeypatch.chdir(tmp_path)
    RUN.mkdir(parents=True)
    random = np.random.default_rng(0)
    for label in ("left", "right"):
        for i in range(5):
            file = Path("clips", label, f"{i}.mp4")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(random.bytes(1000))
    table = hold_out(read_dataset(Path("clips")), fraction=0.4, seed=0)
    write_run_list(table, RUN, silent)
    return table


def as_old(run: Path = RUN, *, relative: bool = False) -> None:
    """Make a run's list one of before contents were noted, with paths as they were typed."""
    lines = [line.split(",")[:4] for line in (run / "videos.csv").read_text().splitlines()]
    if relative:
        lines = [[os.path.relpath(path), *rest] if path != "path" else [path, *rest] for path, *rest in lines]
    (run / "videos.csv").write_text("".join(",".join(line) + "\n" for line in lines))


# -- other names for the same files -----------------------------------------------------------------------------------


def same() -> Path:
    return Path("clips")


def absolute() -> Path:
    return Path("clips").absolute()


def from_another_folder() -> Path:
    os.chdir("runs")
    return Path("../clips")


def through_a_link() -> Path:
    Path("other").mkdir()
    Path("other/link").symlink_to("../clips")
    return Path("other/link")


def through_links_of_other_names() -> Path:
    for number, file in enumerate(sorted(Path("clips").rglob("*.mp4"), reverse=True)):
        target = Path("links", file.parent.name, f"clip {number}.mp4")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file.absolute())
    return Path("links")


def moved() -> Path:
    return shutil.move("clips", "elsewhere")


def copied() -> Path:
    return shutil.copytree("clips", "copy", copy_function=shutil.copyfile)  # as `cp -r`: with new times


def copied_while_the_others_are_gone() -> Path:
    shutil.copytree("clips", "copy", copy_function=shutil.copyfile)
    shutil.rmtree("clips")
    return Path("copy")


def in_a_list_of_another_root() -> Path:
    rows = [f"{file},{file.parent.name}\n" for file in sorted(Path("clips").rglob("*.mp4"), reverse=True)]
    Path("list.csv").write_text("path,label\n" + "".join(rows))
    return Path("list.csv")


WAYS: list[Callable[[], Any]] = [
    same,
    absolute,
    from_another_folder,
    through_a_link,
    through_links_of_other_names,
    moved,
    copied,
    copied_while_the_others_are_gone,
    in_a_list_of_another_root,
]


def of_content(table: VideoTable, values: Iterable[Any]) -> dict[str, Any]:
    return {content_id(video.path): value for video, value in zip(table.videos, values, strict=True)}


@pytest.mark.parametrize("way", WAYS)
def test_a_video_is_known_however_it_is_named(way: Callable[[], Any], table: VideoTable, tmp_path: Path) -> None:
    wanted = of_content(table, (video.split for video in table.videos))
    again = read_dataset(Path(way()))
    found = marks(again, listed(tmp_path / RUN))
    assert Counter(found) == {"train": 6, "val": 4}
    assert of_content(again, found) == wanted
    assert of_content(again, marks(again, Splits.from_text(splits_of(listed(tmp_path / RUN)).to_text()))) == wanted


@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_however_its_videos_are_named(way: Callable[[], Any], table: VideoTable, tmp_path: Path) -> None:
    """In the order and the splits of the run, since both decide what is learned."""
    wanted = [(content_id(video.path), video.split, table.label_names(video)) for video in table.videos]
    again = hold_out(read_dataset(Path(way())), fraction=0.4, seed=0)
    resumed = as_in_run(again, listed(tmp_path / RUN), RUN, is_drawn=True)
    assert [(content_id(v.path), v.split, resumed.label_names(v)) for v in resumed.videos] == wanted


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_old_lists_know_what_lies_where_it_lay(
    way: Callable[[], Any], relative: bool, table: VideoTable, tmp_path: Path
) -> None:
    wanted = of_content(table, (video.split for video in table.videos))
    as_old(relative=relative)
    again = read_dataset(Path(way()).absolute())
    os.chdir(tmp_path)  # old lists count from the folder in which the run was started
    found = marks(again, listed())
    if way in (moved, copied_while_the_others_are_gone):
        assert not any(found)
    else:
        assert of_content(again, found) == wanted
    if way not in (through_links_of_other_names, in_a_list_of_another_root):
        drawn = hold_out(again, fraction=0.4, seed=0)  # by their names below the folder they share
        assert [v.split for v in as_in_run(drawn, listed(), RUN, is_drawn=True).videos] == [
            v.split for v in table.videos
        ]


# -- other files under the same names ---------------------------------------------------------------------------------


def test_a_file_that_took_the_place_of_another_is_another(table: VideoTable) -> None:
    trained = next(video for video in table.videos if video.split == "train")
    status = os.stat(trained.path)
    Path(trained.path).write_bytes(np.random.default_rng(1).bytes(1000))
    again = read_dataset(Path("clips"))
    assert Counter(marks(again, listed())) == {"train": 5, "val": 4, "": 1}
    assert marks(again, listed())[table.videos.index(trained)] == ""
    again = hold_out(again, fraction=0.4, seed=0)
    message = r"not those that runs/c was started with \(videos.csv there\): 1 video not among them, or not wi"
    with pytest.raises(DataError, match=message):
        as_in_run(again, listed(), RUN, is_drawn=True)
    Path(trained.path).write_bytes(b"longer than that" * 100)
    os.utime(trained.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert marks(read_dataset(Path("clips")), listed())[table.videos.index(trained)] == ""


def test_a_run_does_not_go_on_with_other_videos_labels_or_splits(table: VideoTable) -> None:
    def refused(data: VideoTable, message: str, *, is_drawn: bool = True) -> None:
        with pytest.raises(DataError, match=message) as error:
            as_in_run(data, listed(), RUN, is_drawn=is_drawn)
        assert "\n" not in str(error.value)

    plain = read_dataset(Path("clips"))
    refused(hold_out(plain, fraction=0.2, seed=0), r"\d videos? in another split, the first: '.*\.mp4'\. Give the d")
    other = hold_out(plain, fraction=0.4, seed=1)
    assert [video.split for video in other.videos] != [video.split for video in table.videos]
    refused(other, r"videos? in another split", is_drawn=False)
    swapped = replace(table, videos=tuple(replace(v, labels=(1 - v.label,)) for v in table.videos))
    refused(swapped, r": 10 videos with another label, the first: '.*left/0.mp4'")
    shutil.copy("clips/left/0.mp4", "clips/left/new.mp4")
    refused(hold_out(read_dataset(Path("clips")), fraction=0.4, seed=0), r": 1 video not among them")
    Path("clips/left/new.mp4").unlink()
    Path("clips/left/0.mp4").unlink()
    refused(hold_out(read_dataset(Path("clips")), fraction=0.4, seed=0), r"1 video of 10 lacking, .*left/0.mp4'")


def test_new_videos_are_not_known(table: VideoTable) -> None:
    Path("new/left").mkdir(parents=True)
    Path("new/left/0.mp4").write_bytes(np.random.default_rng(1).bytes(1000))
    assert marks(read_dataset(Path("new")), listed()) == [""]


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose contents are asked for."""
    paths: list[str] = []
    real = module.content_ids

    def noted(wanted: Iterable[str], **options: Any) -> dict[str, str]:
        wanted = list(wanted)
        paths.extend(wanted)
        return real(wanted, **options)

    monkeypatch.setattr(module, "content_ids", noted)
    return paths


def test_no_file_is_opened_where_paths_and_times_decide(table: VideoTable, opened: list[str]) -> None:
    marks(read_dataset(Path("clips")), listed())
    as_in_run(table, listed(), RUN, is_drawn=True)
    assert opened == []
    os.utime("clips/left/0.mp4")
    marks(read_dataset(Path("clips")), listed())
    assert [Path(path).name for path in opened] == ["0.mp4"]
    as_old()
    opened.clear()
    marks(read_dataset(Path("clips")), listed())
    as_in_run(table, listed(), RUN, is_drawn=True)
    assert opened == []


def test_no_file_is_opened_whose_size_no_known_file_has(table: VideoTable, opened: list[str]) -> None:
    Path("new/left").mkdir(parents=True)
    Path("new/left/0.mp4").write_bytes(b"short")
    assert marks(read_dataset(Path("new")), listed()) == [""]
    as_old()
    assert marks(read_dataset(Path("new")), listed()) == [""]
    assert opened == []


def test_a_list_tells_what_each_file_is(table: VideoTable) -> None:
    lines = (RUN / "videos.csv").read_text().splitlines()
    assert lines[0] == "path,label,split,group,content,mtime_ns"
    for row in listed():
        assert os.path.isabs(row.path)
        assert (row.content, row.mtime_ns) == (content_id(row.path), os.stat(row.path).st_mtime_ns)
    assert read_dataset(RUN / "videos.csv", root=Path("/")).ignored == ()


def test_a_damaged_list_is_told(table: VideoTable) -> None:
    file = RUN / "videos.csv"
    whole = file.read_text()
    for damaged in (
        "name\n1\n",
        whole.replace(",1000-", ",many-", 1),
        whole[:-60],
        whole + "a\n",
        whole + "a,b,c,d,e,f,g\n",
    ):
        file.write_text(damaged)
        with pytest.raises(CheckpointError, match=r"videos.csv' is damaged \(.*\); copy the run's folder again"):
            read_run_list(RUN)
    file.unlink()
    assert read_run_list(RUN) is None


# -- segments ---------------------------------------------------------------------------------------------------------


def test_a_segment_is_its_file_and_its_times(table: VideoTable) -> None:
    rows = "path,start,end,label,split\n"
    rows += "clips/left/0.mp4,0,2,x,train\nclips/left/0.mp4,3,5,x,train\nclips/left/1.mp4,0,2,x,val\n"
    Path("run.csv").write_text(rows)
    write_run_list(read_dataset(Path("run.csv")), RUN, silent)
    shutil.copytree("clips", "copy", copy_function=shutil.copyfile)
    tests = {
        "0.mp4,0,2": "train",
        "0.mp4,1.5,2.5": "train",  # shows a time that was trained on
        "0.mp4,2,3": PART,
        "1.mp4,0,2": "val",
        "1.mp4,1,2": "",
        "2.mp4,0,2": "",
    }
    Path("test.csv").write_text("path,start,end,label\n" + "".join(f"copy/left/{row},x\n" for row in tests))
    whole = "path,label\ncopy/left/0.mp4,x\ncopy/left/1.mp4,x\n"
    for known in (listed(), Splits.from_text(splits_of(listed()).to_text())):
        assert marks(read_dataset(Path("test.csv")), known) == list(tests.values())
        Path("whole.csv").write_text(whole)
        assert marks(read_dataset(Path("whole.csv")), known) == ["train", ""]
    as_old_rows = [replace(row, content="", mtime_ns=None) for row in listed()]
    Path("test.csv").write_text("path,start,end,label\n" + "".join(f"clips/left/{row},x\n" for row in tests))
    assert marks(read_dataset(Path("test.csv")), as_old_rows) == list(tests.values())


# -- prepared copies --------------------------------------------------------------------------------------------------


def prepare(data: VideoTable, out: Path, *, old: bool) -> Path:
    """As `tada prepare` does, without an encoder; ``old``: before the originals' contents were noted."""
    lines, rows = [], ["path,label"]
    for video in data.videos:
        copy = out / "videos" / data.relative(video)
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = Path(video.path).read_bytes()
        copy.write_bytes(content[::-1])
        line = asdict(
            Copy(
                source=data.relative(video),
                source_size_bytes=1000,
                source_mtime_ns=os.stat(video.path).st_mtime_ns,
                source_sha256=hashlib.sha256(content).hexdigest(),
                source_content=content_id(video.path),
                file=data.relative(video),
                size_bytes=1000,
                **dict.fromkeys(("width", "height", "num_frames", "fps", "keyframe_interval_frames"), 1),  # type: ignore[arg-type]
                sha256="",
            )
        )
        if old:
            del line["source_content"]
        lines.append(json.dumps(line) + "\n")
        rows.append(f"videos/{data.relative(video)},{data.label_names(video)[0]}")
    (out / "manifest.jsonl").write_text("".join(lines))
    (out / "videos.csv").write_text("\n".join(rows) + "\n")
    return out / "videos.csv"


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("old_list", [False, True])
def test_prepared_copies_are_their_originals(table: VideoTable, old: bool, old_list: bool) -> None:
    wanted = [video.split for video in table.videos]
    copies = read_dataset(prepare(table, Path("fast"), old=old))
    others = read_dataset(prepare(table, Path("other"), old=old))
    if old_list:
        as_old()
    assert marks(copies, listed()) == wanted
    assert marks(read_dataset(Path("fast/videos")), listed()) == wanted  # as class folders
    # The other way round, and from one copy to another.
    trained = replace(copies, videos=tuple(replace(v, split=s) for v, s in zip(copies.videos, wanted, strict=True)))
    write_run_list(trained, RUN, silent)
    assert "original" in (RUN / "videos.csv").read_text().splitlines()[0]
    if old_list:
        as_old()
    shutil.copytree("clips", "copied", copy_function=shutil.copyfile)
    for data in (table, read_dataset(Path("copied")), others):
        assert marks(data, listed()) == wanted
        if not old_list:
            assert marks(data, Splits.from_text(splits_of(listed()).to_text())) == wanted


def test_copies_are_known_through_links_and_when_moved_and_not_when_changed(table: VideoTable) -> None:
    wanted = [video.split for video in table.videos]
    prepare(table, Path("fast"), old=False)
    shutil.move("fast", "faster")
    for file in sorted(Path("faster/videos").rglob("*.mp4")):
        target = Path("links", file.parent.name, file.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file.absolute())
    Path("folder").mkdir()
    Path("folder/left").symlink_to("../faster/videos/left")
    assert marks(read_dataset(Path("links")), listed()) == wanted
    assert marks(read_dataset(Path("folder")), listed()) == wanted[:5]
    Path("faster/videos/left/0.mp4").write_bytes(b"something else")
    assert marks(read_dataset(Path("faster/videos.csv")), listed()) == ["", *wanted[1:]]


# -- the same content twice -------------------------------------------------------------------------------------------


def test_a_video_in_both_splits_is_told_and_not_tested(table: VideoTable) -> None:
    trained = next(video for video in table.videos if video.split == "train")
    held_out = next(video for video in table.videos if video.split == "val")
    shutil.copyfile(trained.path, held_out.path)
    table = replace(table, videos=tuple(replace(video, stamp=None) for video in table.videos))
    said: list[str] = []
    write_run_list(table, RUN, said.append)
    assert len(said) == 1
    assert said[0].startswith(
        f"trained on and held out too, under another name: 1 video. {held_out.path!r} (val) has the same content as "
        f"{trained.path!r} (train)"
    )
    assert Counter(marks(read_dataset(Path("clips")), listed())) == {"train": 7, "val": 3}
    pairs = in_two_splits(known_videos(table))
    assert [(one.path, other.path) for one, other in pairs] == [(trained.path, held_out.path)]


# -- what goes with an exported file ----------------------------------------------------------------------------------


def test_a_list_of_240_000_videos_takes_two_megabytes() -> None:
    splits = Splits()
    for i in range(240_000):
        splits.add(f"{i}-{hashlib.blake2b(str(i).encode(), digest_size=16).hexdigest()}", None, None, "train")
    text = splits.to_text()
    assert len(text) < 2_000_000
    assert len(Splits.from_text(text)) == 240_000


def test_texts_that_are_no_lists_are_refused() -> None:
    splits = Splits()
    splits.add("5-a", None, None, "train")
    about = json.loads(splits.to_text())
    packed = about["splits"]["train"]
    for changes in (
        {"format": 2},
        {"splits": []},
        {"splits": {"train": {**packed, "videos": 2}}},
        {"splits": {"train": {**packed, "videos": MOST_PARTS + 1}}},
        {"splits": {"train": {**packed, "videos": -1}}},
        {"splits": {"train": {**packed, "packed": "%%%"}}},
        {"splits": {"train": {**packed, "packed": packed["packed"][:-4]}}},
        {"splits": {"train": {**packed, "packed": "AAAA"}}},
        {"splits": {"train": {"videos": 1}}},
        {"sha256_sizes": 1},
    ):
        with pytest.raises(ValueError, match=r"."):
            Splits.from_text(json.dumps(about | changes))
    for text in ("", "[]", "{}", "null", "[" * 100_000):
        with pytest.raises(ValueError, match=r"."):
            Splits.from_text(text)


def test_contents_of_old_lists_are_found_as_far_as_files_are_there(table: VideoTable) -> None:
    before = listed()
    as_old()
    Path("clips/left/0.mp4").unlink()
    rows = with_contents(listed())
    assert [row.content for row in rows] == ["", *(row.content for row in before[1:])]
