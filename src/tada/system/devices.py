"""Devices and processes (ranks) of a command: how many there are, and which of them this process is.

None of it is part of a recipe. Processes are started by torchrun, by SLURM's srun, or by Lightning for each device of
this machine; each runs the whole command. Only rank 0 prints and writes files. Their collectives are in
``collectives.py``. (Nothing here imports torch at the top, not even for types: `tada --help` reads the options.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tada.errors import OptionError

LoggerName = Literal["tensorboard", "wandb", "mlflow", "csv"]
_MANY = 64  # processes that are allowed on any machine, however few its cores


# No slots: jsonargparse 4.53, which reads these from the command line, cannot take a slotted dataclass.
@dataclass(frozen=True, kw_only=True)
class Machine:
    """Options of a command that say which hardware it uses and how, and where numbers are logged."""

    devices: int | None = None
    """Devices of each machine, one process for each; by default 1, or what torchrun or srun have started."""
    num_nodes: int | None = None
    """Machines; by default 1, or what torchrun or srun have started."""
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    """What the devices are: 'cuda' (GPUs of NVIDIA or AMD), 'mps' (the GPU of Apple's chips), 'gpu' (either), 'cpu', or
    'auto', a GPU where there is one."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """'ddp': each device holds the network; 'fsdp': its weights are divided among them; 'auto': ddp where there are
    several devices."""
    checkpoint_gradients: bool = False
    """Forget what blocks compute and compute it again for the gradients: less memory, a third more time."""
    compile: bool = False
    """Compile the network (torch.compile) at its first step: a minute or more, and faster steps after it. On a CPU it
    needs a C++ compiler."""
    logger: LoggerName = "tensorboard"
    """Where the numbers of training go, beside CSV files; wandb and mlflow need the packages of these names."""

    def __post_init__(self) -> None:
        """Raise OptionError where a field is out of its range."""
        for name in ("devices", "num_nodes"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise OptionError(f"{name} must be 1 or more, not {number}")
        for name, is_on in (("checkpoint_gradients", self.checkpoint_gradients), ("fsdp", self.strategy == "fsdp")):
            if self.compile and is_on:
                raise OptionError(f"compile and {name} do not work together: choose one of them")

    def processes(self) -> Processes:
        """Which process this is, and of how many.

        Raises:
            OptionError: ``devices`` or ``num_nodes`` are not those that torchrun or srun have started, or this machine
                has no such devices.
        """
        env = os.environ
        if "TORCHELASTIC_RUN_ID" in env:
            by, world, rank = "torchrun", int(env["WORLD_SIZE"]), int(env["RANK"])
            num_nodes = world // int(env["LOCAL_WORLD_SIZE"])
        elif "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
            by, world, rank = "srun", int(env["SLURM_NTASKS"]), int(env.get("SLURM_PROCID", "0"))
            num_nodes = int(env.get("SLURM_NNODES", "1"))
        else:
            devices, num_nodes = self.devices or 1, self.num_nodes or 1
            rank = int(env.get("NODE_RANK", "0")) * devices + int(env.get("LOCAL_RANK", "0"))
            _check_devices_exist(self.accelerator, devices)
            return Processes(machine=self, rank=rank, devices=devices, num_nodes=num_nodes, started_by=None)
        devices = world // num_nodes
        for name, asked, started in (("devices", self.devices, devices), ("num_nodes", self.num_nodes, num_nodes)):
            if asked not in (None, started):
                raise OptionError(f"{name} is {asked}, but {by} has started {started}: leave the option out")
        _check_devices_exist(self.accelerator, devices)
        return Processes(machine=self, rank=rank, devices=devices, num_nodes=num_nodes, started_by=by)


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """The processes of a command, one for each device."""

    machine: Machine
    """The options that they were started with."""
    rank: int
    """The rank of this process, from 0."""
    devices: int
    """Processes on each machine."""
    num_nodes: int
    """Machines."""
    started_by: str | None
    """"torchrun" or "srun"; None: Lightning."""

    @property
    def world(self) -> int:
        """The number of processes."""
        return self.devices * self.num_nodes

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0, which prints and writes files."""
        return self.rank == 0

    @property
    def device_type(self) -> Literal["cpu", "cuda", "mps"]:
        """What the devices are: as ``accelerator`` says, on this machine."""
        if self.machine.accelerator in ("cpu", "cuda", "mps"):
            return self.machine.accelerator
        return _default_device()

    def speaker(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """``say`` on rank 0; on the others a function that prints nothing."""
        return say if self.is_first else _ignore_line

    def lightning(self) -> dict[str, Any]:
        """Arguments for Lightning's Trainer and Fabric, without the strategy."""
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        # Lightning would save and requeue in a signal handler, which may interrupt any line of code.
        plugins = [SLURMEnvironment(auto_requeue=False)] if self.started_by == "srun" else []
        return {
            "accelerator": self.device_type,
            "devices": self.devices,
            "num_nodes": self.num_nodes,
            "plugins": plugins,
        }


def _ignore_line(line: str) -> None:
    pass


def is_first_process() -> bool:
    """Whether this process is rank 0, by the environment variables alone."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def find_device(name: str | None) -> str:
    """Check the name of a device; None means a GPU where there is one (of NVIDIA, AMD or Apple), else the CPU.

    Raises:
        OptionError: this machine has no such device.
    """
    import torch

    count = torch.cuda.device_count()
    if name is None:
        return _default_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise OptionError(f"device {name!r} should be cpu, cuda, cuda:N or mps")
    is_there = {
        "cpu": (device.index or 0) == 0,
        "cuda": (device.index or 0) < count,
        "mps": (device.index or 0) == 0 and torch.backends.mps.is_available(),
    }
    if not is_there[device.type]:
        raise OptionError(f"device {name!r} is not there: this machine has {_gpus(count)} that PyTorch can use")
    return name


def _default_device() -> Literal["cpu", "cuda", "mps"]:
    import torch

    if torch.cuda.device_count():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _gpus(count: int) -> str:
    return f"{count or 'no'} GPU{'' if count == 1 else 's'}"


def _check_devices_exist(accelerator: str, devices: int) -> None:
    """Raise OptionError where this machine has fewer devices."""
    import torch

    found = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = found.get(accelerator, found["cuda"] or found["mps"])
    if accelerator in ("gpu", "cuda", "mps") and not count:
        raise OptionError(
            f"accelerator {accelerator!r}: this machine has no GPU that PyTorch can use; choose auto or cpu"
        )
    if accelerator != "cpu" and count and devices > count:
        raise OptionError(f"devices is {devices}, but this machine has {_gpus(count)} that PyTorch can use")
    if devices > max(_MANY, os.cpu_count() or 1):
        raise OptionError(f"devices is {devices}, but this machine has {os.cpu_count()} cores")


def check_num_workers(number: int) -> int:
    """Return the number of decoding processes, if it is plausible for this machine.

    Raises:
        OptionError: it is over 64 and over four times the number of cores.
    """
    cores = os.cpu_count() or 1
    if number > max(_MANY, 4 * cores):
        raise OptionError(f"num_workers is {number}, but this machine has {cores} cores: one for each is enough")
    return number


def default_num_workers(devices: int = 1) -> int:
    """Processes that decode videos for each device: its share of the cores, at most eight."""
    return min(max((os.cpu_count() or 1) // devices, 1), 8)
