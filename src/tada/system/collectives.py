"""Collectives between the processes (ranks) of a command. With one process they return what they are given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def _has_several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def on_any(flag: bool, device: torch.device) -> bool:
    """Whether the flag is true in any process. All processes must call this."""
    if not _has_several_ranks():
        return flag
    votes = torch.tensor([int(flag)], device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


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
