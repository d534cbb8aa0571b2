"""A job over an object store: a real server that is slow, cuts connections, and lacks objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from drawn_videos import draw_plain
from job_works import RUN
from object_store_server import SECRET, Fault, S3Server, use_server
from tada.commands.cli import main
from tada.jobs.run import Engine, run_job
from tada.jobs.shards import read_rows
from tada.jobs.videos import list_videos
from tada.jobs.work import AnswerWork, Network, Source
from tada.recognition.recognizer import load_recognizer
from tada.recognition.video_clips import ClipChoice
from tada.system.object_store import ObjectStore

STORE = ObjectStore(allowed=("s3://videos/",), timeout_seconds=1.0, max_file_bytes=100_000)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with closing(S3Server()) as server:
        yield server


@pytest.fixture
def store(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A bucket with six videos, one of them broken and one too large."""
    server.reset()
    use_server(server, tmp_path, monkeypatch)
    files = {f"a/{number}.mp4": draw_plain(tmp_path / f"{number}.mp4", 12 + number).read_bytes() for number in range(4)}
    server.put("videos", files | {"a/broken.mp4": b"no video", "a/large.mp4": bytes(200_000)})
    return server


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for table in read_rows(out) for row in table.to_pylist()}


def test_answers_of_addresses_are_those_of_files(store: S3Server, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        "path,id\n" + "".join(f"s3://videos/a/{n}.mp4,{n}.mp4\n" for n in (0, 1, 2, 3, "broken", "large", "gone"))
    )
    recognizer = load_recognizer(RUN)
    work = AnswerWork.of(
        recognizer, Network.of(recognizer, RUN), Source(store=STORE), ClipChoice(spec=recognizer.clip), top=3
    )
    videos = list_videos([str(tmp_path / "list.csv")], STORE, print)
    store.proxy.faults += [Fault("cut", after_bytes=700), Fault("slow", after_bytes=700), Fault("refuse")]
    engine = Engine(num_workers=1, batch_size=2)
    summary = run_job(videos, work, tmp_path / "out", engine=engine, show_progress=False)
    assert summary.done == 4
    assert summary.faults == {"not_a_video": 1, "too_large": 1, "not_found": 1}
    assert not store.proxy.faults, "each has struck"
    rows = rows_of(tmp_path / "out")
    for number in range(4):
        expected = recognizer.predict(tmp_path / f"{number}.mp4")
        assert rows[f"{number}.mp4"]["path"] == f"s3://videos/a/{number}.mp4"
        assert rows[f"{number}.mp4"]["scores"][0]["score"] == pytest.approx(expected.top(1)[0][1], abs=1e-6)
    for name in ("broken", "large", "gone"):
        assert f"'s3://videos/a/{name}.mp4'" in rows[f"{name}.mp4"]["message"]


def test_a_folder_of_a_bucket(store: S3Server) -> None:
    ids = list_videos(["s3://videos/a"], STORE, print).column("id").to_pylist()
    assert ids == ["0.mp4", "1.mp4", "2.mp4", "3.mp4", "broken.mp4", "large.mp4"]


def test_the_command_refuses_what_is_not_allowed_or_not_open(
    store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ["predict", RUN, "s3://videos/a/0.mp4", "--out", str(tmp_path / "out")]
    assert main(job) == 2
    assert (
        "'s3://videos/a/0.mp4' is not below an allowed address (none is allowed yet); to allow all of its place: "
        in (capsys.readouterr().err)
    )
    store.check_credentials(0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
    assert main([*job, "--allow", "s3://videos/"]) == 2
    said = capsys.readouterr().err
    store.check_credentials(float("inf"))
    assert "s3://videos/a/0.mp4' cannot be read" in said
    assert SECRET not in said
    assert not (tmp_path / "out").exists()
