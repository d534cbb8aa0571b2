"""The visitors' folders: names of ours, and nothing left when a visit ends."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tada.demo.sessions import Sessions, shown_name
from tada.errors import OptionError, VideoNotFoundError


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path)


def upload(sessions: Sessions, name: str, content: bytes = b"film") -> Path:
    file = sessions.uploads / "hash" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    return file


def test_a_visit_keeps_its_last_video_under_a_name_of_ours(sessions: Sessions) -> None:
    visit = sessions.begin("a")
    first = visit.take(upload(sessions, "../x;rm -rf.MP4".replace("/", "_")))
    assert (first.name, first.read_bytes()) == ("video-1.mp4", b"film")
    second = visit.take(upload(sessions, "page.html"))
    assert second.name == "video-2"
    assert sorted(file.name for file in visit.folder.iterdir()) == ["video-2"]


def test_nothing_is_left_of_a_visit(sessions: Sessions, tmp_path: Path) -> None:
    ended = []
    one, other = sessions.begin("a"), sessions.begin("b")
    one.ends.append(lambda: ended.append("a"))
    film = upload(sessions, "film.mp4")
    one.take(film)
    other.take(film)  # the same content has the same place in gradio's cache
    sessions.end("a")
    assert ended == ["a"]
    assert not one.folder.exists()
    assert film.exists(), "the other visitor still has it"
    with pytest.raises(OptionError, match="this visit has ended: load the page again"):
        sessions.of(one.token)
    sessions.end_all()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    sessions.end("a")  # once more does no harm


def test_uploads_that_nobody_took_are_deleted(sessions: Sessions) -> None:
    visit = sessions.begin("a")
    old, new, used = (upload(sessions, name) for name in ("old.mp4", "new.mp4", "used.mp4"))
    visit.take(used)
    for file in (old, used):
        os.utime(file, (time.time() - 3600,) * 2)
    sessions.sweep()
    assert (old.exists(), new.exists(), used.exists()) == (False, True, True)


def test_the_last_visit_takes_all_uploads_with_it(sessions: Sessions) -> None:
    sessions.begin("a")
    sessions.begin("b")
    waiting = upload(sessions, "waiting.mp4")
    sessions.end("a")
    assert waiting.exists(), "another visitor may wait for its answer"
    sessions.end("b")
    assert not waiting.exists()


def test_an_upload_that_is_gone(sessions: Sessions) -> None:
    with pytest.raises(VideoNotFoundError, match="the upload is not here any more: choose the video again"):
        sessions.begin("a").take(sessions.uploads / "gone.mp4")


def test_as_many_visitors_as_the_page_takes(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, most=2)
    for key in "ab":
        sessions.begin(key)
    with pytest.raises(OptionError, match="2 visitors are here, as many as this page takes: try later"):
        sessions.begin("c")
    assert sessions.begin("a").token != "a", "a page that is loaded again is no new visitor"


def test_visits_that_send_nothing_make_room(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, most=2)
    silent, other = sessions.begin("a"), sessions.begin("b")
    other.take(upload(sessions, "film.mp4"))
    silent.began = other.began = time.monotonic() - 3600
    sessions.begin("c")
    assert sessions.of(other.token) is other
    with pytest.raises(OptionError, match="this visit has ended"):
        sessions.of(silent.token)


@pytest.mark.parametrize("token", ["", "../..", None, 3, ["a"]])
def test_tokens_are_not_guessed(sessions: Sessions, token: object) -> None:
    sessions.begin("a")
    with pytest.raises(OptionError, match="load the page again"):
        sessions.of(token)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/uploads/hash/film.mp4", "film.mp4"),
        ("C:\\films\\film.mp4", "film.mp4"),
        ("a\nb\x1b[31m.mp4", "a�b�[31m.mp4"),
        ("", "video"),
        ("..", ".."),
    ],
)
def test_names_as_they_are_shown(name: str, shown: str) -> None:
    assert shown_name(name) == shown


def test_long_names_lose_their_middle() -> None:
    assert len(shown_name("x" * 500 + ".mp4")) <= 60
    assert shown_name("x" * 500 + ".mp4").endswith(".mp4")
