"""What a program costs: the most memory it and each of its workers held, measured in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# Every interpreter imports it, workers too. VmHWM is the peak of this program alone; what getrusage tells would
# include that of the process which started it.
_LIBRARIES = "import av, lightning, matplotlib.figure, numpy, torch, torchmetrics, yaml; torch.set_num_threads(1)"
_WATCHER = """
import atexit, os

def note():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            log = os.open(os.environ["PEAK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(log, line.split()[1].encode() + b"\\n")

atexit.register(note)
__builtins__["note"] = note
"""
HANG_SECONDS = 600
"""A guard against hanging, not a measure of speed."""


class Measured(NamedTuple):
    """What became of a program."""

    code: int
    """Its exit code."""
    out: str
    error: str
    peak_bytes: int
    """Of the largest of its processes, without what the libraries take by themselves: that depends on their build."""


def run_measured(program: str, *arguments: str | Path, folder: Path) -> Measured:
    """Run Python code in ``folder``, and measure it. Processes that are killed do not count."""
    watcher, log = folder / ".watcher", folder / ".peaks"
    watcher.mkdir(exist_ok=True)
    (watcher / "sitecustomize.py").write_text(_WATCHER)
    log.unlink(missing_ok=True)
    source = Path(__file__).parent.parent / "src"
    done = subprocess.run(
        [sys.executable, "-c", f"{_LIBRARIES}\nnote()\n{program}", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(watcher), str(source)]), "PEAK_LOG": str(log)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    first, *peaks = (1024 * int(line) for line in log.read_text().split())
    return Measured(done.returncode, done.stdout, done.stderr, max(peaks) - first)
