"""Limits of a server, and batches across threads."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from tada.errors import OptionError
from tada.serving.batches import BatchedNetwork
from tada.serving.limits import Limits


def test_limits_are_checked() -> None:
    for wrong in ({"decode_seconds": 0.0}, {"max_megabytes": float("inf")}, {"concurrent": 0}, {"max_waiting": -1}):
        (name,) = wrong
        with pytest.raises(OptionError, match=rf"^{name}="):
            Limits(**wrong)  # type: ignore[arg-type]
    assert Limits(max_waiting=0, max_megabytes=1.5).max_bytes == 1_500_000


class Slow:
    """Twice the clips, once it is let go; features: thrice."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.entered = threading.Event()

    def __call__(self, clips: Tensor) -> Tensor:
        self.entered.set()
        assert self.go.wait(60)
        if len(clips) > 1 and bool((clips == -1).any()):
            raise RuntimeError("short of memory")
        if bool((clips == -2).any()):
            raise RuntimeError("this clip fails")
        return 2 * clips

    def features(self, clips: Tensor) -> Tensor:
        return 3 * clips


def answers_at_once(
    values: list[float], *, max_clips: int, features: bool = False
) -> tuple[dict[float, Any], list[int]]:
    """What threads get that come while the network is busy with 0.0, and the sizes of the batches."""
    slow, sizes, found = Slow(), list[int](), dict[float, Any]()
    network = BatchedNetwork(slow, max_clips=max_clips, on_batch=sizes.append)

    def ask(value: float) -> None:
        try:
            call = network.features if features and value else network
            found[value] = call(torch.full((1, 2), value))
        except RuntimeError as error:
            found[value] = str(error)

    threads = [threading.Thread(target=ask, args=[value]) for value in [0.0, *values]]
    threads[0].start()
    assert slow.entered.wait(60)
    for thread in threads[1:]:
        thread.start()
    while len(network._waiting) < len(values):
        time.sleep(0.001)
    slow.go.set()
    for thread in threads:
        thread.join(60)
    network.close()
    return {value: got if isinstance(got, str) else got.tolist() for value, got in found.items()}, sizes


def test_clips_that_wait_are_one_batch() -> None:
    found, sizes = answers_at_once([1.0, 2.0, 3.0, 4.0], max_clips=3)
    assert found == {value: [[2 * value, 2 * value]] for value in (0.0, 1.0, 2.0, 3.0, 4.0)}
    assert sizes == [1, 3, 1]
    found, sizes = answers_at_once([1.0, 2.0], max_clips=8, features=True)
    assert found == {0.0: [[0.0, 0.0]], 1.0: [[3.0, 3.0]], 2.0: [[6.0, 6.0]]}
    assert sizes == [1, 2]


def test_a_batch_that_fails_is_tried_one_by_one() -> None:
    found, sizes = answers_at_once([1.0, -1.0, -2.0], max_clips=8)
    assert found == {0.0: [[0.0, 0.0]], 1.0: [[2.0, 2.0]], -1.0: [[-2.0, -2.0]], -2.0: "this clip fails"}
    assert sizes == [1, 1, 1]


def test_a_closed_network_takes_nothing() -> None:
    network = BatchedNetwork(Slow(), max_clips=1)
    network.close()
    with pytest.raises(RuntimeError, match="the network was closed"):
        network(torch.zeros(1, 2))
