"""Which process of how many: read from what torchrun, srun and Lightning set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tada.errors import OptionError
from tada.system.collectives import StepVote, gathered
from tada.system.devices import (
    Machine,
    Processes,
    check_num_workers,
    default_num_workers,
    find_device,
    is_first_process,
)

VARIABLES = (
    "TORCHELASTIC_RUN_ID",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "SLURM_NTASKS",
    "SLURM_NNODES",
    "SLURM_PROCID",
    "SLURM_JOB_NAME",
)

MACHINE = Machine()
"""In place of each case's own."""

CASES: dict[str, tuple[dict[str, str], Machine, Processes, bool]] = {
    "alone": ({}, Machine(), Processes(machine=MACHINE, rank=0, devices=1, num_nodes=1, started_by=None), True),
    "first of two": (
        {},
        Machine(devices=2),
        Processes(machine=MACHINE, rank=0, devices=2, num_nodes=1, started_by=None),
        True,
    ),
    "Lightning's child": (
        {"LOCAL_RANK": "1", "NODE_RANK": "2", "WORLD_SIZE": "12"},
        Machine(devices=4, num_nodes=3),
        Processes(machine=MACHINE, rank=9, devices=4, num_nodes=3, started_by=None),
        False,
    ),
    "torchrun": (
        {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": "8", "LOCAL_RANK": "0"},
        Machine(),
        Processes(machine=MACHINE, rank=8, devices=8, num_nodes=2, started_by="torchrun"),
        False,
    ),
    "srun": (
        {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"},
        Machine(devices=4),
        Processes(machine=MACHINE, rank=0, devices=4, num_nodes=2, started_by="srun"),
        True,
    ),
    "a shell on a SLURM node": (
        {"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "bash"},
        Machine(devices=2),
        Processes(machine=MACHINE, rank=0, devices=2, num_nodes=1, started_by=None),
        True,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_processes(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, machine, expected, first = CASES[case]
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert machine.processes() == replace(expected, machine=machine)
    assert machine.processes().is_first is is_first_process() is first


def test_options_that_contradict_the_launcher_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CASES["torchrun"][0].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=r"devices is 2, but torchrun has started 8: leave the option out"):
        Machine(devices=2).processes()
    with pytest.raises(OptionError, match=r"num_nodes is 4, but torchrun has started 2"):
        Machine(num_nodes=4).processes()
    with pytest.raises(OptionError, match=r"devices must be 1 or more, not 0"):
        Machine(devices=0)


def test_alone_there_is_nobody_to_ask() -> None:
    assert gathered(["a", "b"]) == ["a", "b"]
    vote = StepVote()
    assert vote.ask(True, torch.device("cpu"))
    assert not vote.ask(False, torch.device("cpu"))


def test_cores_are_shared_by_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert [default_num_workers(devices) for devices in (1, 2, 4, 16)] == [8, 6, 3, 1]


# --- what this machine has ---


@pytest.fixture
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let PyTorch count so many GPUs."""
    count: int = request.param
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return count


@pytest.mark.parametrize(
    ("gpus", "device", "message"),
    [
        (0, "cuda", r"device 'cuda' is not there: this machine has no GPUs that PyTorch can use"),
        (1, "cuda:7", r"device 'cuda:7' is not there: this machine has 1 GPU that PyTorch can use"),
        (0, "mps", r"device 'mps' is not there"),
        (0, "cpu:1", r"device 'cpu:1' is not there"),
        (2, "nonsense", r"device 'nonsense' should be cpu, cuda, cuda:N or mps"),
        (2, "cuda:x", r"device 'cuda:x' should be"),
        (2, "cuda:-1", r"device 'cuda:-1' should be"),
        (2, "meta", r"device 'meta' should be"),
        (2, "", r"device '' should be"),
    ],
    indirect=["gpus"],
)
def test_a_device_that_is_not_there_is_refused(gpus: int, device: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        find_device(device)


@pytest.mark.parametrize(
    ("gpus", "device", "found"),
    [(0, None, "cpu"), (2, None, "cuda"), (2, "cuda:1", "cuda:1"), (2, "cpu", "cpu"), (0, "cpu:0", "cpu:0")],
    indirect=["gpus"],
)
def test_a_device_that_is_there_is_taken(gpus: int, device: str | None, found: str) -> None:
    assert find_device(device) == found


@pytest.mark.parametrize(
    ("gpus", "machine", "message"),
    [
        (
            0,
            Machine(accelerator="gpu"),
            r"accelerator 'gpu': this machine has no GPU that PyTorch can use; choose auto",
        ),
        (2, Machine(devices=5), r"devices is 5, but this machine has 2 GPUs that PyTorch can use"),
        (0, Machine(devices=100_000), r"devices is 100000, but this machine has \d+ cores"),
    ],
    indirect=["gpus"],
)
def test_devices_that_are_not_there_are_refused(gpus: int, machine: Machine, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        machine.processes()


def test_no_machine_feeds_a_hundred_thousand_workers() -> None:
    with pytest.raises(OptionError, match=r"num_workers is 100000, but this machine has \d+ cores: one for each is"):
        check_num_workers(100_000)
    assert check_num_workers(16) == 16
