"""Copies and numbers of a GPU, its settings, and questions to other processes: with stand-ins, on a CPU."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor

from accelerator_guard import accelerator_guard, is_there
from tada.errors import OptionError
from tada.system import accelerator, collectives
from tada.system.accelerator import HostCopy, HostNumbers, copy_to_device, fast_numerics, fuses_optimizer, has_bf16
from tada.system.collectives import StepVote, max_over_ranks
from tada.system.devices import Machine, find_device
from tada.training.trainer import strategy_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Batch(NamedTuple):
    clips: Tensor
    segments: list[Tensor]
    paths: list[str]


BATCH = Batch(torch.ones(2, 3, dtype=torch.uint8), [torch.zeros(1), torch.zeros(0, 2)], ["a", "b"])


@pytest.fixture(autouse=True)
def own_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_copy_streams", {})


def test_a_batch_is_copied_in_a_stream_of_its_own() -> None:
    with accelerator_guard() as guard:  # it would raise on pageable memory, and on streams that are not waited for
        copied = copy_to_device(BATCH, CUDA)
        assert isinstance(copied, Batch)
        assert all(map(is_there, [copied.clips, *copied.segments]))
        assert copied.paths == ["a", "b"]
        assert (copied.clips + 1).dtype == torch.uint8
        (side,) = accelerator._copy_streams.values()
        assert side is not guard.default_stream
        again = copy_to_device(copied, CUDA)
        assert is_there(again.clips)
        copy_to_device(BATCH, CUDA)
        assert len(accelerator._copy_streams) == 1
        with guard.allowed():
            assert again.clips.tolist() == BATCH.clips.tolist()
            assert again.segments[1].shape == (0, 2)


def test_on_a_cpu_nothing_is_copied() -> None:
    assert copy_to_device(BATCH, CPU).clips.data_ptr() == BATCH.clips.data_ptr()
    assert not accelerator._copy_streams


def test_numbers_of_a_gpu_are_known_a_step_later() -> None:
    with accelerator_guard() as guard:
        numbers: HostNumbers[str] = HostNumbers()
        loss = copy_to_device(torch.tensor([1.0]), CUDA)
        assert numbers.add(loss, "first") == []
        loss.mul_(0)  # what was added was the number of then
        for step in ("second", "third"):
            ((_, about),) = numbers.add(loss, step)
            assert about == {"second": "first", "third": "second"}[step]
        ((last, about),) = numbers.rest()
        assert (last.tolist(), about) == ([0.0], "third")
        assert numbers.rest() == []
        numbers.add(loss, "fourth")
        numbers.clear()
        assert numbers.rest() == []
        assert guard.counts == {"event.synchronize": 3}


def test_numbers_of_a_cpu_are_known_at_once() -> None:
    numbers: HostNumbers[int] = HostNumbers()
    loss = torch.tensor(2.0, requires_grad=True)
    ((value, about),) = numbers.add(loss * 1, 7)
    assert (value.item(), about, value.requires_grad) == (2.0, 7, False)


def test_a_copy_keeps_what_the_tensor_was() -> None:
    tensor = torch.ones(2)
    copy = HostCopy(tensor)
    tensor.zero_()
    assert copy.value().tolist() == [1.0, 1.0]


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_hold_within_the_block_and_for_cuda_alone() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    with fast_numerics(CPU):
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == before

    @fast_numerics(CUDA)
    def fail() -> None:
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == ("high", True)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        fail()
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == before


def test_a_choice_made_by_the_newer_settings_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise RuntimeError("PyTorch is checking the matmul precision: mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: pytest.fail("it was set"))
    with fast_numerics(CUDA):
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark


def test_what_devices_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: not including_emulation)
    assert [has_bf16(kind) for kind in ("cuda", "mps", "cpu")] == [True, False, False]
    assert [fuses_optimizer(torch.device(kind)) for kind in ("cuda", "mps", "cpu")] == [True, False, False]


@pytest.mark.parametrize(
    ("gpus", "has_mps", "accelerator", "found"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, False, "auto", "cuda"),
        (2, False, "gpu", "cuda"),
        (0, True, "gpu", "mps"),
        (0, True, "mps", "mps"),
        (0, True, "cpu", "cpu"),
    ],
)
def test_what_a_machine_computes_on(
    gpus: int, has_mps: bool, accelerator: Any, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    processes = Machine(accelerator=accelerator).processes()
    assert processes.device_type == processes.lightning()["accelerator"] == found
    if accelerator == "auto":
        assert find_device(None) == found


def test_a_gpu_of_the_other_kind_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(OptionError, match="accelerator 'cuda': this machine has no GPU"):
        Machine(accelerator="cuda").processes()
    with pytest.raises(OptionError, match="devices is 2, but this machine has 1 GPU"):
        Machine(accelerator="mps", devices=2).processes()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(OptionError, match="accelerator 'mps': this machine has no GPU"):
        Machine(accelerator="mps").processes()


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the other processes say, one number for each question; the collective takes it in."""
    said: list[float] = []

    def all_reduce(tensor: Tensor, op: Any) -> None:
        assert op == dist.ReduceOp.MAX
        tensor.clamp_(min=said.pop(0))

    monkeypatch.setattr(collectives, "_has_several_ranks", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    return said


def test_on_gpus_an_answer_is_that_of_the_step_before(others: list[float]) -> None:
    others += [0, 1, 0, 0]
    with accelerator_guard():  # the host does not wait for the device
        vote = StepVote()
        assert [vote.ask(flag, CUDA) for flag in (False, False, True, False)] == [False, False, True, True]


def test_on_cpus_an_answer_is_that_of_the_step(others: list[float]) -> None:
    others += [0, 1, 0]
    vote = StepVote()
    assert [vote.ask(flag, CPU) for flag in (False, False, True)] == [False, True, True]


def test_a_maximum_leaves_the_own_tensor_alone(others: list[float]) -> None:
    others += [3]
    own = torch.tensor(1.0)
    assert (max_over_ranks(own).item(), own.item()) == (3.0, 1.0)


def test_processes_wait_half_an_hour_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    ddp = strategy_for(Machine(accelerator="cpu", devices=2).processes())
    assert isinstance(ddp, DDPStrategy)
    assert ddp._timeout == timedelta(minutes=30)
    fsdp = strategy_for(Machine(accelerator="cpu", strategy="fsdp").processes())
    assert isinstance(fsdp, ModelParallelStrategy)
    assert fsdp._timeout == timedelta(minutes=30)
