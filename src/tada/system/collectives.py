"""Collectives: what the processes (ranks) of a command exchange. With one process all of them do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def on_any(flag: bool, device: torch.device) -> bool:
    """Whether it holds in any of the processes. All must ask."""
    if not _together():
        return flag
    votes = torch.tensor([int(flag)], device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def gathered(items: list[T]) -> list[T]:
    """The items of all processes, in the order of their ranks. All must ask. Plain values only: they are pickled."""
    if not _together():
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
