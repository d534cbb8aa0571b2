"""Collectives between the processes (ranks) of a command. With one process they return what they are given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from tada.system.accelerator import HostNumbers

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others in a collective before the run ends with an error.

NCCL's default is 10 minutes, and on several machines one of them may read its first videos from a cold disk for longer.
Nothing else of NCCL is set: since PyTorch 2.2 a failed collective ends the process by itself
(``TORCH_NCCL_ASYNC_ERROR_HANDLING`` is 3), and network interfaces are the cluster's matter (``NCCL_SOCKET_IFNAME``).
"""


def _has_several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class StepVote:
    """A question that all processes ask in every step: whether a flag is true in any of them.

    On GPUs the host would have to wait for the device, so there each answer is that of the question before; the first
    is False.
    """

    def __init__(self) -> None:
        self._asked: HostNumbers[None] = HostNumbers()

    def ask(self, flag: bool, device: torch.device) -> bool:
        """Ask, and return the answer. All processes must call this in every step."""
        if not _has_several_ranks():
            return flag
        votes = torch.full((), int(flag), device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return any(bool(answer) for answer, _ in self._asked.add(votes, None))


def max_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The elementwise maximum over all processes, on the device. All processes must call this."""
    if not _has_several_ranks():
        return tensor
    greatest = tensor.clone()
    dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
    return greatest


def gathered(items: list[T]) -> list[T]:
    """The items of all processes, by rank (all_gather). All processes must call this. Items are pickled."""
    if not _has_several_ranks():
        return items
    lists: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(lists, items)
    return [item for some in lists for item in some]


@contextmanager
def leaving_together() -> Iterator[None]:
    """Destroy the process group at the end, after an error too, so that no rank waits for this one."""
    try:
        yield
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
