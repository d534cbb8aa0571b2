"""What the speed benchmarks share: times taken in turns, ratios, memory, and what the machine can do.

Rows of a benchmark run in rounds: in each round every row runs once, in an order drawn anew, so that whatever disturbs
the machine for a while disturbs all alike. Ratios are taken within each round; medians and quartiles over the rounds
are printed. Memory is measured in a process of its own for each row.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tada.errors import OptionError
from tada.system.files import write_whole

Run = Callable[[], object]
Item = TypeVar("Item")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

_NOTES = Console(stderr=True)
_COPIED_BYTES = 2**29
_MATRIX_SIDES = {"cpu": 2048, "cuda": 8192}


# --- the command line -------------------------------------------------------------------------------------------------


def parser_of(text: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """A parser with the arguments that all speed benchmarks have; ``text`` is the script's docstring."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each row is timed")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="of torch; by default one for each core")
    parser.add_argument("--json", type=Path, help="where to write the numbers; by default runs/NAME.json")
    return parser


def device_of(arguments: argparse.Namespace) -> torch.device:
    """The device to measure on, with threads and random numbers set for it."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if device.type not in _MATRIX_SIDES:
        raise OptionError(f"--device {arguments.device} should be cpu or cuda")
    torch.manual_seed(0)
    return device


def choose(rows: Mapping[str, Item], patterns: Iterable[str]) -> dict[str, Item]:
    """The rows whose names fit one of the patterns.

    Raises:
        OptionError: none does.
    """
    chosen = {name: row for name, row in rows.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not chosen:
        raise OptionError(f"--rows {' '.join(patterns)} fits none of: {', '.join(rows)}")
    return chosen


# --- times ------------------------------------------------------------------------------------------------------------


def interleaved(
    runs: Mapping[str, Run],
    *,
    rounds: int,
    device: torch.device,
    least_seconds: float = 0.0,
    most_seconds: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds of one call of each run, in every round.

    Each is called twice before (compilers and caches are warm then).

    Args:
        least_seconds: what is faster is called several times for one number, for at least so long.
        most_seconds: fewer rounds, but at least three, if all would take longer.
    """
    calls = {}
    of_a_round = 0.0
    for name, run in runs.items():
        _NOTES.print(f"warming up {name}", style="dim", highlight=False)
        _seconds(run, 1, device)
        of_a_call = max(_seconds(run, 1, device), 1e-9)
        calls[name] = max(1, math.ceil(least_seconds / of_a_call))
        of_a_round += calls[name] * of_a_call
    if most_seconds < math.inf:
        rounds = min(rounds, max(3, int(most_seconds / max(of_a_round, 1e-9))))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order, dice = list(runs), random.Random(0)
    for _ in track(range(rounds), "rounds", console=_NOTES, transient=True):
        dice.shuffle(order)
        for name in order:
            seconds[name].append(_seconds(runs[name], calls[name], device))
    return seconds


def _seconds(run: Run, calls: int, device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return (time.perf_counter() - started) / calls


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work (synchronize)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Measurements of several rounds."""

    low: float
    """The first quartile."""
    median: float
    high: float
    """The third quartile."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and quartiles."""
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        return cls(low=low, median=median, high=high)

    @classmethod
    def of_ratio(cls, above: Sequence[float], below: Sequence[float]) -> Spread:
        """Median and quartiles of the ratios within each round."""
        return cls.of([a / b for a, b in zip(above, below, strict=True)])

    def text(self, digits: int = 2) -> str:
        """For a table."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_bytes(build: Callable[[], Run], device: torch.device) -> int:
    """The most memory held at once while a run is repeated, its weights included, beside what Python and torch hold.

    Of a CPU's process: resident memory above that before ``build``. Call it in a fresh process (``peak_of_row``): what
    an earlier run has left would count as free. What only building and compiling need is left out, where the system
    can forget it (Linux).
    """
    gc.collect()
    _forget_peak()
    before = _peak_resident_bytes()
    run = build()
    run()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _forget_peak()
    run()
    run()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _peak_resident_bytes() - before


def _forget_peak() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5): the peak becomes what is held now


def _peak_resident_bytes() -> int:
    if sys.platform == "linux":
        # Not getrusage, whose peak a process inherits from the one that has started it.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def peak_of_row(script: str, argv: Sequence[str], name: str) -> int:
    """``peak_bytes`` of a row of a script, which prints it when called with its arguments and ``--memory-of NAME``."""
    command = [sys.executable, script, *argv, "--memory-of", name]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(output.split()[-1])


def peaks_of_rows(script: str, argv: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """``peak_of_row`` of several."""
    return {
        name: peak_of_row(script, argv, name)
        for name in track(names, "memory of each row", console=_NOTES, transient=True)
    }


# --- the machine ------------------------------------------------------------------------------------------------------


def own_precisions(device: torch.device) -> list[str]:
    """The precisions of PRECISIONS that a device computes in; others it imitates, which takes longer than fp32."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities()
        has_bf16 = any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last: of Arm
    return [name for name, dtype in PRECISIONS.items() if dtype.itemsize == 4 or has_bf16]


def machine(device: torch.device) -> dict[str, Any]:
    """Machine and versions."""
    packages = ("tada-video", "torch", "numpy", "av", "triton", "transformers", "pytorchvideo")
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "load_average_at_the_end": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _version(name))},
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
        facts["tf32"] = {"matmul": torch.backends.cuda.matmul.allow_tf32, "conv": torch.backends.cudnn.allow_tf32}
    return facts


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
    """Peak rates of a device, as measured now."""

    copy_bytes_per_second: float
    """Of a large copy: bytes read and bytes written."""
    multiply_adds_per_second: dict[str, float]
    """Of the product of large matrices, in each precision."""

    def copy_share(self, num_bytes: float, seconds: float) -> float:
        """Fraction of the copy's rate, for this many bytes in this time."""
        return num_bytes / seconds / self.copy_bytes_per_second

    def matrix_share(self, multiply_adds: float, seconds: float, precision: str) -> float:
        """Fraction of the matrix product's rate, for this many multiply-adds in this time."""
        return multiply_adds / seconds / self.multiply_adds_per_second[precision]


def measure_chip(device: torch.device, precisions: Iterable[str]) -> Chip:
    """Copy and multiply, and keep the best of ten."""
    source = torch.ones(_COPIED_BYTES // 4, device=device)
    target, side = torch.empty_like(source), _MATRIX_SIDES[device.type]
    runs: dict[str, Run] = {"copy": lambda: target.copy_(source)}
    for precision in precisions:
        a = torch.randn(side, side, device=device).to(PRECISIONS[precision])
        runs[f"product in {precision}"] = partial(torch.mm, a, a, out=torch.empty_like(a))
    best = {name: min(seconds) for name, seconds in interleaved(runs, rounds=10, device=device).items()}
    return Chip(
        copy_bytes_per_second=2 * _COPIED_BYTES / best["copy"],
        multiply_adds_per_second={precision: side**3 / best[f"product in {precision}"] for precision in precisions},
    )


# --- results ----------------------------------------------------------------------------------------------------------


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, width: int = 160) -> None:
    """Print a table; all columns but the first are numbers."""
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=width).print(table)


def write_report(arguments: argparse.Namespace, name: str, device: torch.device, **content: Any) -> Path:
    """Write the results as JSON, with the machine and the arguments."""
    file: Path = arguments.json or Path("runs") / f"{name}.json"
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    report = {"benchmark": name, "machine": machine(device), "arguments": asked, **content}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, (json.dumps(report, indent=2) + "\n").encode())
    print(f"written: {file}")
    return file
