"""The benchmark of the first hour with a GPU runs from end to end on a CPU, and tells wrong numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import gpu
import timing
from accelerator_guard import accelerator_guard
from tada.models.fuse import fuse
from tada.system import accelerator

SMALL = ["--device", "cpu", "--small", "--rounds", "3"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chip that is measured in no time, and short videos."""
    monkeypatch.setattr(timing, "_COPIED_BYTES", 2**16)
    monkeypatch.setattr(timing, "_MATRIX_SIDES", {"cpu": 16})
    draw = gpu.draw_videos
    monkeypatch.setattr(gpu, "draw_videos", lambda folder, count, seconds: draw(folder, count, 0.2))


def rows_of(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows


def test_all_families(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([*SMALL, "--json", str(tmp_path / "gpu.json")]) == 0
    rows = rows_of(tmp_path / "gpu.json")
    for part in ("numbers", "training", "inference"):
        assert {row["network"] for row in rows if row["part"] == part} == set(gpu.SMALL)
    assert "all numbers agree with those of the CPU" in capsys.readouterr().out


def test_one_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--networks", "tada2d_tiny", "--batches", "1", "3"]
    assert gpu.main([*arguments, "--json", str(tmp_path / "gpu.json")]) == 0
    rows = rows_of(tmp_path / "gpu.json")
    parts = [row["part"] for row in rows]
    assert list(dict.fromkeys(parts)) == ["chip", "numbers", "training", "inference", "copies", "loader"]
    steps = [row for row in rows if row["part"] == "training" and row["precision"] == "fp32"]
    assert [row["batch"] for row in steps] == [1, 3]
    for row in steps:
        assert row["clips_per_second"] == pytest.approx(1000 * row["batch"] / row["milliseconds"]["median"])
        assert row["matrix_share"] > 0
        assert row["memory_share"] > 0
    # Three clips are three times the work, of which only the weights' part is the same.
    work = [row["matrix_share"] * row["milliseconds"]["median"] for row in steps]
    assert 2.9 < work[1] / work[0] <= 3.01
    assert {row["note"] for row in rows if row["part"] == "numbers"} == {
        "logits",
        "logits of the inference form",
        "gradient of the first layer",
    }
    assert "headroom" in rows[-1]["note"]
    assert "first hour with cpu" in capsys.readouterr().out


def test_wrong_numbers_and_failures_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.fused = fuse(network)

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.fused(clips)
            return logits.flip(0)

    right = iter([True])  # the CPU's

    def fuse_wrongly(network: nn.Module, **options: Any) -> nn.Module:
        return fuse(network) if next(right, False) else Wrong(network)

    monkeypatch.setattr(gpu, "fuse", fuse_wrongly)

    def no_memory(self: gpu.Measured, precision: str, batch: int, compiled: bool) -> None:
        raise torch.cuda.OutOfMemoryError("no memory")

    def no_kernel(self: gpu.Measured, precision: str, batch: int, compiled: bool) -> None:
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr(gpu.Measured, "training_step", no_memory)
    monkeypatch.setattr(gpu.Measured, "inference", no_kernel)
    arguments = [*SMALL, "--networks", "tada2d_tiny", "--json", str(tmp_path / "gpu.json")]
    assert gpu.main(arguments) == 1
    rows = [row for row in rows_of(tmp_path / "gpu.json") if row["precision"] in ("fp32", "")]
    wrong = [(row["part"], row["note"]) for row in rows if row["is_wrong"]]
    assert ("numbers", "logits of the inference form") in wrong
    assert ("inference", "RuntimeError: no kernel image is available") in wrong
    assert len(wrong) == len(set(wrong)) + sum(1 for part, _ in wrong if part == "inference") - 1
    assert next(row["note"] for row in rows if row["part"] == "training").strip() == "out of memory"
    assert "rows are WRONG" in capsys.readouterr().out


def test_precisions_and_limits_fit_together() -> None:
    assert set(gpu.precisions_of(torch.device("cpu"))) <= set(gpu.LIMITS)
    with gpu.computing_in("fp32", torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "highest"


def test_what_runs_on_a_gpu_runs_under_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row but the chip's own: on tensors that count as being on a GPU, whose steps may not wait for it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5_000_000)
    monkeypatch.setattr(accelerator, "_copy_streams", {})
    device = torch.device("cuda", 0)
    assert set(gpu.precisions_of(device)) == set(gpu.LIMITS)
    chips = {
        precision: timing.Chip(copy_bytes_per_second=1e9, multiply_adds_per_second={precision.partition(",")[0]: 1e9})
        for precision in gpu.LIMITS
    }
    frames, options = gpu.SMALL["tada2d_tiny"]
    network = gpu.Measured("tada2d_tiny", options, frames, 32, device, chips, 1)
    with accelerator_guard() as guard:
        with guard.allowed():
            numbers = network.numbers()
            timed = [
                network.timed(part, build, precision, 2)
                for precision in gpu.LIMITS
                for part, build in (("training", network.training_step), ("inference", network.inference))
            ]
            copies = gpu.copy_rows(device, 2, 8, 3)
            step, run = network.training_step("bf16", 2, False), network.inference("bf16", 2, False)
            step()
        step()
        run()
    assert [row.precision for row in numbers[::3]] == list(gpu.LIMITS)
    for row in [*numbers, *timed, *copies]:
        assert not row.is_wrong, row.note
    assert all(row.peak_bytes == 5_000_000 and row.clips_per_second for row in timed)
    assert {row.note.partition(":")[0] for row in copies} == {"pageable", "as training copies", "pinned before"}
