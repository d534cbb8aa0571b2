"""What happens at the page, without a browser; and its server, which calls no other machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import decoding_tasks
from hang import HANG_SECONDS
from tada.commands.cli import main
from tada.demo.answers import DemoModel
from tada.demo.page import Page, PageLimits
from tada.demo.server import find_port
from tada.errors import OptionError
from tada.models.weights import BEST_PACKAGED
from tada.recognition.recognizer import load_recognizer
from tada.video.isolation.readers import Readers
from tada.video.writer import write_video
from watcher import WATCHER


@pytest.fixture
def page(tmp_path: Path, readers: Readers) -> Iterator[Page]:
    (tmp_path / "page").mkdir()
    models = [DemoModel(name="motions", model=load_recognizer(BEST_PACKAGED, device="cpu"))]
    own = Page(models, tmp_path / "page", PageLimits(max_minutes=0.1), readers)
    yield own
    own.sessions.end_all()
    assert [path for path in (tmp_path / "page").rglob("*") if path.is_file()] == []


def last(states: Iterator[dict[str, Any]]) -> dict[str, Any]:
    found = list(states)
    assert all("working" in state for state in found[:-1])
    return found[-1]


def uploaded(page: Page, name: str, content: bytes) -> str:
    file = page.sessions.uploads / "hash" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    return str(file)


def test_an_upload_is_answered(page: Page, motion_videos: Path) -> None:
    page.begin("a")
    content = (motion_videos / "left" / "left_000.mp4").read_bytes()
    state = last(page.recognize("a", uploaded(page, "<i>film.mp4", content)))
    assert state["answer"]["name"] == "<i>film.mp4"
    assert state["answer"]["models"][0]["kind"] == "recognizer"
    assert "film" not in state["answer"]["url"]
    assert state["answer"]["url"].endswith("/video-1.mp4")


def test_a_drawn_motion_is_answered(page: Page) -> None:
    page.begin("a")
    found = last(page.draw("a"))["answer"]
    assert found["name"].startswith("a drawn motion: ")
    assert found["seconds"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("empty.mp4", b"", "'empty.mp4'"),
        ("list.mp4", b"#EXTM3U\n/etc/passwd\n" * 20, "'list.mp4'"),
        ("text.html", b"<script>alert(1)</script>" * 40, "'text.html'"),
    ],
)
def test_a_bad_file_shows_tadas_line(page: Page, name: str, content: bytes, line: str) -> None:
    page.begin("a")
    error = last(page.recognize("a", uploaded(page, name, content)))["error"]
    assert error.startswith(line)
    assert str(page.sessions.visits) not in error
    assert "video-1" not in error
    assert "\n" not in error


def test_a_video_that_is_too_long(page: Page, tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", np.zeros((8, 32, 32, 3), np.uint8), fps=1)
    page.begin("a")
    error = last(page.recognize("a", uploaded(page, "long.mp4", (tmp_path / "long.mp4").read_bytes())))["error"]
    assert error == "'long.mp4' lasts 8 s, and this page takes at most 6 s; cut it into parts"


def test_a_file_that_crashes_its_decoder_costs_one_answer(
    page: Page, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.begin("a")
    with monkeypatch.context() as patch:
        patch.setattr("tada.demo.answers.shrink_to", decoding_tasks.crash_resizing)
        error = last(page.recognize("a", uploaded(page, "film.mp4", film.read_bytes())))["error"]
    assert error == "'film.mp4' crashed its decoder (signal SIGSEGV); no answer"
    assert "answer" in last(page.recognize("a", uploaded(page, "film.mp4", film.read_bytes())))


def test_a_page_that_is_closed_ends_its_decoder(page: Page, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page.begin("a")
    with monkeypatch.context() as patch:
        patch.setattr("tada.demo.answers.shrink_to", decoding_tasks.hang_resizing)
        states = page.recognize("a", uploaded(page, "film.mp4", film.read_bytes()))
        assert isinstance(states, Generator)
        assert "working" in next(states)
        assert "opening" in next(states)["working"]["text"]
        states.close()
    page.begin("b")
    assert "answer" in last(page.recognize("b", uploaded(page, "film.mp4", film.read_bytes())))  # it waits for none


def test_a_visit_that_has_ended(page: Page) -> None:
    assert "load the page again" in last(page.recognize("nobody", "x.mp4"))["error"]
    token = page.begin("a")["token"]
    page.end("a")
    for call in page.calls:
        assert call({"token": token})["error"] == "this visit has ended: load the page again"


def test_a_visitor_too_many_is_told(page: Page) -> None:
    page.sessions.most = 1
    page.begin("a")
    told = page.begin("b")["error"]
    assert last(page.recognize("b", "x.mp4"))["error"] == told


def test_calls_with_nonsense_get_a_line(page: Page) -> None:
    token = page.begin("a")["token"]
    calls = {call.__name__: call for call in page.calls}
    assert set(calls) == {"keep_clip", "drop_clip", "train", "progress", "stop_training", "look"}
    assert "should have 4 to 90 frames" in calls["keep_clip"]({"token": token, "gesture": 0})["error"]
    assert "gestures have the numbers" in calls["keep_clip"]({"token": token, "gesture": "../x"})["error"]
    assert "2 to 5 gestures" in calls["train"]({"token": token, "names": None})["error"]
    assert "start one" in calls["progress"]({"token": token})["error"]
    assert "train one" in calls["look"]({"token": token, "frames": []})["error"]
    assert calls["drop_clip"]({"token": token, "name": "../../etc/passwd"}) == {}
    assert calls["look"](3)["error"] == "a call should have an object of values"  # type: ignore[arg-type]


def test_ports() -> None:
    assert find_port("127.0.0.1", None) >= 7860
    assert find_port("127.0.0.1", 0) > 0
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OptionError, match=rf"port {port} of '127.0.0.1' is in use: give another with --port"):
            find_port("127.0.0.1", port)


def test_the_first_free_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        first = other.getsockname()[1]
        monkeypatch.setattr("tada.demo.server.FIRST_PORT", first)
        monkeypatch.setattr("tada.demo.server._PORTS", 1)
        with pytest.raises(OptionError, match=rf"ports {first} to {first} of '127.0.0.1' are all in use: give a free"):
            find_port("127.0.0.1", None)


@pytest.mark.parametrize(("name", "value"), [("max_minutes", 0), ("max_minutes", 1e6), ("max_megabytes", 0)])
def test_limits_out_of_range(name: str, value: float) -> None:
    with pytest.raises(OptionError, match=name):
        PageLimits(**{name: value})


def test_without_gradio_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tada.demo.server.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "tada: the page needs gradio: pip install 'tada-video[demo]'\n"


SERVED = """
import re, sys, urllib.error, urllib.request
from tada.demo.answers import DemoModel
from tada.demo.server import serving
from tada.loading import load

def status(path, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers), timeout=60) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, ""

with serving([DemoModel(name="motions", model=load("tada2d_tiny_motion", device="cpu"))]) as address:
    code, page = status("/")
    assert code == 200, code
    assert "Teach gestures" in page
    outside = [tag for tag in re.findall(r"<(?:script|link|img|iframe)[^>]*>", page) if re.search("https?://", tag)]
    assert not outside, outside
    code, style = status("/theme.css")
    assert code == 200 and "fonts.g" not in style and "http:" not in style.replace("http://www.w3.org", "")
    assert status("/", Host="evil.example")[0] == 400
    assert status("/gradio_api/file=/etc/passwd")[0] == 403
    assert status("/gradio_api/file=" + sys.argv[1])[0] == 403
    assert status("/gradio_api/run-history/buckets")[0] == 404
"""


def test_the_server_stays_at_home(tmp_path: Path) -> None:
    """It connects to this machine alone, and leaves nothing in the temporary folder."""
    pytest.importorskip("gradio")
    folders = {name: tmp_path / name for name in ("home", "temporary", "watcher")}
    for folder in folders.values():
        folder.mkdir()
    (folders["watcher"] / "sitecustomize.py").write_text(WATCHER)
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folders["home"]),
        "TMPDIR": str(folders["temporary"]),
        "PYTHONPATH": os.pathsep.join([str(folders["watcher"]), *sys.path]),
        "HTTPS_PROXY": "http://203.0.113.7:9",
        "WATCH_LOG": str(tmp_path / "log"),
    }
    words = [sys.executable, "-c", SERVED, str(secret)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    noted = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("socket")]
    assert noted, "it watches"
    assert [line for line in noted if "127.0.0.1" not in line and "localhost" not in line] == []
    assert [path for path in folders["temporary"].rglob("*") if path.is_file()] == []
