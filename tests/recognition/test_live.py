"""Live recognition: a class is said when it has settled, whatever single looks say; lines as they come; latencies."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tada.commands.cli import main
from tada.errors import NotAVideoError, OptionError, counted
from tada.models import create_model
from tada.models.weights import ModelCard, save_model
from tada.recognition.recognizer import Recognizer
from tada.recognition.streaming import LiveEvent, LiveLook, LiveSettings, Settling, recognize_stream
from tada.video.sampling import ClipSpec
from tada.video.stream import FrameStream
from tada.video.writer import write_video
from terminal import Screen, Terminal

SPEC = ClipSpec(num_frames=4, sampling="segment", short_side=16, crop=16)
IDLE = 0.05
SETTINGS = LiveSettings(window_seconds=0.4, every_seconds=0.5, smooth_seconds=0.5, settle_seconds=1.0)


class Level(nn.Module):
    """Clips [N, 3, T, H, W] -> logits [N, 2]: whether they are brighter than the middle, or darker."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, clips: Tensor) -> Tensor:
        level = self.scale * (clips.mean((1, 2, 3, 4)) - 0.2)
        return torch.stack([level, -level], dim=1)


def recognizer_of(model: nn.Module) -> Recognizer:
    card = ModelCard(model="tada2d_tiny", labels=("bright", "dark"), clip=SPEC, trained_from="thought")
    return Recognizer(model, card, device="cpu")


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark for 4 s, bright for 4 s with a dark moment in it, dark for 4 s; 10 frames a second."""
    levels = np.repeat([20, 230, 20, 230, 20], [40, 15, 3, 22, 40])
    path = tmp_path_factory.mktemp("live") / "day.mkv"
    write_video(path, np.broadcast_to(levels[:, None, None, None].astype(np.uint8), (120, 32, 32, 3)), fps=10)
    return path


# -- when a class has settled ------------------------------------------------------------------------------------------


def events_of(scores: list[list[float]], settings: LiveSettings) -> list[tuple[str, str, float]]:
    """What a recognizer of a and b says, one look in each second."""
    settling = Settling(["a", "b"], settings)
    events: list[LiveEvent] = []
    for i, of_look in enumerate(scores):
        events += settling.add(of_look, float(i))[1]
    return [(*event[:2], event.seconds) for event in (*events, *settling.end(float(len(scores))))]


A, B, NONE = [0.9, 0.1], [0.1, 0.9], [0.4, 0.4]


@pytest.mark.parametrize(
    ("scores", "events"),
    [
        ([A, A, A], [("begins", "a", 0), ("ends", "a", 3)]),
        ([A, A, A, B, A, A], [("begins", "a", 0), ("ends", "a", 6)]),  # one look says nothing
        ([A, B, A, B, A, B], []),
        ([A, A, A, NONE, A, A], [("begins", "a", 0), ("ends", "a", 6)]),
        ([A, A, A, NONE, NONE, NONE, A], [("begins", "a", 0), ("ends", "a", 3)]),
        ([A, A, A, B, B, B], [("begins", "a", 0), ("ends", "a", 3), ("begins", "b", 3), ("ends", "b", 6)]),
        ([NONE] * 5, []),
    ],
)
def test_a_class_settles_when_it_stays_ahead(scores: list[list[float]], events: list[tuple[str, str, float]]) -> None:
    settings = LiveSettings(every_seconds=1.0, smooth_seconds=0.0, settle_seconds=2.0)
    assert events_of(scores, settings) == events


def test_scores_are_means_over_the_looks() -> None:
    settling = Settling(["a", "b"], LiveSettings(every_seconds=1.0, smooth_seconds=3.0, settle_seconds=0.0))
    found = [settling.add([score, 1 - score], float(i))[0][0] for i, score in enumerate([1.0, 0.0, 0.5, 0.0, 0.0])]
    assert found == pytest.approx([1.0, 0.5, 0.5, 0.5 / 3, 0.5 / 3])


def test_an_event_says_how_long_it_took_to_settle() -> None:
    settling = Settling(["a", "b"], LiveSettings(every_seconds=1.0, smooth_seconds=0.0, settle_seconds=2.0))
    found = [settling.add(scores, 10.0 + i)[1] for i, scores in enumerate([A, [0.8, 0.2], [0.7, 0.3], A, B, B, B])]
    assert found[2] == (LiveEvent("begins", "a", 10.0, 0.7, 2.0),)
    assert found[6] == (LiveEvent("ends", "a", 14.0, 0.9, 2.0), LiveEvent("begins", "b", 14.0, 0.9, 2.0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"every_seconds": 0.0}, "every_seconds=0.0 should be a positive number of seconds"),
        ({"window_seconds": float("inf")}, "window_seconds=inf should be a positive number"),
        ({"settle_seconds": -1.0}, r"settle_seconds=-1.0 should be 0 or more"),
        ({"min_score": 1.5}, r"min_score=1.5 should be from 0 to 1"),
    ],
)
def test_settings_in_their_range(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LiveSettings(**wrong)  # type: ignore[arg-type]


# -- a stream ----------------------------------------------------------------------------------------------------------


def test_what_happens_is_said_while_it_comes(day: Path) -> None:
    looks = list(recognize_stream(recognizer_of(Level()), FrameStream(day, idle_seconds=IDLE), SETTINGS))
    assert [look.is_last for look in looks] == [False] * 24 + [True]
    events = [(event.kind, event.label) for look in looks for event in look.events]
    assert events == [("begins", "dark"), ("ends", "dark"), ("begins", "bright"), ("ends", "bright"),
                      ("begins", "dark"), ("ends", "dark")]  # fmt: skip
    times = [event.seconds for look in looks for event in look.events]
    # A look is every half second, and is told with the first frame after what it sees.
    assert times == pytest.approx([0.4, 4.4, 4.4, 8.4, 8.4, 12.0], abs=0.11)
    assert all(look.latency_seconds >= 0 for look in looks)
    assert [look.label for look in looks[4:7]] == ["dark"] * 3
    assert looks[20].top(1)[0][0] == "dark"
    assert looks[20].top(1)[0][1] > 0.99


def test_looks_that_come_too_late_are_left_out(day: Path) -> None:
    class Slow(Level):
        def forward(self, clips: Tensor) -> Tensor:
            time.sleep(0.05)
            return super().forward(clips)

    settings = LiveSettings(window_seconds=0.4, every_seconds=0.2, skip_late=True)
    looks = list(recognize_stream(recognizer_of(Slow()), FrameStream(day, idle_seconds=IDLE), settings))
    skipped = sum(look.num_skipped for look in looks)
    assert skipped > 0
    assert len(looks) - 1 + skipped == 60  # one in each fifth of a second


def test_a_network_of_segments_sees_as_long_as_its_videos_were() -> None:
    card = replace(recognizer_of(Level()).card, typical_seconds=1.5)
    assert LiveSettings().clips(card).window_seconds == 1.5
    assert LiveSettings(window_seconds=2.0).clips(card).window_seconds == 2.0


def test_a_network_of_segments_needs_a_window(day: Path) -> None:
    with pytest.raises(OptionError, match="give --window-seconds, about as long as what it is to see"):
        next(iter(recognize_stream(recognizer_of(Level()), FrameStream(day))))


def test_a_fault_of_the_stream_is_told(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no video")
    with pytest.raises(NotAVideoError, match="is not a video"):
        list(recognize_stream(recognizer_of(Level()), FrameStream(tmp_path / "text", idle_seconds=IDLE), SETTINGS))


def test_leaving_early_lets_go_of_the_stream(day: Path) -> None:
    looks = recognize_stream(recognizer_of(Level()), FrameStream(day, idle_seconds=600), SETTINGS)
    assert isinstance(next(looks), LiveLook)
    before = threading.active_count()
    looks.close()  # type: ignore[attr-defined]  # it is a generator
    assert threading.active_count() < before


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that knows nothing: what it says of anything is enough for --min-score 0."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    options = {"widths": [8, 8, 8, 8], "stem_width": 8}
    card = ModelCard(model="tada2d_tiny", options=options, labels=("a", "b"), clip=SPEC, trained_from="random weights")
    save_model(folder, create_model("tada2d_tiny", num_classes=2, **options), card)
    return folder


WORDS = ["--window-seconds", "1", "--min-score", "0", "--device", "cpu"]


def test_a_stream_is_written_line_by_line(run: Path, day: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(run), "--stream", str(day), *WORDS, "--idle-seconds", str(IDLE)]
    assert main([*words, "--format", "json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    looks = [event for event in events if event["event"] == "look"]
    assert len(looks) == 25
    assert looks[-1]["seen_seconds"] == pytest.approx(12.0)
    assert looks[3]["scores"].keys() == {"a", "b"}
    begun = [event for event in events if event["event"] == "begins"]
    assert begun
    assert begun[0].keys() == {"event", "video", "label", "seconds", "score", "behind_seconds", "latency_seconds"}
    assert (events[-1]["event"], events[-1]["num_events"], events[-1]["num_frames"]) == ("end", len(begun), 120)
    assert events[-1]["num_skipped"] == 0

    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0].split() == ["since", "score", "behind", "latency", "what", "happens"]
    assert re.fullmatch(r" +\d\.\d\d s  begins +0\.\d\d +1\.00 s +\d+\.\d\d s  [ab]", lines[1])
    assert lines[-3] == f"{counted(len(begun), 'thing')} happened in 12.0 s, 120 frames"
    assert re.fullmatch(r"from a frame's arrival to the answer: .*ms \(25 looks\)", lines[-2])

    assert main([*words, "--format", "csv"]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert [row["event"] for row in rows].count("begins") == len(begun)
    assert float(rows[0]["seconds"]) == begun[0]["seconds"]
    assert "120 frames" in captured.err


def test_where_nothing_settled_it_is_said_what_would_let_it(
    run: Path, day: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noted = shutil.copytree(run, tmp_path / "run")
    card = json.loads((noted / "model.json").read_text())
    (noted / "model.json").write_text(json.dumps(card | {"typical_seconds": 1.25}))
    words = ["predict", str(noted), "--stream", str(day), "--device", "cpu", "--idle-seconds", str(IDLE)]
    for more, reason in (
        (["--min-score", "1"], r"the highest score was 0\.\d\d \([ab]\), below 1; --min-score says what counts"),
        (
            ["--min-score", "0", "--settle-seconds", "60"],
            r"[ab] reached 0\.\d\d, but not for 60 s; --settle-seconds says",
        ),
    ):
        assert main([*words, *more, "--format", "csv"]) == 0
        captured = capsys.readouterr()
        assert captured.out.splitlines() == ["video,event,seconds,label,score,behind_seconds,latency_seconds"]
        first, *_, last = captured.err.splitlines()
        assert first == (
            "tada: a look sees 1.25 s, as long as the videos of the training; --window-seconds says otherwise"
        )
        assert re.match(f"tada: no class was said to happen: {reason}", last)


def test_ctrl_c_before_anything_came(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = os.pipe()
    waits = "tada.video.live.LiveBytes._wait_and_read"

    def pressed(*arguments: object) -> bytes:
        signal.raise_signal(signal.SIGINT)
        return b""

    with os.fdopen(theirs) as silent, os.fdopen(ours, "w"):
        monkeypatch.setattr("sys.stdin", silent)
        monkeypatch.setattr(waits, pressed)
        assert main(["predict", str(run), "--stream", "-", *WORDS]) == 130
    assert capsys.readouterr().err == "tada: interrupted\n"


def test_ctrl_c_ends_a_camera_in_order(run: Path, day: Path) -> None:
    """As a pipe that stays open."""
    words = [sys.executable, "-m", "tada.commands.cli", "predict", str(run), "--stream", "-", "--format", "json"]
    words += [*WORDS, "--idle-seconds", "600"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(day.read_bytes())
        process.stdin.flush()
        early = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGINT)
        events = [json.loads(line) for line in [*early, *process.stdout.read().splitlines()]]
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 0
    assert events[-1]["event"] == "end"


def test_lines_go_into_a_file_while_the_terminal_shows_what_is_seen(run: Path, day: Path, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "tada.commands.cli",
        "predict",
        str(run),
        "--stream",
        str(day),
        "--format",
        "jsonl",
        *WORDS,
    ]
    into = tmp_path / "events.jsonl"
    with Terminal([*words, "--idle-seconds", str(IDLE)], folder=tmp_path, columns=80, stdout=into) as terminal:
        assert terminal.end() == 0
    events = [json.loads(line) for line in into.read_text().splitlines()]
    assert (events[-1]["event"], events[-1]["num_frames"]) == ("end", 120)
    assert "waiting for frames" in terminal.output
    screen = Screen(80)
    screen.feed(terminal.output)
    assert screen.text() == ""


def test_options_that_would_do_nothing_are_refused(run: Path, day: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        ([str(day), "--every-seconds", "1"], "--every-seconds is for --stream: leave it away"),
        ([str(day), "--stream", "--clips", "2"], "--clips is for finished videos: leave it away"),
        ([str(day), str(day), "--stream"], "--stream takes one source, not 2: start one command for each"),
        ([str(day), "--stream"], "give --window-seconds, about as long as what it is to see"),
        ([str(day.parent), "--stream", "--window-seconds", "1"], "is a folder; a file, a pipe or a camera is needed"),
    ):
        assert main(["predict", str(run), *words]) == 2
        assert message in capsys.readouterr().err
