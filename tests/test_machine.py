"""Which process of how many: read from what torchrun, srun and Lightning set."""

from __future__ import annotations

import pytest
import torch

from tada.errors import OptionError
from tada.machine import Machine, Processes, default_num_workers, is_first_process
from tada.ranks import gathered, on_any

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

CASES: dict[str, tuple[dict[str, str], Machine, Processes, bool]] = {
    "alone": ({}, Machine(), Processes(rank=0, devices=1, num_nodes=1, started_by=None), True),
    "first of two": ({}, Machine(devices=2), Processes(rank=0, devices=2, num_nodes=1, started_by=None), True),
    "Lightning's child": (
        {"LOCAL_RANK": "1", "NODE_RANK": "2", "WORLD_SIZE": "12"},
        Machine(devices=4, num_nodes=3),
        Processes(rank=9, devices=4, num_nodes=3, started_by=None),
        False,
    ),
    "torchrun": (
        {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": "8", "LOCAL_RANK": "0"},
        Machine(),
        Processes(rank=8, devices=8, num_nodes=2, started_by="torchrun"),
        False,
    ),
    "srun": (
        {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"},
        Machine(devices=4),
        Processes(rank=0, devices=4, num_nodes=2, started_by="srun"),
        True,
    ),
    "a shell on a SLURM node": (
        {"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "bash"},
        Machine(devices=2),
        Processes(rank=0, devices=2, num_nodes=1, started_by=None),
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
    assert machine.processes() == expected
    assert machine.processes().is_first is is_first_process() is first


def test_options_that_contradict_the_launcher_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CASES["torchrun"][0].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=r"devices is 2, but torchrun has started 8: leave the option away"):
        Machine(devices=2).processes()
    with pytest.raises(OptionError, match=r"num_nodes is 4, but torchrun has started 2"):
        Machine(num_nodes=4).processes()
    with pytest.raises(OptionError, match=r"devices must be 1 or more, not 0"):
        Machine(devices=0)


def test_alone_there_is_nobody_to_ask() -> None:
    assert gathered(["a", "b"]) == ["a", "b"]
    assert on_any(True, torch.device("cpu"))
    assert not on_any(False, torch.device("cpu"))


def test_cores_are_shared_by_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert [default_num_workers(devices) for devices in (1, 2, 4, 16)] == [8, 6, 3, 1]
