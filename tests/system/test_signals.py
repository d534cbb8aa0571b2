"""Ctrl-C, SIGTERM and a closed terminal, as a person meets them: at a terminal, in a working directory, by name."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hang import HANG_SECONDS
from tada.recognition.recipe import Recipe
from tada.recognition.training import train
from tada.training.recipe import recipe_yaml
from terminal import HIDE_CURSOR, SHOW_CURSOR, Terminal, wait_until_gone

# A call into C that no signal ends, and that other threads run beside: as a step of a large network on a CPU is.
BUSY = "__import__('hashlib').pbkdf2_hmac('sha256', b'', b'', 2_000_000_000)"


def script(body: str) -> list[str]:
    return [sys.executable, "-c", "from tada.system.signals import *\n" + body]


# --- the mechanism, without anything heavy ---------------------------------------------------------------------------

BOUNDED = f"""
import threading
with watching(), last_chance(lambda: print("last chance")):
    threading.Timer(0.5, lambda: print("begun", flush=True)).start()
    {BUSY}
"""


def test_work_that_hears_nothing_is_ended_after_its_last_chance(tmp_path: Path) -> None:
    with Terminal(script(BOUNDED), folder=tmp_path) as terminal:
        terminal.wait_for("begun")
        terminal.press_ctrl_c()
        assert terminal.end() == 130
    assert re.search(r"last chance\s.*tada: interrupted\s*$", terminal.output, re.DOTALL)
    assert "Traceback" not in terminal.output


PATIENT = """
import math
with watching(), deferring(at_once=lambda: print("noted", flush=True), seconds=math.inf):
    print("begun", flush=True)
    import time
    while True:
        time.sleep(0.1)
"""


def test_a_second_ctrl_c_ends_at_once_what_takes_its_time(tmp_path: Path) -> None:
    with Terminal(script(PATIENT), folder=tmp_path) as terminal:
        terminal.wait_for("begun")
        terminal.press_ctrl_c()
        terminal.wait_for("noted")
        while terminal.processes():  # one press more than once: the first may still be under way
            terminal.press_ctrl_c()
            terminal.read(0.2)
        assert terminal.end() == 130
    assert terminal.output.count("tada: interrupted") == 1


RAISED = """
import time
with watching():
    try:
        print("begun", flush=True)
        time.sleep(1000)
    except BaseException as error:
        print(type(error).__name__, told())
        code = say_last_words()
end(code)
"""


@pytest.mark.parametrize(
    ("number", "raised", "code", "said"),
    [
        (signal.SIGINT, "KeyboardInterrupt 2", 130, "tada: interrupted"),
        (signal.SIGTERM, "SystemExit 15", 143, "tada: told to end"),
        (signal.SIGHUP, None, 129, None),
    ],
)
def test_each_signal_has_its_exit_code(
    number: signal.Signals, raised: str | None, code: int, said: str | None, tmp_path: Path
) -> None:
    with Terminal(script(RAISED), folder=tmp_path) as terminal:
        terminal.wait_for("begun")
        os.kill(terminal.pid, number)
        assert terminal.end() == code
    for text in (raised, said):
        assert text is None or text in terminal.output


def test_a_process_that_was_started_to_ignore_a_signal_does(tmp_path: Path) -> None:
    """As nohup and shells do for what runs in the background."""
    body = "with watching():\n    import os\n    os.kill(os.getpid(), signal.SIGHUP)\nprint('done')"
    ignored = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    command = script(body)
    done = subprocess.run(
        [*command[:2], ignored + command[2]], capture_output=True, text=True, check=True, timeout=HANG_SECONDS
    )
    assert done.stdout == "done\n"


LEAVING = """
import atexit, time
with watching():
    pass
atexit.register(lambda: (print("leaving", flush=True), time.sleep(1000)))
end(0)
"""


def test_ctrl_c_when_all_is_done_ends_what_is_left_at_once(tmp_path: Path) -> None:
    with Terminal(script(LEAVING), folder=tmp_path) as terminal:
        terminal.wait_for("leaving")
        terminal.press_ctrl_c()
        assert terminal.end() == -signal.SIGINT  # which shells call 130
    assert "Traceback" not in terminal.output


FORKING = """
import multiprocessing, os, time
def child():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
with watching():
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    time.sleep(0.2)
    print(process.exitcode, told())
"""


def test_a_childs_signal_is_not_the_parents() -> None:
    done = subprocess.run(script(FORKING), capture_output=True, text=True, check=True, timeout=HANG_SECONDS)
    assert done.stdout == "0 None\n"


# --- training ---------------------------------------------------------------------------------------------------------

TRAINING = f"""
import sys, time
import numpy as np
import torch
import tada.recognition.training_step as recognition_task
import tada.training.checkpoints as saved_states
from tada.commands.cli import main
from tada.data.clips import TrainingClips
from tada.system.signals import end

def now():
    print("NOW", flush=True)

def instead(owner, name, replacement):
    own = getattr(owner, name)
    setattr(owner, name, lambda *arguments, **options: replacement(own, *arguments, **options))

def in_fifth_step(step, task, *arguments):
    loss = step(task, *arguments)  # running statistics have changed
    if task.global_step == 4:
        now()
        {BUSY}
    return loss

def in_fifth_batch(clip, clips, key):
    if key == (1, np.random.default_rng((0, 1)).permutation(12)[4]):
        now()
        time.sleep(1000)
    return clip(clips, key)

def in_second_epoch(read, video, opened=[], **options):
    opened.append(video)
    if len(opened) == 10:  # of one worker, which reads eight in an epoch
        now()
        time.sleep(1000)
    return read(video, **options)

def in_second_validation(step, task, *arguments):
    if task.current_epoch == 1:
        now()
        time.sleep(1000)
    return step(task, *arguments)

def in_second_saving(save, state, file):
    if state["global_step"] == 4:
        now()
        time.sleep(0.5)
    save(state, file)

def at_page(write, *arguments, **options):
    now()
    time.sleep(1000)

def at_start(start, task, *arguments):
    now()
    time.sleep(1000)

moment, saved_states._SLOW_SECONDS = sys.argv[1], 0.0
if moment == "step":
    instead(recognition_task.RecognitionTask, "training_step", in_fifth_step)
if moment == "waiting":
    instead(TrainingClips, "__getitem__", in_fifth_batch)
if moment == "reading":
    import tada.data.clips as clips
    instead(clips, "open_footage", in_second_epoch)
if moment == "validation":
    instead(recognition_task.RecognitionTask, "validation_step", in_second_validation)
if moment == "saving":
    instead(torch, "save", in_second_saving)
if moment == "page":
    import tada.recognition.run_outputs as run_outputs
    instead(run_outputs, "write_run_page", at_page)
if moment == "start":
    instead(recognition_task.RecognitionTask, "configure_optimizers", at_start)
end(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def straight(small_recipe: Recipe, motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run that was never interrupted."""
    out = tmp_path_factory.mktemp("straight") / "run"
    train(small_recipe, motion_videos, out, num_workers=0, show_progress=False, say=str)
    return (out / "model.safetensors").read_bytes()


@pytest.fixture
def at_home(
    small_recipe: Recipe, motion_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Terminal]:
    """A working directory with videos and a recipe; what trains there at a terminal, and stops at a moment."""
    shutil.copytree(motion_videos, tmp_path / "videos")
    (tmp_path / "small.yaml").write_text(recipe_yaml(small_recipe))
    monkeypatch.chdir(tmp_path)

    def terminal(moment: str, *options: str) -> Terminal:
        command = ["train", "videos", "--recipe", "small.yaml", "--out", "run", *options]
        return Terminal([sys.executable, "-c", TRAINING, moment, *command], folder=tmp_path)

    return terminal


def segments_in_shared_memory() -> set[str]:
    folder = Path("/dev/shm")
    return {file.name for file in folder.iterdir() if file.name.startswith("torch_")} if folder.is_dir() else set()


@pytest.mark.parametrize(
    ("moment", "num_workers", "steps"),
    [
        ("step", "2", {4}),
        pytest.param("step", "0", {4}, marks=pytest.mark.slow),
        ("waiting", "2", {3, 4}),
        pytest.param("waiting", "0", {4}, marks=pytest.mark.slow),
        pytest.param("validation", "2", {6}, marks=pytest.mark.slow),
        pytest.param("saving", "0", {4}, marks=pytest.mark.slow),
        ("page", "0", {6}),
    ],
)
def test_ctrl_c_in_training_saves_the_state_and_says_how_to_go_on(
    moment: str,
    num_workers: str,
    steps: set[int],
    small_recipe: Recipe,
    straight: bytes,
    at_home: Callable[..., Terminal],
) -> None:
    before = segments_in_shared_memory()
    every = ["--save-every-steps", "4"] if moment == "saving" else []
    with at_home(moment, "--num-workers", num_workers, *every) as terminal:
        terminal.wait_for("NOW")
        terminal.press_ctrl_c()
        assert terminal.end() == 130
        wait_until_gone(terminal.pid)
    said = terminal.output
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert said.rfind(SHOW_CURSOR) >= said.rfind(HIDE_CURSOR)
    command = f"tada train videos --resume run --num-workers {num_workers}{''.join(f' {word}' for word in every)}"
    found = re.search(r"tada: interrupted; the state after step (\d+) is saved; go on with: (.*?)\r?\n$", said)
    assert found, said
    assert found[2] == command
    assert int(found[1]) == torch.load("run/resume/last.ckpt", weights_only=True)["global_step"]
    assert int(found[1]) in steps
    assert segments_in_shared_memory() == before
    assert not list(Path("run").rglob("*.part"))
    lines: list[str] = []
    train(small_recipe, Path("videos"), Path("run"), resume=True, num_workers=0, show_progress=False, say=lines.append)
    assert Path("run/model.safetensors").read_bytes() == straight
    # What was being validated is validated now, and what was told already is not told again.
    told = any(line.startswith("epoch 2/2") and "val_top1" in line for line in lines)
    assert told == (moment != "page")
    assert Path("run/report.html").exists()


def test_ctrl_c_before_training_has_begun_leaves_nothing(at_home: Callable[..., Terminal]) -> None:
    with at_home("start", "--num-workers", "2") as terminal:
        terminal.wait_for("NOW")
        terminal.press_ctrl_c()
        assert terminal.end() == 130
    assert re.search(r"tada: interrupted; nothing was learned yet: the same command begins anew\r?\n$", terminal.output)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_to_the_process_alone_is_as_good(
    number: signal.Signals, code: int, small_recipe: Recipe, straight: bytes, at_home: Callable[..., Terminal]
) -> None:
    with at_home("validation", "--num-workers", "2") as terminal:
        terminal.wait_for("NOW")
        os.kill(terminal.pid, number)
        assert terminal.end() == code
        wait_until_gone(terminal.pid)
    assert "the state after step 6 is saved; go on with: tada train videos --resume run" in terminal.output
    train(small_recipe, Path("videos"), Path("run"), resume=True, num_workers=0, show_progress=False, say=str)
    assert Path("run/model.safetensors").read_bytes() == straight


def test_a_terminal_that_is_closed_does_not_keep_the_state_from_being_saved(
    small_recipe: Recipe, straight: bytes, at_home: Callable[..., Terminal]
) -> None:
    with at_home("step", "--num-workers", "2") as terminal:
        terminal.wait_for("NOW")
        terminal.close()
        assert terminal.end() == 129
        wait_until_gone(terminal.pid)
    assert torch.load("run/resume/last.ckpt", weights_only=True)["global_step"] == 4
    train(small_recipe, Path("videos"), Path("run"), resume=True, num_workers=0, show_progress=False, say=str)
    assert Path("run/model.safetensors").read_bytes() == straight


def test_ctrl_c_while_things_are_loaded(at_home: Callable[..., Terminal], tmp_path: Path) -> None:
    """Python tells of each module that it has loaded: in the midst of PyTorch's."""
    command = [sys.executable, "-X", "importtime", "-m", "tada", "train", "videos", "--out", "run"]
    with Terminal(command, folder=tmp_path) as terminal:
        terminal.wait_for("torch._utils")
        terminal.press_ctrl_c()
        assert terminal.end() == 130
    assert "tada: interrupted; nothing was learned yet: the same command begins anew" in terminal.output
    assert "Traceback" not in terminal.output
    assert not Path("run").exists()


def test_a_worker_that_is_killed_ends_the_run_with_a_line(
    small_recipe: Recipe, straight: bytes, at_home: Callable[..., Terminal]
) -> None:
    with at_home("reading", "--num-workers", "2") as terminal:
        terminal.wait_for("NOW")
        for pid in terminal.processes():
            if pid != terminal.pid:
                os.kill(pid, signal.SIGKILL)
        assert terminal.end() == 2
        wait_until_gone(terminal.pid)
    assert "Traceback" not in terminal.output
    last = terminal.output.splitlines()[-1]
    assert re.search(
        r"tada: a process that reads videos has died \(signal SIGKILL; was memory short\?\) while it read '.*\.mp4'.*; "
        r"use fewer --num-workers, which need less memory; the state after step \d is saved; go on with: tada train",
        last,
    )
    train(small_recipe, Path("videos"), Path("run"), resume=True, num_workers=0, show_progress=False, say=str)
    assert Path("run/model.safetensors").read_bytes() == straight


def test_workers_end_when_the_process_is_killed(at_home: Callable[..., Terminal]) -> None:
    """One is in the middle of a clip, which would take a long time."""
    with at_home("waiting", "--num-workers", "2") as terminal:
        terminal.wait_for("NOW")
        assert len(terminal.processes()) > 2
        os.kill(terminal.pid, signal.SIGKILL)
        assert terminal.end() == -signal.SIGKILL
        wait_until_gone(terminal.pid)
