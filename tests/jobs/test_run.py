"""Jobs on one machine: each video is done once, whatever is killed; the numbers are those of predictions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drawn_videos import draw_plain
from hang import HANG_SECONDS
from job_works import RUN, SOURCE, DeadlyWork, features_of
from tada.data.workers import Lost
from tada.errors import DataError, OptionError, OutputError
from tada.jobs import one_machine, shards
from tada.jobs.run import Engine, Summary, run_job
from tada.jobs.shards import Shards, known_videos, read_arrays, read_rows
from tada.jobs.videos import JobVideo, list_videos, videos_in
from tada.jobs.work import AnswerWork, Done, FeatureWork, Network, row_schema
from tada.localization.features.extraction import extract_video
from tada.recognition.prediction import Prediction
from tada.recognition.recognizer import Recognizer, load_recognizer
from tada.recognition.video_clips import ClipChoice
from tada.system.files import is_part
from tada.system.locks import LOCK_FILE
from tada.video.sliding_windows import SlidingWindows

ENGINE = Engine(num_workers=1, batch_size=3)


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return load_recognizer(RUN)


@pytest.fixture(scope="module")
def work(recognizer: Recognizer) -> AnswerWork:
    return AnswerWork.of(
        recognizer, Network.of(recognizer, RUN), SOURCE, ClipChoice(spec=recognizer.clip, num_clips=2), top=3
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five videos of which two are broken."""
    for number in range(5):
        file = tmp_path / "videos" / f"{number}.mp4"
        file.parent.mkdir(exist_ok=True)
        if number in (1, 3):
            file.write_bytes(b"no video" * number)
        else:
            draw_plain(file, 10 + number)
    return tmp_path / "videos"


def run(work: AnswerWork | DeadlyWork, folder: Path, out: Path, **options: Any) -> Summary:
    videos = list_videos([str(folder)], SOURCE.store, print)
    return run_job(videos, work, out, engine=ENGINE, show_progress=False, **options)


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    rows = [row for table in read_rows(out) for row in table.to_pylist()]
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows), "an id twice"
    return found


def test_answers_are_those_of_predictions(
    recognizer: Recognizer, work: AnswerWork, folder: Path, tmp_path: Path
) -> None:
    summary = run(work, folder, tmp_path / "out")
    assert (summary.videos, summary.there_before, summary.done, summary.faults) == (5, 0, 3, {"not_a_video": 2})
    rows = rows_of(tmp_path / "out")
    assert sorted(rows) == [f"{number}.mp4" for number in range(5)]
    answers = recognizer.predict_all([folder / id for id in sorted(rows)], num_clips=2)
    for (id, row), answer in zip(sorted(rows.items()), answers, strict=True):
        assert row["path"] == str(folder / id)
        if isinstance(answer, Prediction):
            assert (row["fault"], row["message"], row["labels"]) == (None, None, [answer.label])
            assert [(one["label"], one["score"]) for one in row["scores"]] == [
                (label, pytest.approx(score, abs=5e-6)) for label, score in answer.top(3)
            ]
            assert [clip["start_seconds"] for clip in row["clips"]] == [
                pytest.approx(clip.start_seconds, abs=1e-3) for clip in answer.clips
            ]
            for clip, seen in zip(row["clips"], answer.clips, strict=True):
                assert clip["scores"][0]["score"] == pytest.approx(answer.top(1, seen)[0][1], abs=5e-6)
        else:
            assert (row["fault"], row["message"], row["labels"]) == (answer.reason, str(answer), None)
    about = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert about["videos"] == about["there_before"] + about["done"] + sum(about["faults"].values()) == 5


def test_features_are_those_of_an_extraction(recognizer: Recognizer, folder: Path, tmp_path: Path) -> None:
    windows = SlidingWindows(window_seconds=0.4, stride_seconds=0.1)
    work = features_of(recognizer, windows)
    videos = list_videos([str(folder)], SOURCE.store, print)
    run_job(videos, work, tmp_path / "out", engine=ENGINE, show_progress=False)
    rows = rows_of(tmp_path / "out")
    for id in ("0.mp4", "2.mp4", "4.mp4"):
        expected = extract_video(recognizer, folder / id, windows)
        arrays = read_arrays(tmp_path / "out", rows[id])
        assert rows[id]["num_features"] == len(expected.features)
        assert rows[id]["duration_seconds"] == expected.card.duration_seconds
        np.testing.assert_allclose(arrays["features"], expected.features, atol=1e-5)
        np.testing.assert_allclose(arrays["scores"], expected.scores["action"], atol=1e-6)
    with pytest.raises(DataError, match=r"'1.mp4' has no features: .*1.mp4'"):
        read_arrays(tmp_path / "out", rows["1.mp4"])
    labels = json.loads((tmp_path / "out" / "job.json").read_text())["score_labels"]
    assert labels == {"action": list(recognizer.labels)}


def test_a_second_run_opens_nothing_and_new_videos_cost_only_themselves(
    work: AnswerWork, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(work, folder, out)
    before = {file: file.read_bytes() for file in out.rglob("*.parquet")}
    with monkeypatch.context() as patched:
        patched.setattr(one_machine, "do_here", pytest.fail)
        again = run(work, folder, out)
    assert (again.there_before, again.faults_before, again.done, again.faults) == (5, 2, 0, {})
    assert again.without_result == 2
    assert again.lines() == [
        "5 videos: 5 were there (2 of them without a result), 0 done now, 0 without a result",
        "to try those again that had no result, remove rows/faults-*.parquet",
    ]
    draw_plain(folder / "new.mp4", 12)
    more = run(work, folder, out)
    assert (more.there_before, more.done, more.faults) == (5, 1, {})
    assert len(rows_of(out)) == 6
    assert {file: file.read_bytes() for file in before} == before


def test_removed_rows_of_faults_are_tried_again(work: AnswerWork, folder: Path, tmp_path: Path) -> None:
    run(work, folder, tmp_path / "out")
    draw_plain(folder / "1.mp4", 12)
    for file in (tmp_path / "out" / "rows").glob("faults-*"):
        file.unlink()
    again = run(work, folder, tmp_path / "out")
    assert (again.there_before, again.done, again.faults) == (3, 1, {"not_a_video": 1})


def test_videos_that_are_not_named_any_more_are_kept(work: AnswerWork, folder: Path, tmp_path: Path) -> None:
    run(work, folder, tmp_path / "out")
    (folder / "0.mp4").unlink()
    again = run(work, folder, tmp_path / "out")
    assert (again.videos, again.there_before, again.faults_before, again.others) == (4, 4, 2, 1)
    assert again.lines()[-1] == "1 row of videos that are not named now are kept"


def deadly(work: AnswerWork, marks: Path) -> DeadlyWork:
    marks.mkdir()
    return DeadlyWork(marks=marks, **{field.name: getattr(work, field.name) for field in fields(work)})


def test_a_video_that_kills_its_process_three_times_is_set_aside(
    work: AnswerWork, folder: Path, tmp_path: Path
) -> None:
    (folder / "0.mp4").rename(folder / "deadly.mp4")
    (folder / "2.mp4").rename(folder / "once.mp4")
    summary = run(deadly(work, tmp_path / "marks"), folder, tmp_path / "out")
    assert (summary.done, summary.faults) == (2, {"not_a_video": 2, "lost": 1})
    message = rows_of(tmp_path / "out")["deadly.mp4"]["message"]
    assert message.endswith(
        "deadly.mp4': the decoder crashed (signal SIGKILL; was memory short?), 3 times; leave it out, or convert it "
        "with another program"
    )


def test_a_file_that_changes_while_its_process_dies_has_the_clips_of_the_new_one(
    work: AnswerWork, folder: Path, tmp_path: Path
) -> None:
    (folder / "0.mp4").rename(folder / "changing.mp4")
    summary = run(deadly(work, tmp_path / "marks"), folder, tmp_path / "out")
    assert (summary.done, summary.faults) == (3, {"not_a_video": 2})
    run(work, folder, tmp_path / "expected")
    row, expected = (rows_of(tmp_path / name)["changing.mp4"] for name in ("out", "expected"))
    assert [clip["start_seconds"] for clip in row["clips"]] == [clip["start_seconds"] for clip in expected["clips"]]
    assert row["labels"] == expected["labels"]


def test_a_name_like_a_pattern_and_a_folder_are_rows_with_faults(
    work: AnswerWork, folder: Path, tmp_path: Path
) -> None:
    (folder / "0.mp4").rename(folder / "0 [1].mp4")
    (tmp_path / "list.csv").write_text("path\nvideos/0 [1].mp4\nvideos/gone [1].mp4\nvideos/gone*.mp4\nvideos\n")
    summary = run(work, tmp_path / "list.csv", tmp_path / "out")
    assert (summary.done, summary.faults) == (1, {"not_found": 2, "not_a_video": 1})


def test_two_paths_through_a_link_are_two_files(work: AnswerWork, folder: Path, tmp_path: Path) -> None:
    """The system opens LINK/../0.mp4 beside what the link leads to."""
    (tmp_path / "far" / "inner").mkdir(parents=True)
    (tmp_path / "far" / "0.mp4").write_bytes(b"no video")
    (folder / "link").symlink_to(tmp_path / "far" / "inner")
    run(work, folder / "link" / ".." / "0.mp4", tmp_path / "out")
    (row,) = rows_of(tmp_path / "out").values()
    assert (row["fault"], row["path"]) == ("not_a_video", str(tmp_path / "far" / "0.mp4"))
    (tmp_path / "list.csv").write_text("path\nvideos/link/../0.mp4\n")
    with pytest.raises(DataError, match=r"list.csv row 2: '.*' leads through a link to '.*far/0.mp4'; write that path"):
        run(work, tmp_path / "list.csv", tmp_path / "out")


def test_a_folder_that_is_removed_and_begun_again_has_one_writer(
    work: AnswerWork, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    begin = shards.begin

    def begin_and_lose(*given: Any) -> None:
        begin(*given)
        shutil.rmtree(out)  # and somebody gives the command again
        (out / "rows").mkdir(parents=True)
        (out / LOCK_FILE).touch()

    monkeypatch.setattr(shards, "begin", begin_and_lose)
    with pytest.raises(OutputError, match=r"done-000001.parquet' is not written: its folder was removed while this"):
        run(work, folder, out)
    assert not list(out.rglob("*.parquet"))
    assert not [file for file in out.rglob("*") if is_part(file.name)]
    assert (out / LOCK_FILE).exists()


def test_a_list_without_videos_leaves_a_folder_of_the_job(work: AnswerWork, folder: Path, tmp_path: Path) -> None:
    empty = list_videos([str(folder)], SOURCE.store, print).slice(0, 0)
    summary = run_job(empty, work, tmp_path / "out", engine=ENGINE, show_progress=False)
    assert summary.videos == 0
    assert run(work, folder, tmp_path / "out").done == 3


def test_arrays_that_are_not_there_are_told(recognizer: Recognizer, folder: Path, tmp_path: Path) -> None:
    work = features_of(recognizer, SlidingWindows(window_seconds=0.4, stride_seconds=0.2))
    videos = list_videos([str(folder)], SOURCE.store, print)
    run_job(videos, work, tmp_path / "out", engine=ENGINE, show_progress=False)
    (tmp_path / "out" / "arrays" / "done-000001.safetensors").unlink()
    with pytest.raises(DataError, match=r"safetensors' is not there; remove '.*done-000001.parquet', and its videos"):
        run_job(videos, work, tmp_path / "out", engine=ENGINE, show_progress=False)
    (tmp_path / "out" / "rows" / "done-000001.parquet").unlink()
    assert run_job(videos, work, tmp_path / "out", engine=ENGINE, show_progress=False).done == 3


def test_rows_that_are_no_folder(work: AnswerWork, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rows").symlink_to("nowhere")
    with pytest.raises(OptionError, match=r"out/rows' is no folder, and results are written there: remove it"):
        run(work, folder, tmp_path / "out")


def test_rows_that_another_program_wrote_anew(work: AnswerWork, folder: Path, tmp_path: Path) -> None:
    run(work, folder, tmp_path / "out")
    shard = tmp_path / "out" / "rows" / "done-000001.parquet"
    table = pq.read_table(shard, partitioning=None)
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(table.set_column(0, "id", table.column("id").cast(kind)), shard)
        assert run(work, folder, tmp_path / "out").there_before == 5
    pq.write_table(table, shard.with_name("done-000007.parquet"))
    with pytest.raises(DataError, match=r"rows' has more than one row of '0.mp4': a file there is a copy of another"):
        run(work, folder, tmp_path / "out")


def test_an_error_that_is_not_of_a_video_ends_the_job_and_keeps_what_is_done(
    work: AnswerWork, folder: Path, tmp_path: Path
) -> None:
    (folder / "4.mp4").rename(folder / "full.mp4")
    with pytest.raises(OutputError, match=r"'/scratch' cannot be written: the disk is full"):
        run(deadly(work, tmp_path / "marks"), folder, tmp_path / "out", rows_per_shard=1)
    assert {"0.mp4", "1.mp4"} <= rows_of(tmp_path / "out").keys()
    assert not (tmp_path / "out" / "summary.json").exists()


def test_another_job_in_the_same_folder_is_refused(
    recognizer: Recognizer, work: AnswerWork, folder: Path, tmp_path: Path
) -> None:
    run(work, folder, tmp_path / "out")
    other = AnswerWork.of(
        recognizer, Network.of(recognizer, RUN), SOURCE, ClipChoice(spec=recognizer.clip, num_clips=5), top=3
    )
    with pytest.raises(OptionError, match=r"out' holds results of a job with another clips \(2\): give another"):
        run(other, folder, tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").touch()
    with pytest.raises(OptionError, match=r"used' holds other files \(letter.txt, ...\): give a folder of its own"):
        run(work, folder, tmp_path / "used")


def test_a_damaged_shard_is_told(work: AnswerWork, folder: Path, tmp_path: Path) -> None:
    run(work, folder, tmp_path / "out")
    file = tmp_path / "out" / "rows" / "done-000001.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"done-000001.parquet' is damaged .*; remove it, and its videos are done"):
        run(work, folder, tmp_path / "out")


def test_shards_are_numbered_on_and_never_torn(
    work: AnswerWork, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(work, folder, out, rows_per_shard=2)
    assert sorted(file.name for file in (out / "rows").iterdir()) == [
        "done-000001.parquet",
        "done-000002.parquet",
        "faults-000001.parquet",
    ]
    (video, *_) = videos_in(list_videos([str(folder)], SOURCE.store, print))
    monkeypatch.setattr(pq, "write_table", write_half)
    shard = Shards(out, row_schema(work), rows_per_shard=1, seconds_per_shard=9.0)
    with pytest.raises(OutputError, match=r"faults-000002.parquet' cannot be written: half of it is written"):
        shard.add(Done(video=video, fault="lost", message="x"))
    monkeypatch.undo()
    assert len(known_videos(out)) == 5
    assert len(list((out / "rows").iterdir())) == 3


def test_a_signal_just_after_a_write_doubles_no_rows(
    work: AnswerWork, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.replace

    def replace_and_signal(part: Path, file: Path) -> Path:
        found = real(part, file)
        if file.name == "done-000001.parquet":
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Path, "replace", replace_and_signal)
    with pytest.raises(KeyboardInterrupt):
        run(work, folder, tmp_path / "out", rows_per_shard=2)
    monkeypatch.undo()
    run(work, folder, tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 5  # none of them twice


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        ("job.json", b"{", r"job.json' cannot be read"),
        ("job.json", b"\xff", r"job.json' cannot be read"),
        ("job.json", b"[]", r"job.json' is no JSON object; give another folder"),
        ("rows/done-000001.parquet", b"", r"done-000001.parquet' is damaged"),
    ],
)
def test_damaged_files_of_a_job(
    work: AnswerWork, folder: Path, tmp_path: Path, place: str, content: bytes, message: str
) -> None:
    run(work, folder, tmp_path / "out")
    (tmp_path / "out" / place).write_bytes(content)
    with pytest.raises(DataError, match=message):
        run(work, folder, tmp_path / "out")


def test_a_copy_of_a_shard_is_no_shard(work: AnswerWork, folder: Path, tmp_path: Path) -> None:
    run(work, folder, tmp_path / "out")
    shard = tmp_path / "out" / "rows" / "done-000001.parquet"
    (shard.parent / "done-000001 (copy).parquet").write_bytes(shard.read_bytes())
    draw_plain(folder / "new.mp4", 12)
    summary = run(work, folder, tmp_path / "out")
    assert (summary.there_before, summary.done, summary.others) == (5, 1, 0)


def test_rows_of_videos_at_other_paths_are_told(work: AnswerWork, folder: Path, tmp_path: Path) -> None:
    run(work, folder, tmp_path / "out")
    folder.rename(tmp_path / "moved")
    summary = run(work, tmp_path / "moved", tmp_path / "out")
    assert (summary.there_before, summary.other_paths) == (5, 5)
    assert summary.lines()[-1].startswith("there were 5 rows of videos at other paths: what has the same id")


def test_a_lost_video_shows_no_secret() -> None:
    fault = one_machine.clip_of_job(JobVideo("a", "https://h/a.mp4?sig=SECRET"), Lost("the decoder crashed")).fault
    assert fault is not None
    assert "SECRET" not in str(fault) + fault.path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": -1}, r"batch_size = -1 should be at least 1"),
        ({"num_workers": -1}, r"num_workers = -1 should be at least 0"),
    ],
)
def test_impossible_engines(options: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Engine(**options)  # type: ignore[arg-type]


def write_half(table: pa.Table, file: Path, **options: object) -> None:
    file.write_bytes(b"PAR1")
    raise OSError("half of it is written")


def test_arrays_without_rows_are_replaced(recognizer: Recognizer, folder: Path, tmp_path: Path) -> None:
    """As a process leaves them that is killed between the two files of a shard."""
    work = FeatureWork.of(
        recognizer, Network.of(recognizer, RUN), SOURCE, SlidingWindows(window_seconds=0.4, stride_seconds=0.2)
    )
    out = tmp_path / "out"
    (out / "arrays").mkdir(parents=True)
    shards.begin(out, work.about())
    (out / "arrays" / "done-000001.safetensors").write_bytes(b"of a run that was killed")
    videos = list_videos([str(folder)], SOURCE.store, print)
    run_job(videos, work, out, engine=ENGINE, show_progress=False)
    assert len(read_arrays(out, rows_of(out)["0.mp4"])["features"])


@pytest.mark.slow
def test_each_video_once_however_often_the_command_is_killed(tmp_path: Path) -> None:
    """As a person does it: the same command, killed at random moments, until it comes to its end."""
    for number in range(60):
        draw_plain(tmp_path / f"{number:02d}.mp4", 10 + number % 7)
    command = [sys.executable, "-m", "tada", "predict", RUN, ".", "--out", "out", "--num-workers", "1"]
    for seconds in (3.0, 4.0, 4.5, 5.0, 5.5, 6.0, HANG_SECONDS):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(0.5)  # its decoders end, too
    assert process.returncode == 0
    assert sorted(rows_of(tmp_path / "out")) == [f"{number:02d}.mp4" for number in range(60)]
