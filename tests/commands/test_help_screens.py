"""Help as people see it: one screen, plain words, every option told; at terminals of several widths."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import sys
import termios
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tada.commands.cli import COMMANDS, _parsers, main
from tada.commands.help_screens import CommandParser
from tada.system.typed_input import typed_name
from terminal import Terminal

PROGRAM, PARSERS = _parsers()
OF_A_PROGRAMMER = re.compile(
    r"<class|NoneType|Union|Optional|Literal|PositiveInt|\[ITEM|type: |required, |Path \||default: |None\b"
)
"""What the parser would say of types."""
SCREEN = 33
"""Lines, as many as the list of commands has; `tada train --help` has fewer."""


def shown(words: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(words.split()) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_short_help_fits_on_a_screen(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = typed_name(command)
    for columns in (80, 120):
        screen = shown(f"{name} --help", columns, monkeypatch, capsys)
        lines = screen.splitlines()
        assert lines[0].startswith(f"usage: tada {name}".strip())
        assert max(map(len, lines)) < columns
        assert len(lines) <= SCREEN, screen
        assert not OF_A_PROGRAMMER.search(screen), screen
        assert not re.search(r"--[\w.-]*_", screen), "options are written with dashes"
        if command:
            assert shown(f"{name} -h", columns, monkeypatch, capsys) == screen


def test_the_help_of_training_is_shorter_yet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = shown("train --help", 80, monkeypatch, capsys)
    assert 24 <= len(screen.splitlines()) <= 30
    for option in ("--out", "--recipe", "--epochs", "--batch-size", "--learning-rate", "--model", "--init", "--resume"):
        assert f"\n  {option} " in screen
    for short in ("also --batch", "also --lr", "also --workers"):
        assert short in " ".join(screen.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_all_of_the_help_names_every_option_once(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = shown(f"{typed_name(command)} --help-all", 80, monkeypatch, capsys)
    listed = re.findall(r"^  (--[\w.-]+)", screen, re.MULTILINE)
    assert len(set(listed)) == len(listed)
    known = {
        action.option_strings[-1 if action.dest == "accelerator" else 0].replace("_", "-")
        for action in PARSERS[command]._actions
        if action.option_strings and not action.dest.endswith(("help", "help_all")) and action.metavar != "CONFIG"
    }
    of_fields = {name.partition(".")[0] for name in listed if "." in name}
    assert known <= {*listed, *of_fields}, known - set(listed)
    assert not OF_A_PROGRAMMER.search(screen), screen
    for action in PARSERS[command]._actions:
        assert action.help, f"{action.dest} is explained"


@pytest.mark.parametrize("command", COMMANDS)
def test_topics_name_options_that_there_are(command: str) -> None:
    parser: CommandParser = PARSERS[command]
    dests = [action.dest for action in parser._actions]
    assert set(parser.first) <= set(dests)
    for patterns in parser.topics.values():
        for pattern in patterns:
            assert any(fnmatchcase(dest, pattern) for dest in dests), pattern


def test_a_topic_by_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    screen = shown("train --help-all augmentation", 80, monkeypatch, capsys)
    assert "\naugmentation:\n" in screen
    assert "--flip-probability" in screen
    assert "--weight-decay" not in screen
    assert "optimization:" in shown("train clips --help-all", 80, monkeypatch, capsys)
    assert main(["train", "--help-all", "optimisation"]) == 2
    assert "the help has no topic 'optimisation'; did you mean 'optimization'?" in capsys.readouterr().err


def test_commands_are_listed_as_they_are_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = shown("--help", 80, monkeypatch, capsys)
    for command in COMMANDS:
        assert f"\n  {typed_name(command)} " in screen
    assert "localize-train" not in screen
    inner = shown("localize --help", 80, monkeypatch, capsys)
    assert re.findall(r"^  tada (localize \w+)", inner, re.MULTILINE) == [
        "localize train",
        "localize evaluate",
        "localize import",
    ]


@pytest.mark.parametrize("columns", [80, 120])
def test_at_a_terminal(columns: int, tmp_path: Path) -> None:
    """As it stands there: as wide as the window, no more."""
    width = {"COLUMNS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    with Terminal([sys.executable, "-m", "tada", "train", "--help"], folder=tmp_path, environment=width) as terminal:
        fcntl.ioctl(terminal._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        assert terminal.end() == 0
    lines = terminal.output.splitlines()
    assert columns - 16 < max(map(len, lines)) < columns
