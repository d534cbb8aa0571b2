"""Nothing that Linux alone has is called without a fallback: checked by taking it away, since only Linux is here.

`make lint-elsewhere` runs mypy as on Windows and on macOS, which finds names that these systems lack; this test finds
modules that they lack, and shows that the fallbacks work together. docs/command-line.md lists what could not be tried.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hang import HANG_SECONDS

OTHERS = """
import av, jsonargparse, lightning.pytorch, matplotlib.pyplot, numpy, safetensors.torch, torch, torchmetrics
import multiprocessing.popen_spawn_posix, multiprocessing.resource_sharer, subprocess, tempfile, unittest.mock
import fastapi, prometheus_client, python_multipart, uvicorn.protocols.http.h11_impl
"""
"""What others wrote knows its system: it is imported before anything is taken away."""

ELSEWHERE = """
import os, select, signal, socket, sys

MODULES = ("curses", "fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
NAMES = {
    os: "O_NOFOLLOW O_NONBLOCK chown fork forkpty getpgid geteuid getuid killpg major memfd_create minor mkfifo nice "
    "openpty preadv pwrite register_at_fork sched_getaffinity setsid statvfs sysconf uname wait4",
    select: "epoll poll",
    signal: "SIGALRM SIGBUS SIGCHLD SIGHUP SIGKILL SIGPIPE SIGQUIT SIGUSR1 SIGUSR2 SIG_BLOCK alarm pause pthread_kill "
    "pthread_sigmask setitimer sigwait",
    socket: "recv_fds send_fds",
}
if "subprocess" in sys.modules:  # its own names the signal, but on Windows
    sys.modules["subprocess"].Popen.kill = lambda process: process.send_signal(9)


class NotHere:
    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


for module, names in NAMES.items():
    for name in names.split():
        delattr(module, name)
for name in MODULES:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, NotHere())
"""

TADA = """
import pkgutil
from importlib import import_module

import tada

sys.platform = "win32"
count = 0
for module in pkgutil.walk_packages(tada.__path__, "tada."):
    if not module.name.startswith("tada.jobs.ray_"):  # Ray asks the system that there really is
        import_module(module.name)
    count += 1
print(count, "modules")

from tada.commands.cli import main

clips, clip = sys.argv[1:]
for command in (["predict", clip], ["prepare", clips, "--out", "fast"], ["doctor"]):
    print(command[0], "ends with", main(command))
"""


def ran(program: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG_SECONDS)


def test_tada_works_where_linux_is_not(motion_videos: Path, tmp_path: Path) -> None:
    done = ran(OTHERS + ELSEWHERE + TADA, str(motion_videos), str(motion_videos / "left/left_000.mp4"), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) > 150
    assert done.stdout.count("ends with 0") == 3, done.stdout + done.stderr


def test_what_was_taken_away_is_missed(tmp_path: Path) -> None:
    """The test of the test."""
    done = ran(ELSEWHERE + "import fcntl", folder=tmp_path)
    assert "No module named 'fcntl'" in done.stderr
    done = ran(ELSEWHERE + "os.fork()", folder=tmp_path)
    assert "has no attribute 'fork'" in done.stderr
