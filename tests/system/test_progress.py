"""How far work is: what is said of it, lines that fit, a terminal that is clean afterwards, plain lines in a file."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from torch import nn

from tada.system import progress
from tada.system.progress import Work, duration_text, progress_line, rate_text, track
from tada.system.terminal import cut_middle, fitted_lines
from tada.training.step_clock import StepClock
from tada.training.trainer import EpochLines, RunProgress
from terminal import Screen, Terminal


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (26, "26 s"),
        (59.7, "1 min 00 s"),
        (260, "4 min 20 s"),
        (2400, "40 min"),
        (7500, "2 h 05 min"),
        (100_000, "1 d 3 h"),
    ],
)
def test_durations_are_said_as_people_do(seconds: float, words: str) -> None:
    assert duration_text(seconds) == words


@pytest.mark.parametrize(
    ("rate", "words"), [(0.05, "3.0 videos/min"), (3.44, "3.4 videos/s"), (1234.5, "1234 videos/s")]
)
def test_rates_are_of_seconds_or_minutes(rate: float, words: str) -> None:
    assert rate_text(rate, "videos") == words


@pytest.mark.parametrize("text", ["videos/left/left_000.mp4", "動画/走る/とても長い名前.mp4", "ab"])
@pytest.mark.parametrize("width", [1, 4, 5, 9, 10, 20, 80])
def test_a_long_name_keeps_its_ends(text: str, width: int) -> None:
    cut = cut_middle(text, width)
    assert cell_len(cut) <= width
    if cell_len(text) <= width:
        assert cut == text
    elif width > 5:
        begin, end = cut.split("...")
        assert begin
        assert text.startswith(begin)
        assert text.endswith(end)


def test_items_take_as_few_lines_as_they_can() -> None:
    items = ["left 0.98", "right 0.01", "up 0.00", "a class with a long name 0.00"]
    assert fitted_lines(items, 80) == ["  ".join(items)]
    assert fitted_lines(items, 30) == ["left 0.98  right 0.01  up 0.00", items[-1]]
    assert fitted_lines(items, 20) == ["left 0.98", "right 0.01  up 0.00", "a class w...ame 0.00"]
    assert fitted_lines([], 20) == []


@pytest.mark.parametrize("width", range(10, 130))
def test_a_line_fits_at_every_width(width: int) -> None:
    numbers = ["340 of 1350 steps", "1 min 20 s left", "3.4 steps/s"]
    line = progress_line("extracting a_video_with_a_name.mp4", numbers, 0.25, width)
    assert cell_len(line) <= width
    assert ("extracting a_video_with_a_name.mp4" in line) == (width >= 34 + 2 + len("  ".join(numbers)))
    bar = line.count("━") + line.count("─")
    assert bar == 0 or (5 <= bar <= 40 and line.count("━") == bar // 4)
    assert (numbers[0] in line) == (width >= 28)


def test_a_line_at_80_and_at_120_columns() -> None:
    numbers = ["340 of 1350 steps", "1 min 20 s left"]
    assert progress_line("epoch 12/45", numbers, 0.25, 79) == (
        "epoch 12/45  ━━━━━━━───────────────────────  340 of 1350 steps  1 min 20 s left"
    )
    assert progress_line("epoch 12/45", numbers, 0.25, 119) == (
        f"epoch 12/45  {'━' * 10}{'─' * 30}  340 of 1350 steps  1 min 20 s left"
    )


def test_what_is_left_goes_by_what_came_after_the_first(clock: Clock) -> None:
    """The first waits for processes to start."""
    work = Work("looking", 11, noun="files", is_shown=False)
    assert work.numbers() == ["0 of 11 files"]
    clock.seconds += 100
    work.advance()
    assert work.numbers() == ["1 of 11 files"]
    clock.seconds += 4
    work.advance(2)
    assert work.numbers() == ["3 of 11 files", "16 s left", "0.5 files/s"]
    clock.seconds += 6
    assert work.numbers() == ["3 of 11 files", "14 s left", "0.5 files/s"], "the next file takes longer, not the others"
    work.advance(7.9)
    assert work.numbers()[1] == "1 s left", "not none, while there is something to do"
    work.advance_to(11)
    assert work.numbers() == ["11 of 11 files", "1.0 files/s"]
    assert Work("writing", 1.0).numbers() == ["0 %"]
    assert Work("waiting for frames").lines(79) == ["waiting for frames"]


def test_a_run_that_goes_on_says_where_it_is_and_no_line_twice() -> None:
    trainer: Any = SimpleNamespace(
        current_epoch=1, max_epochs=4, global_step=7, estimated_stepping_batches=20, callback_metrics={"val_top1": 1.0}
    )
    shown = RunProgress(StepClock(), noun="clips", is_shown=False)
    shown.on_train_start(trainer, nn.Identity())  # type: ignore[arg-type]
    assert shown.work.lines(79)[:2] == [
        "epoch 2/4  ━━━━━━━━━━━━━━──────────────────────────  7 of 20 steps",
        *shown.work.details,
    ]
    shown._losses, shown._is_first = (4.0, 4), False
    shown._tell()
    assert shown.work.details == ["train_loss 1.0000"]
    trainer.current_epoch = 2
    shown.on_train_epoch_start(trainer, nn.Identity())  # type: ignore[arg-type]
    assert (shown.work.words, shown.work.details) == ("epoch 3/4", []), "the loss is of the epoch that is named"

    said: list[str] = []
    for told in ((2,), ()):
        lines = EpochLines(said.append, told=told)
        lines.on_validation_end(trainer, nn.Identity())  # type: ignore[arg-type]  # that an interruption put off
        assert lines.metrics == {"val_top1": 1.0}
    assert [line.split("  (")[0] for line in said] == ["epoch 2/4  val_top1 1.0000"]


# -- a file or a pipe --------------------------------------------------------------------------------------------------


def test_a_file_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in track(range(1000), "looking", noun="files"):
        clock.seconds += 10
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    assert "\r" not in err
    lines = err.splitlines()
    assert lines[:2] == [
        "looking: 3 of 1000 files, 2 h 46 min left, 6.0 files/min",
        "looking: 6 of 1000 files, 2 h 45 min left, 6.0 files/min",
    ]
    assert 20 < len(lines) < 60


def test_a_file_gets_no_line_of_short_work_nor_of_hidden(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(10), "looking", noun="files")) == list(range(10))
    for _ in track(range(1000), "looking", noun="files", is_shown=False):
        clock.seconds += 10
    assert capsys.readouterr() == ("", "")


# -- a terminal --------------------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys, time
from tada.system.progress import Work, track
print("before")
with Work("testing", 40, noun="videos") as work:
    for number in range(40):
        work.advance()
        work.details = ["train_loss 0.1234", "val_top1 0.9000 after epoch 3", "8 % data, 92 % compute"]
        if number == 5:
            time.sleep(0.5)
            print("READY", flush=True)
            time.sleep(0.3)
            EXTRA
    print("to an error stream", file=sys.stderr)
    print("half a line", end="")
print("after")
"""
END = ["before", "READY", "to an error stream", "half a lineafter"]


def at_terminal(
    folder: Path, extra: str = "", *, columns: int = 80, stdout: Path | None = None, **environment: str
) -> Terminal:
    program = PROGRAM.replace("EXTRA", extra)
    return Terminal(
        [sys.executable, "-c", program], folder=folder, columns=columns, stdout=stdout, environment=environment
    )


def screen_of(output: str, columns: int = 80) -> list[str]:
    screen = Screen(columns)
    screen.feed(output)
    return screen.text().splitlines()


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_terminal_shows_it_below_what_is_printed_and_is_clean_in_the_end(columns: int, tmp_path: Path) -> None:
    with at_terminal(tmp_path, columns=columns) as terminal:
        terminal.wait_for("READY")
        assert terminal.end() == 0
    drawn = terminal.output[: terminal.output.rindex("\r\x1b[J", 0, terminal.output.index("READY"))]
    before, first, *details = screen_of(drawn, columns)
    assert before == "before"
    assert first.startswith("testing  ")
    assert "6 of 40 videos" in first
    assert "  ".join(details) == "train_loss 0.1234  val_top1 0.9000 after epoch 3  8 % data, 92 % compute"
    assert len(details) == (3 if columns == 40 else 1)
    assert all(len(row) < columns for row in (first, *details))
    assert screen_of(terminal.output, columns) == END


@pytest.mark.parametrize("wraps_anew", [True, False])
@pytest.mark.parametrize("columns", [50, 120])
def test_another_width_leaves_nothing_behind(columns: int, wraps_anew: bool, tmp_path: Path) -> None:
    with at_terminal(tmp_path, "time.sleep(1.0)") as terminal:
        terminal.wait_for("READY")
        while not terminal.output.endswith("\x1b[1A"):  # it is drawn
            assert terminal.read(1.0)
        seen = len(terminal.output)
        terminal.resize(columns)
        assert terminal.end() == 0
    screen = Screen(80)
    screen.feed(terminal.output[:seen])
    screen.resize(columns, wraps_anew=wraps_anew)
    screen.feed(terminal.output[seen:])
    assert screen.text().splitlines() == END


def test_what_is_printed_into_a_file_goes_there(tmp_path: Path) -> None:
    with at_terminal(tmp_path, stdout=tmp_path / "out.txt") as terminal:
        assert terminal.end() == 0
    assert (tmp_path / "out.txt").read_text().splitlines() == ["before", "READY", "half a lineafter"]
    assert "6 of 40 videos" in terminal.output
    assert screen_of(terminal.output) == ["to an error stream"]


def test_what_has_no_end_of_line_is_seen_when_it_is_flushed(tmp_path: Path) -> None:
    with at_terminal(tmp_path, 'print("(Pdb) ", end="", flush=True)') as terminal:
        terminal.wait_for("(Pdb) ")
        assert terminal.end() == 0
    assert screen_of(terminal.output) == [*END[:2], "(Pdb)", *END[2:]]


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    with at_terminal(tmp_path, "time.sleep(1000)") as terminal:
        terminal.wait_for("READY")
        terminal.press_ctrl_c()
        terminal.end()
    before, ready, *traceback = screen_of(terminal.output)
    assert (before, ready) == ("before", "READY")
    assert traceback[0].startswith("Traceback")
    assert traceback[-1] == "KeyboardInterrupt"
    assert "of 40 videos" not in "".join(traceback)


def test_colors_are_left_away_where_they_are_not_wanted(tmp_path: Path) -> None:
    for environment, has_colors in (({}, True), ({"NO_COLOR": "1"}, False)):
        with at_terminal(tmp_path, **environment) as terminal:
            assert terminal.end() == 0
        assert ("\x1b[32m" in terminal.output) == has_colors
        assert ("m━" in terminal.output) == has_colors
        assert "━" in terminal.output


def test_a_terminal_that_cannot_erase_gets_plain_text(tmp_path: Path) -> None:
    with at_terminal(tmp_path, TERM="dumb", FORCE_COLOR="1") as terminal:
        assert terminal.end() == 0
    assert terminal.output.splitlines() == END


def test_a_terminal_without_unicode(tmp_path: Path) -> None:
    with at_terminal(tmp_path, PYTHONIOENCODING="ascii") as terminal:
        assert terminal.end() == 0
    assert re.search(r"testing  #+-+  \d+ of 40 videos", terminal.output)
    assert screen_of(terminal.output) == END


FORKS = """
            from tada.system.progress import _screen
            for _ in range(200):
                _screen._drawn = None  # drawn again, so that the other thread is often in the middle of it
                if (child := os.fork()) == 0:
                    signal.alarm(60)  # ends it, whatever it waits for
                    print("from a child")
                    _screen.lock.acquire()
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
"""


def test_a_process_that_is_forked_meanwhile_can_print(tmp_path: Path) -> None:
    """It has no thread that would give back what was held when it was forked."""
    program = PROGRAM.replace("            EXTRA\n", FORKS).replace(
        "import os", "import signal, tada.system.progress, os", 1
    )
    program = program.replace('print("before")', 'tada.system.progress._REDRAWN_SECONDS = 0.0005\nprint("before")')
    with Terminal([sys.executable, "-c", program], folder=tmp_path, columns=80) as terminal:
        assert terminal.end() == 0
    assert screen_of(terminal.output) == [*END[:2], *["from a child"] * 200, *END[2:]]


def test_works_within_each_other_are_drawn_below_each_other(tmp_path: Path) -> None:
    inner = 'with Work("inner", 1.0): time.sleep(0.5); print("HERE", flush=True)'
    with at_terminal(tmp_path, inner) as terminal:
        terminal.wait_for("HERE")
        assert terminal.end() == 0
    drawn = terminal.output[: terminal.output.rindex("\r\x1b[J", 0, terminal.output.index("HERE"))]
    rows = screen_of(drawn)
    assert rows[2].startswith("testing")
    assert rows[-1].startswith("inner")
    assert rows[-1].endswith("0 %")
    assert screen_of(terminal.output) == [*END[:2], "HERE", *END[2:]]
