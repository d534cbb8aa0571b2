"""GPUs: copies for which the host does not wait, the precision of fp32, and which features a device has.

The host starts the work of a GPU and goes on; it is usually one training step ahead. Reading a number from the device
(``item``, ``float``, ``bool``, ``cpu``) ends that: the host waits, and afterwards the GPU waits for the host. So
training reads numbers a step later (``HostNumbers``), and copies batches from pinned memory (``copy_to_device``). On a
CPU the same code computes and reads at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

About = TypeVar("About")
Batch = TypeVar("Batch")


# --- copies to the device -------------------------------------------------------------------------------------------

_copy_streams: dict[torch.device, torch.cuda.Stream] = {}


def copy_to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy all tensors in a batch (a tensor, a named tuple, lists of tensors) to a device.

    To a CUDA device they are copied from pinned memory in a stream of its own: while the GPU computes the step before,
    which the host has started and does not wait for.
    """
    if device.type != "cuda":  # on MPS, too: non-blocking copies to it may be read before they have arrived
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)  # type: ignore[no-any-return]
    current, side = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(side):
        copied = tree_map_only(Tensor, lambda tensor: _pinned(tensor).to(device, non_blocking=True), batch)
    current.wait_stream(side)
    for tensor in tree_leaves(copied):
        if isinstance(tensor, Tensor):
            tensor.record_stream(current)  # else its memory could be given away while the current stream reads it
    return copied  # type: ignore[no-any-return]


def _pinned(tensor: Tensor) -> Tensor:
    return tensor if tensor.device.type != "cpu" or tensor.is_pinned() else tensor.pin_memory()


def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _copy_streams:
        _copy_streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch does not type it
    return _copy_streams[device]


# --- numbers from the device ----------------------------------------------------------------------------------------


class HostCopy:
    """A copy of a tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        """Start the copy; the host does not wait for it. ``tensor`` may be changed afterwards."""
        tensor = tensor.detach()
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch does not type it
            # Of the tensor's device: by default it would be of the current one, perhaps another GPU.
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = tensor.to("cpu", copy=True)

    def value(self) -> Tensor:
        """The tensor on the host, when the device has computed it; what came later it may still be computing."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


class HostNumbers(Generic[About]):
    """Numbers that the device computes in every step, and what belongs to them; on a GPU known a step later.

    The lag is one step, neither more nor less, so that all processes of a run learn of a number in the same step.
    """

    def __init__(self) -> None:
        self._coming: deque[tuple[HostCopy, About]] = deque()

    def add(self, tensor: Tensor, about: About) -> list[tuple[Tensor, About]]:
        """Add the tensor of this step; return those that are known now: on a GPU the earlier ones, else this one."""
        self._coming.append((HostCopy(tensor), about))
        return self._take(1 if tensor.device.type == "cuda" else 0)

    def rest(self) -> list[tuple[Tensor, About]]:
        """Wait for all that were added, and return those that were not returned yet."""
        return self._take(0)

    def clear(self) -> None:
        """Forget what was not returned yet."""
        self._coming.clear()

    def _take(self, left: int) -> list[tuple[Tensor, About]]:
        known = []
        while len(self._coming) > left:
            copy, about = self._coming.popleft()
            known.append((copy.value(), about))
        return known


# --- settings and features of a device ------------------------------------------------------------------------------


@contextmanager
def fast_numerics(device: torch.device) -> Iterator[None]:
    """Within the block a CUDA device computes fp32 in TF32, and convolutions by the algorithm that cuDNN finds fastest.

    For training and evaluation, whose clips have one size; afterwards the settings are as before. TF32 (of Ampere and
    later) rounds the factors of products to 10 bits; sums stay fp32. PyTorch does so in convolutions by default, and in
    matrix products only when told. ``NVIDIA_TF32_OVERRIDE=0`` in the environment turns it off. The other choice is not
    touched where a program has made it by the newer settings (``torch.backends.cuda.matmul.fp32_precision``).
    """
    if device.type != "cuda":
        yield
        return
    benchmark, precision = torch.backends.cudnn.benchmark, _matmul_precision()
    torch.backends.cudnn.benchmark = True
    if precision is not None:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        if precision is not None:
            torch.set_float32_matmul_precision(precision)


def _matmul_precision() -> str | None:
    """The precision of fp32 matrix products; None if it was set by the newer settings."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # PyTorch refuses to mix the older and the newer settings
        return None


def has_bf16(device_type: str) -> bool:
    """Whether a GPU of this machine computes in bf16 itself. False for a CPU: there fp32 is the default."""
    return device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def fuses_optimizer(device: torch.device) -> bool:
    """Whether the optimizer should update all weights in one kernel; only there can the device skip a step."""
    return device.type == "cuda"
