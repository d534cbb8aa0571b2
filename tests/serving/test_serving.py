"""A server as its clients see it: by sockets on loopback, with right, wrong and hostile requests."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from drawn_videos import draw_plain, draw_sound, draw_variable_rate, truncate
from served import FORM, WAIT_SECONDS, Reply, ask, connect, form, reply_of, served
from small_localizer import small_localizer
from tada.commands.cli import main
from tada.recognition.recognizer import load_recognizer
from tada.serving.uploads import HAS_NAMELESS_FILES, client_name
from tada.video.isolation.readers import Readers
from watcher import WATCHER


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of temporary files."""
    before, folder = tempfile.tempdir, tmp_path_factory.mktemp("temporary")
    tempfile.tempdir = str(folder)
    yield folder
    tempfile.tempdir = before


@pytest.fixture(scope="module")
def url(small_backbone: Path, temporary: Path, readers: Readers) -> Iterator[str]:
    recognizer = load_recognizer(small_backbone, device="cpu")
    with served(recognizer, readers, max_megabytes=0.2, max_video_seconds=60.0, concurrent=2) as url:
        yield url
    assert list(temporary.iterdir()) == []


@pytest.fixture(scope="module")
def video(motion_videos: Path) -> Path:
    return next((motion_videos / "left").iterdir())


def answer_of(run: Path, video: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the command prints of a video."""
    capsys.readouterr()
    assert main(["predict", str(run), str(video), "--format", "json", "--device", "cpu", *options]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    return dict(found)


def test_answers_are_those_of_the_command(
    url: str, small_backbone: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = video.read_bytes()
    expected = answer_of(small_backbone, video, capsys=capsys) | {"video": "upload"}
    for kind in ("video/mp4", "application/octet-stream", "application/x-www-form-urlencoded"):
        reply = ask(url, body=content, content_type=kind)
        assert (reply.status, reply.json) == (200, expected)
    assert reply.headers["content-type"] == "application/json"
    fields = (("note", "is ignored"),)
    reply = ask(url, body=form(("../../etc/a b.mp4", content), fields=fields), content_type=FORM)
    assert reply.json == expected | {"video": "a b.mp4"}
    options = ["--top", "1", "--clips", "3", "--window-seconds", "0.5"]
    expected = answer_of(small_backbone, video, *options, capsys=capsys) | {"video": "upload"}
    reply = ask(url, "/predict?top=1&clips=3&window_seconds=0.5", content)
    assert reply.json == expected
    assert len(reply.json["clips"]) == 6


def test_many_at_a_time_get_their_own_answers(url: str, small_backbone: Path, motion_videos: Path) -> None:
    """Batches change the last digits of scores, and nothing else."""
    recognizer = load_recognizer(small_backbone, device="cpu")
    videos = sorted(motion_videos.rglob("*.mp4"))[:8]
    replies: dict[Path, Reply] = {}

    def send(video: Path) -> None:
        replies[video] = ask(url, "/predict?clips=4", video.read_bytes())

    threads = [threading.Thread(target=send, args=[video]) for video in videos]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for video in videos:
        expected = recognizer.predict(video, num_clips=4).as_dict()
        assert replies[video].json["scores"] == pytest.approx(expected["scores"], abs=1e-5)
        assert len(replies[video].json["clips"]) == 4


def test_a_localizer_says_when(untrimmed: Path, small_backbone: Path, readers: Readers) -> None:
    localizer = small_localizer(small_backbone)
    video = untrimmed / "v0.mp4"
    with served(localizer, readers) as url:
        for words, least in (("", None), ("?min_score=0", 0.0)):
            reply = ask(url, f"/predict{words}", video.read_bytes())
            expected = localizer.localize(video, min_score=least).as_dict()
            assert reply.json == json.loads(json.dumps(expected)) | {"video": "upload"}
        assert len(reply.json["segments"]) > 0
        assert "LocalizationAnswer" in ask(url, "/openapi.json").json["components"]["schemas"]


# -- bad input --------------------------------------------------------------------------------------------------------


BODIES = {
    "empty": (422, r"^'upload' is empty"),
    "text": (422, r"^'upload' is not a video"),
    "playlist": (422, r"^'upload' is (not a video|a playlist)"),
    "sound": (422, r"^'upload' .*(sound|video)"),
    "truncated": (422, r"^'upload' begins as a video, but 0 frames can be read"),
    "ten hours": (413, r"^'upload' lasts 36\d\d\d s, and this server takes at most 60 s; cut it into parts$"),
}


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("bodies")
    return {
        "empty": b"",
        "text": b"no video at all\n" * 99,
        "playlist": b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:1/a.ts\nfile:///etc/passwd\n",
        "sound": draw_sound(folder / "sound.m4a").read_bytes(),
        "truncated": truncate(draw_plain(folder / "a.mp4"), 0.5).read_bytes(),
        "ten hours": draw_variable_rate(folder / "long.mkv", [0.0, 18_000.0, 36_000.0]).read_bytes(),
    }


@pytest.mark.parametrize("kind", BODIES)
def test_a_bad_video_is_refused_in_one_line(kind: str, url: str, bodies: dict[str, bytes]) -> None:
    status, detail = ask(url, body=bodies[kind], content_type="video/mp4").refused()
    assert status == BODIES[kind][0]
    assert re.search(BODIES[kind][1], detail), detail
    assert "/" not in detail.split("'")[1]  # a path of ours


REQUESTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "of another type": ({"body": b"{}", "content_type": "application/json"}, 415, r"^Content-Type application/json is"),
    "a form that is none": ({"body": b"nonsense", "content_type": FORM}, 400, r"^this form cannot be read: "),
    "a form without boundary": ({"body": b"", "content_type": "multipart/form-data"}, 400, r"lacks its boundary$"),
    "a form that breaks off": ({"body": form(("a", b"x"), end=False), "content_type": FORM}, 400, r"breaks off before"),
    "a form without files": ({"body": form(fields=(("video", "x"),)), "content_type": FORM}, 400, r"has no file; send"),
    "two files": ({"body": form(("a", b"x"), ("b", b"x")), "content_type": FORM}, 400, r"several files; send one"),
    "a long field": ({"body": form(fields=(("x", "y" * 70_000),)), "content_type": FORM}, 413, r"have too many bytes"),
    "no classes": ({"path": "/predict?top=0", "body": b""}, 422, r"^top: input should be greater than or equal to 1$"),
    "no number": ({"path": "/predict?clips=many", "body": b""}, 422, r"^clips: input should be a valid integer"),
    "many windows": ({"path": "/predict?window_seconds=1e-9", "body": b""}, 422, r"^window_seconds: input should be "),
    "an unknown option": (
        {"path": "/predict?tpo=3", "body": b""},
        422,
        r"^this model has no option 'tpo'; it has top, clips, window_seconds$",
    ),
    "an option of others": ({"path": "/predict?min_score=0.5", "body": b""}, 422, r"^this model has no option 'min_s"),
    "no such path": ({"path": "/../etc/passwd"}, 404, r"^Not Found; POST a video to /predict"),
    "no POST": ({"path": "/predict"}, 405, r"^Method Not Allowed; POST a video to /predict"),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_wrong_request_is_refused_in_one_line(kind: str, url: str) -> None:
    arguments, status, pattern = REQUESTS[kind]
    found, detail = ask(url, **arguments).refused()
    assert found == status
    assert re.search(pattern, detail), detail


def test_names_are_only_words() -> None:
    assert client_name("../../etc/passwd") == "passwd"
    assert client_name(r"C:\videos\a.mp4") == "a.mp4"
    assert client_name("a\x1b[2J\n.mp4") == r"a\x1b[2J\n.mp4"
    assert client_name("/") == client_name("") == "upload"
    assert len(client_name("x" * 9999)) == 200


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_too_large_an_upload_is_refused_while_it_comes(url: str, video: Path, temporary: Path) -> None:
    """By what its head says; and where the head says nothing, as soon as the limit is passed."""
    with socket.create_connection(urlsplit(url).netloc.split(":"), timeout=WAIT_SECONDS) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000000\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 413"

    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 1 << 28:
            sent += 1 << 16
            yield b"\0" * (1 << 16)

    try:
        status, detail = ask(url, body=endless, content_type="video/mp4", transfer_encoding="chunked").refused()
        assert (status, detail[:36]) == (413, "the upload has more than 0.2 MB, whi")
    except (BrokenPipeError, ConnectionResetError):  # it sent on when the server had closed
        pass
    assert sent < 1 << 28
    assert files_in(temporary) == []
    assert ask(url, body=video.read_bytes()).status == 200


def test_a_cut_connection_leaves_nothing(url: str, video: Path, temporary: Path) -> None:
    for _ in range(3):
        connection = connect(url)
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Length", "100000")
        connection.endheaders()
        connection.send(b"\0" * 50_000)
        if HAS_NAMELESS_FILES:  # nor would a killed server
            assert files_in(temporary) == []
        connection.close()
    for _ in range(3):  # after the upload, before the answer
        connection = connect(url)
        connection.request("POST", "/predict", video.read_bytes())
        connection.close()
    assert ask(url, body=video.read_bytes()).status == 200
    assert files_in(temporary) == []


def test_more_than_may_wait_are_told_when_to_come_again(small_backbone: Path, video: Path, readers: Readers) -> None:
    content = video.read_bytes()
    recognizer = load_recognizer(small_backbone, device="cpu")
    with served(recognizer, readers, concurrent=1, max_waiting=1, decode_seconds=float(WAIT_SECONDS)) as url:
        held = []
        for _ in range(2):
            connection = connect(url)
            connection.putrequest("POST", "/predict")
            connection.putheader("Content-Length", str(len(content)))
            connection.endheaders()
            connection.send(content[:100])
            held.append(connection)
        while b"\ntada_requests 2.0" not in ask(url, "/metrics").body:
            pass
        reply = ask(url, body=content)
        status, detail = reply.refused()
        assert status == 503
        assert re.match(
            r"2 requests are being answered or wait, which is this server's limit; try again in \d+ s", detail
        )
        assert int(reply.headers["retry-after"]) >= 1
        for connection in held:
            connection.send(content[100:])
        assert [reply_of(connection).status for connection in held] == [200, 200]
        for connection in held:
            connection.close()
        assert ask(url, body=content).status == 200


def test_limits_of_time(small_backbone: Path, video: Path, readers: Readers) -> None:
    """Of the upload, of decoding and of the answer: each cut off says which, and the server goes on."""
    recognizer = load_recognizer(small_backbone, device="cpu")
    content = video.read_bytes()
    with served(recognizer, readers, upload_seconds=0.3, decode_seconds=0.002) as url:
        connection = connect(url)
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Length", "9")
        connection.endheaders()
        status, detail = reply_of(connection).refused()
        connection.close()
        assert (status, detail) == (
            408,
            "the upload took more than 0.3 s, which is this server's limit; 0 bytes have come",
        )
        for _ in range(2):
            status, detail = ask(url, body=form(("slow.mp4", content)), content_type=FORM).refused()
            assert (status, detail) == (
                422,
                "'slow.mp4' was given up: it takes more than 0.002 s to decode, which is this server's limit",
            )
        assert ask(url, "/healthz").json["status"] == "ok"
    with served(recognizer, readers, answer_seconds=0.002) as url:
        status, detail = ask(url, body=content).refused()
        assert status == 503
        assert detail.startswith("'upload' has no answer after 0.002 s, which is this server's limit; send a shorter")


# -- the other paths --------------------------------------------------------------------------------------------------


def test_pages_need_no_other_host(url: str) -> None:
    reply = ask(url, "/docs")
    page = reply.body.decode()
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "<script" not in page
    assert set(re.findall(r"""(?:src|href|action)=["']([^"']*)""", page)) == {"openapi.json", "predict"}
    assert {found.rstrip("/") for found in re.findall(r"https?://[^/\s]+/", page)} == {url}
    for word in ("POST /predict", "window_seconds", "max_video_seconds", "PredictionAnswer", "Retry-After"):
        assert word in page
    described = ask(url, "/openapi.json").json
    assert described["openapi"].startswith("3.")
    assert set(described["paths"]) == {"/predict", "/healthz", "/metrics"}
    assert set(described["paths"]["/predict"]["post"]["responses"]) >= {"200", "408", "413", "415", "422", "503"}
    assert ask(url, "/").headers["location"] == "docs"
    assert ask(url, "/redoc").status == 404


def test_metrics_and_health(url: str, video: Path) -> None:
    ask(url, body=video.read_bytes())
    ask(url, body=b"no video")
    ask(url, "/predict?top=0", body=b"")
    ask(url, "/predict?tpo=3", body=b"")
    text = ask(url, "/metrics").body.decode()
    found = dict(re.findall(r"^(\w+(?:\{.*\})?) ([\d.e+]+)$", text, re.MULTILINE))
    assert float(found['tada_answers_total{reason="ok",status="200"}']) >= 1
    assert float(found['tada_answers_total{reason="not_a_video",status="422"}']) >= 1
    assert float(found['tada_answers_total{reason="option",status="422"}']) >= 2
    assert float(found["tada_batch_clips_count"]) >= 1
    assert found["tada_requests"] == found["tada_processing"] == "0.0"
    assert ask(url, "/healthz").json["status"] == "ok"


# -- the command ------------------------------------------------------------------------------------------------------


def test_mistakes_are_told_in_one_line(
    small_backbone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def said(*arguments: object) -> str:
        assert main(["serve", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of '127.0.0.1' is in use: give another with --port" in said(small_backbone, "--port", port)
    assert "'nowhere' is not there: give the folder of a run" in said("nowhere", "--port", 0)
    assert "--decode-seconds" in said(small_backbone, "--decode-seconds", 0)
    assert "should be from 0 to 65535" in said(small_backbone, "--port", 70_000)
    (tmp_path / "data.json").write_text("{}")
    assert "a localizer whose training has not ended" in said(tmp_path, "--port", 0)
    monkeypatch.setattr("tada.commands.serve.find_spec", lambda name: None if name == "uvicorn" else 1)
    assert said(small_backbone) == "tada: `tada serve` needs uvicorn: pip install 'tada-video[serve]'\n"


def test_a_program_finishes_what_runs_and_connects_to_nobody(small_backbone: Path, video: Path, tmp_path: Path) -> None:
    """SIGTERM comes in the middle of an upload. Meanwhile each socket and each written file is noted."""
    folders = {name: tmp_path / name for name in ("home", "temporary", "watcher")}
    for folder in folders.values():
        folder.mkdir()
    (folders["watcher"] / "sitecustomize.py").write_text(WATCHER)
    log, content = tmp_path / "log", video.read_bytes()
    program = subprocess.Popen(
        [sys.executable, "-m", "tada", "serve", str(small_backbone), "--port", "0", "--device", "cpu"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folders["home"]),
            "TMPDIR": str(folders["temporary"]),
            "PYTHONPATH": os.pathsep.join([str(folders["watcher"]), str(Path(__file__).parents[2] / "src")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "WATCH_LOG": str(log),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        line = program.stdout.readline()
        url = line.split(" answers at ")[1].split("/predict")[0]
        assert ask(url, body=content).status == 200
        playlist = b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:1/a.ts\n"
        assert ask(url, body=playlist).status == 422
        connection = connect(url)
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Length", str(len(content)))
        connection.endheaders()
        connection.send(content[:100])
        while b"\ntada_requests 1.0" not in ask(url, "/metrics").body:
            pass
        program.send_signal(signal.SIGTERM)
        with pytest.raises((ConnectionRefusedError, ConnectionResetError)):  # noqa: PT012  # it closes its door, and then
            while True:
                ask(url, "/healthz")
        connection.send(content[100:])
        reply = reply_of(connection)
        assert (reply.status, reply.json["video"]) == (200, "upload")
        connection.close()
        assert program.wait(WAIT_SECONDS) == 0
        assert program.stderr is not None
        assert program.stderr.read() == ""
    finally:
        program.kill()
        program.communicate()
    noted = log.read_text().splitlines()
    sockets = [line for line in noted if line.startswith("socket")]
    assert [line for line in sockets if not line.startswith("socket socket.bind ('127.0.0.1', ")] == []
    assert len(sockets) == 1
    written = {Path(line.removeprefix("write ")) for line in noted if line.startswith("write")}
    allowed = [folders["temporary"], Path("/dev/null"), Path("/dev/shm")]
    assert [path for path in written if not any(map(path.is_relative_to, allowed))] == []
    assert files_in(folders["temporary"]) == []
