"""One process at a time in a folder: who holds it is told, and who died holds nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hang import HANG_SECONDS
from killed import killed_in_a_write
from tada.commands.cli import main
from tada.errors import OutputError
from tada.system import locks
from tada.system.locks import LOCK_FILE, Holder, held_file, held_folder, holds, is_used

HOLD = """
import os, sys, time
from pathlib import Path
from tada.system.locks import held_file, held_folder
held = held_file if "." in Path(sys.argv[1]).name else held_folder
with held(Path(sys.argv[1])):
    if "fork" in sys.argv:
        begun, begins = os.pipe()
        if os.fork() == 0:
            os.write(begins, b".")
            time.sleep(600)
        os.read(begun, 1)
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def other_process(place: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """One that holds a folder or file, until it is killed."""
    command = [sys.executable, "-c", HOLD, str(place), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_folder_is_made_held_and_given_back(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with held_folder(folder):
        assert [path.name for path in folder.iterdir()] == [LOCK_FILE]
        assert not is_used(folder)
        (folder / "result").touch()
        assert is_used(folder)
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_where_no_open_file_can_be_removed_it_is_closed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, which has neither flock."""
    monkeypatch.setattr(locks, "_CLOSES_BEFORE_REMOVING", True)
    monkeypatch.setattr(locks, "fcntl", None)
    unlink = Path.unlink

    def unlink_closed(path: Path, missing_ok: bool = False) -> None:
        if any(locks._is_file_at(descriptor, path) for descriptor in open_ones()):
            raise PermissionError(13, "the file is open")
        unlink(path, missing_ok)

    def open_ones() -> Iterator[int]:
        for descriptor in range(64):
            with suppress(OSError):
                os.fstat(descriptor)
                yield descriptor

    monkeypatch.setattr(Path, "unlink", unlink_closed)
    with held_folder(tmp_path / "run"):
        (tmp_path / "run" / "result").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["result"]


def test_nothing_is_left_where_nothing_was_written(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="before the work"), held_folder(tmp_path / "mine" / "a" / "b"):
        raise ValueError("before the work")
    with pytest.raises(ValueError, match="before the work"), held_file(tmp_path / "mine" / "a" / "x.onnx"):
        raise ValueError("before the work")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


@pytest.mark.parametrize("name", ["run", "model.onnx"])
def test_another_process_is_named_until_it_dies(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    held = held_file if "." in name else held_folder
    with other_process(place) as process:
        message = rf"{name}' is in use by process {process.pid} on .+, since 20.+: wait until it ends, or give another"
        for _ in range(2):
            with pytest.raises(OutputError, match=message), held(place):
                pytest.fail("two processes hold it")
        process.kill()
        process.wait(HANG_SECONDS)
        # What it left is no lock: no process has it open.
        with held(place):
            assert place.exists() == (name == "run")
    assert not list(tmp_path.rglob("*lock*"))


def test_children_that_outlive_a_killed_holder_hold_nothing(tmp_path: Path) -> None:
    """The workers of a data loader live on for some seconds."""
    with other_process(tmp_path / "run", "fork") as process:
        process.kill()
        process.wait(HANG_SECONDS)
        with held_folder(tmp_path / "run"):
            pass


def test_a_process_may_hold_a_folder_once_more(tmp_path: Path) -> None:
    with held_folder(tmp_path / "run"), held_folder(tmp_path / "run" / ".." / "run"):
        assert (tmp_path / "run" / LOCK_FILE).exists()
    assert not (tmp_path / "run").exists()


def test_of_several_processes_of_a_run_the_first_holds_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with other_process(tmp_path / "run"):
        monkeypatch.setenv("RANK", "1")
        with held_folder(tmp_path / "run"):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(OutputError, match="is in use by process"), held_folder(tmp_path / "run"):
            pass


def test_a_function_holds_what_it_is_given(tmp_path: Path) -> None:
    @holds("out")
    def work(name: str, out: Path, *, fails: bool = False) -> list[str]:
        return [name, *(path.name for path in out.iterdir())]

    assert work("a", tmp_path) == ["a", LOCK_FILE]
    assert work(out=tmp_path, name="b") == ["b", LOCK_FILE]
    assert not (tmp_path / LOCK_FILE).exists()


def test_what_killed_processes_left_does_not_count(tmp_path: Path) -> None:
    name = killed_in_a_write(tmp_path / "model.json")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert not is_used(tmp_path)
    assert not is_used(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "message"),
    [("run/log", r"run/log' cannot be written: its folder is not"), ("run", "run' cannot be written: it is not")],
)
def test_a_folder_that_vanishes_meanwhile(name: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def log_into_it() -> None:
        with held_folder(folder):
            shutil.rmtree(folder)
            os.open(tmp_path / name, os.O_RDWR | os.O_CREAT if name != "run" else os.O_RDONLY)

    with pytest.raises(OutputError, match=rf"{message} there any more"):
        log_into_it()
    assert list(tmp_path.iterdir()) == []


# -- where the file system has no locks -------------------------------------------------------------------------------


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_try_lock", lambda descriptor: None)


def write_lock(folder: Path, holder: Holder) -> None:
    folder.mkdir(exist_ok=True)
    (folder / LOCK_FILE).write_text(json.dumps(asdict(holder)))


@pytest.fixture
def sleeping() -> Iterator[Holder]:
    """A process that lives, as a holder."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield replace(Holder.this_process(), pid=process.pid, started=locks._read_start_time(process.pid))
        process.kill()


@pytest.mark.usefixtures("without_locks")
def test_a_process_that_lives_is_believed(tmp_path: Path, sleeping: Holder) -> None:
    write_lock(tmp_path / "run", sleeping)
    message = rf"in use by process {sleeping.pid} on .*; if that process is gone, remove '.*run/{LOCK_FILE}'"
    with pytest.raises(OutputError, match=message), held_folder(tmp_path / "run"):
        pass
    assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == sleeping.pid


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize("kind", ["dead", "number used again", "no process's", "cut off", "empty", "of another form"])
def test_a_lock_of_nobody_is_taken(kind: str, tmp_path: Path, sleeping: Holder) -> None:
    write_lock(tmp_path / "run", sleeping)
    file = tmp_path / "run" / LOCK_FILE
    if kind == "dead":
        os.kill(sleeping.pid, signal.SIGKILL)
        while locks.is_alive(sleeping.pid) and Path(f"/proc/{sleeping.pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)
        os.waitpid(sleeping.pid, 0)
    elif kind == "number used again":
        write_lock(tmp_path / "run", replace(sleeping, started="1"))
    elif kind == "no process's":
        write_lock(tmp_path / "run", replace(sleeping, pid=2**40))
    elif kind == "cut off":
        file.write_text(file.read_text()[:-5])
    elif kind == "empty":
        file.write_text("")
    else:
        file.write_text('{"pid": "x"}')
    with held_folder(tmp_path / "run"):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run" / LOCK_FILE).exists()


@pytest.mark.usefixtures("without_locks")
def test_of_another_machine_the_way_out_is_told(tmp_path: Path, sleeping: Holder) -> None:
    write_lock(tmp_path / "run", replace(sleeping, host="elsewhere"))
    with (
        pytest.raises(OutputError, match=r"on elsewhere, .*if that process is gone, remove"),
        held_folder(tmp_path / "run"),
    ):
        pass


# -- commands ---------------------------------------------------------------------------------------------------------


def test_a_command_says_who_holds_its_folder(
    tmp_path: Path, motion_videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with other_process(Path("report").absolute()) as process:
        assert main(["check", str(motion_videos), "--out", "report"]) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"tada: 'report' is in use by process {process.pid} on ")
        assert told.count("\n") == 1
    assert main(["check", str(motion_videos), "--out", "report", "--num-workers", "1"]) == 0
