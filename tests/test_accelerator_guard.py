"""The device guard itself: planted mistakes, each of which it must see, and correct code, which it must let through."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accelerator_guard import (
    AcceleratorGuard,
    HostMixError,
    StreamError,
    SynchronizationError,
    accelerator_guard,
    is_there,
)


@pytest.fixture
def guard() -> Iterator[AcceleratorGuard]:
    with accelerator_guard() as guard:
        yield guard


def on_device(guard: AcceleratorGuard, *shape: int) -> Tensor:
    with guard.allowed():
        return torch.ones(shape).to("cuda")


# --- planted mistakes ------------------------------------------------------------------------------------------------


def test_a_mask_made_on_the_host_is_seen(guard: AcceleratorGuard) -> None:
    x = on_device(guard, 3, 4)
    with pytest.raises(HostMixError, match=r"gets tensors of the host, \[\[3, 4\]\], among those of the device"):
        x * torch.ones(3, 4)


def test_a_constant_that_stayed_on_the_host_is_seen_in_the_network(guard: AcceleratorGuard) -> None:
    layer = nn.Linear(4, 2)
    with guard.allowed():
        layer.to("cuda")
    layer.bias.data = torch.zeros(2)  # as a plain attribute would be, which ``to`` does not move
    with pytest.raises(HostMixError, match="tensors of the host"):
        layer(on_device(guard, 3, 4))


def test_an_unmoved_batch_is_seen(guard: AcceleratorGuard) -> None:
    layer = nn.Conv2d(3, 2, 1)
    with guard.allowed():
        layer.to("cuda")
    with pytest.raises(HostMixError, match="aten::convolution"):
        layer(torch.ones(1, 3, 4, 4))


READINGS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda loss: loss.item(),
    "float": float,
    "bool": lambda loss: bool(torch.isfinite(loss)),
    "if": lambda loss: 1 if loss > 0 else 0,
    "tolist": lambda loss: loss.tolist(),
    "cpu": lambda loss: loss.cpu(),
    "to the host": lambda loss: loss.to("cpu", non_blocking=True),
    "equal": lambda loss: torch.equal(loss, loss),
    "formatted": lambda loss: f"{loss:.3f}",
}


@pytest.mark.parametrize("reading", READINGS)
def test_a_loss_that_is_read_in_every_step_is_seen(reading: str, guard: AcceleratorGuard) -> None:
    loss = on_device(guard, 4).mean()
    with pytest.raises(SynchronizationError, match="the host waits for the device"):
        READINGS[reading](loss)
    with guard.allowed():
        READINGS[reading](loss)
    assert sum(guard.counts.values()) >= 2  # the copy of ``on_device`` too


COUNTINGS: dict[str, Callable[[Tensor], object]] = {
    "nonzero": lambda x: x.nonzero(),
    "mask as index": lambda x: x[x > 0],
    "values at a mask": lambda x: x.index_put((x > 0,), x.flatten()),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "repeat_interleave": lambda x: x.flatten().repeat_interleave(x.flatten().long()),
    "one_hot of unknown size": lambda x: F.one_hot(x.long()),
}


@pytest.mark.parametrize("counting", COUNTINGS)
def test_an_output_whose_size_the_device_decides_is_seen(counting: str, guard: AcceleratorGuard) -> None:
    with pytest.raises(SynchronizationError):
        COUNTINGS[counting](on_device(guard, 2, 3))


def test_a_copy_from_unpinned_memory_is_seen(guard: AcceleratorGuard) -> None:
    with pytest.raises(SynchronizationError, match="not both pinned and non-blocking"):
        torch.ones(3).to("cuda", non_blocking=True)
    with pytest.raises(SynchronizationError, match="not both pinned and non-blocking"):
        on_device(guard, 3).copy_(torch.ones(3))


def test_a_blocking_copy_from_pinned_memory_is_seen(guard: AcceleratorGuard) -> None:
    with pytest.raises(SynchronizationError, match="not both pinned and non-blocking"):
        torch.ones(3).pin_memory().cuda()


MAKINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "as_tensor": lambda x: torch.as_tensor(1.0, device="cuda"),
    "new_tensor": lambda x: x.new_tensor([1.0, 2.0]),
}


@pytest.mark.parametrize("making", MAKINGS)
def test_a_constant_made_anew_in_every_step_is_seen(making: str, guard: AcceleratorGuard) -> None:
    with pytest.raises(SynchronizationError, match="from numbers of the host"):
        MAKINGS[making](on_device(guard, 2))


def test_an_index_from_the_host_is_seen(guard: AcceleratorGuard) -> None:
    with pytest.raises(SynchronizationError, match="an index that has to be copied"):
        on_device(guard, 3)[torch.tensor([0, 2])]
    with pytest.raises(HostMixError, match="a tensor of the host is indexed by one of the device"):
        torch.ones(3)[on_device(guard, 2).long()]


def test_numpy_of_the_device_is_seen_even_where_waiting_is_allowed(guard: AcceleratorGuard) -> None:
    with guard.allowed(), pytest.raises(TypeError, match=r"use Tensor.cpu\(\) first"):
        on_device(guard, 3).numpy()


def test_a_mistake_in_the_backward_pass_is_seen(guard: AcceleratorGuard) -> None:
    class Clipped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x * 1.0

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            return gradient / gradient.norm().item()

    x = on_device(guard, 3).requires_grad_()
    with pytest.raises(SynchronizationError, match="reads a number"):
        Clipped.apply(x).sum().backward()  # type: ignore[no-untyped-call]


def test_an_optimizer_whose_state_is_read_is_seen(guard: AcceleratorGuard) -> None:
    weight = nn.Parameter(on_device(guard, 3))
    weight.grad = on_device(guard, 3)
    optimizer = torch.optim.LBFGS([weight])  # it looks at the loss and the gradient
    with pytest.raises(SynchronizationError):
        optimizer.step(lambda: float(weight.sum()))


def test_a_stream_that_was_not_waited_for_is_seen(guard: AcceleratorGuard) -> None:
    side, pinned = torch.cuda.Stream(), torch.ones(3).pin_memory()
    with torch.cuda.stream(side):
        x = pinned.to("cuda", non_blocking=True)
    with pytest.raises(StreamError, match="before this stream has waited"):
        x + 1
    torch.cuda.current_stream().wait_stream(side)
    with pytest.raises(StreamError, match="without record_stream"):
        x + 1
    x.record_stream(torch.cuda.current_stream())
    assert is_there(x + 1)


def test_a_type_that_apples_gpus_lack_is_seen() -> None:
    with accelerator_guard("mps") as guard, guard.allowed():
        x = torch.ones(3).to("mps")
        assert x.device == torch.device("mps", 0)
        assert not x.is_cuda
        for make in (x.double, lambda: torch.ones(3, dtype=torch.float64).to("mps"), lambda: x.new_zeros(3).double()):
            with pytest.raises(TypeError, match="does not support float64"):
                make()


def test_an_event_that_may_be_of_another_gpu_is_seen(guard: AcceleratorGuard) -> None:
    with pytest.raises(StreamError, match="perhaps another GPU's"):
        torch.cuda.Event().record()


def test_waiting_for_everything_is_seen(guard: AcceleratorGuard) -> None:
    with pytest.raises(SynchronizationError, match=r"torch\.cuda\.synchronize"):
        torch.cuda.synchronize()


# --- correct code -----------------------------------------------------------------------------------------------------


def train(device: str, *, fused: bool) -> dict[str, Tensor]:
    """Three steps of a small network, written as they should be."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 5)
    )
    data = [(torch.randn(2, 3, 8, 8), torch.tensor([1, i])) for i in range(3)]
    if device == "cuda":
        network.to(device)
        data = [(x.pin_memory(), y.pin_memory()) for x, y in data]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, fused=fused)
    for x, y in data:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        first, second = network(x).split(3, dim=1)[0], F.one_hot(y, 5)
        loss = F.cross_entropy(first, y.clamp(max=2), label_smoothing=0.1) + (second * 0.5).sum() * first.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network.state_dict()


@pytest.mark.parametrize("fused", [False, True])
def test_correct_training_is_let_through_with_the_numbers_of_the_cpu(fused: bool) -> None:
    alone = train("cpu", fused=fused)
    with accelerator_guard() as guard:
        move = nn.Module.to

        def moved(self: nn.Module, device: str) -> nn.Module:
            with guard.allowed():
                return move(self, device)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.Module, "to", moved)
            guarded = train("cuda", fused=fused)
        assert all(map(is_there, guarded.values()))
        with guard.allowed():
            guarded = {name: value.cpu() for name, value in guarded.items()}
    assert all(torch.equal(alone[name], value) for name, value in guarded.items())


def test_what_is_of_the_device_says_so(guard: AcceleratorGuard) -> None:
    x = on_device(guard, 2, 3)
    assert x.device == torch.device("cuda", 0)
    assert x.is_cuda
    for made in (x[0], x.T, x + 1, 2.0 * x, x.new_zeros(3), torch.zeros_like(x), torch.zeros(2, device=x.device)):
        assert made.device.type == "cuda"
    assert copy.deepcopy(nn.Parameter(x)).is_cuda
    assert copy.deepcopy(x).is_cuda
    assert x.to(torch.float64).is_cuda
    with guard.allowed():
        assert nn.Linear(2, 2).to(device=x.device, dtype=None).weight.is_cuda
    assert x.to(x.double()).dtype == torch.float64
    for made in (torch.zeros(3), torch.zeros_like(x, device="cpu"), torch.arange(3)):
        assert made.device.type == "cpu"


def test_a_number_of_the_host_may_take_part(guard: AcceleratorGuard) -> None:
    x = on_device(guard, 2, 3)
    assert is_there(x * torch.tensor(2.0))
    assert is_there(torch.where(x > 0, torch.tensor(1.0), x))
    x[x > 0] = 5.0  # becomes masked_fill
    with guard.allowed():
        assert x.tolist() == [[5.0] * 3] * 2
    with pytest.raises(HostMixError):  # but not in an operation that is not pointwise
        torch.stack([x.sum(), torch.tensor(1.0)])


def test_results_reach_the_host_by_a_pinned_copy(guard: AcceleratorGuard) -> None:
    host = torch.empty(3, pin_memory=True)
    host.copy_(on_device(guard, 3), non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream())
    event.synchronize()
    assert not is_there(host)
    assert host.tolist() == [1.0, 1.0, 1.0]


def test_outside_of_the_guard_nothing_is_changed() -> None:
    with accelerator_guard():
        pass
    assert torch.ones(1).device.type == "cpu"
    assert torch.cuda.Event.__module__.startswith("torch.cuda")
