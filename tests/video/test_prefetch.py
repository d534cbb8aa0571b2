"""Prefetching in a thread: the order of items, errors, and the thread's end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tada.video.prefetch import Ahead


def test_items_come_in_order_and_some_ahead() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for i in range(10):
            begun.append(i)
            yield i

    with Ahead(items(), size=3) as ahead:
        first = next(ahead)
        while len(begun) < 5:  # the one in use, three that wait, and one that waits for a place
            time.sleep(0.01)
        assert ahead.is_ready
        time.sleep(0.05)
        assert begun == list(range(5))
        assert [first, *ahead] == list(range(10))
        assert list(ahead) == []  # and stays at its end


def test_a_fault_is_raised_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the disk is full")

    with Ahead(items(), size=3) as ahead:
        assert next(ahead) == 1
        with pytest.raises(ValueError, match="the disk is full"):
            next(ahead)
        assert list(ahead) == []


def test_leaving_early_ends_the_thread_and_closes_the_iterator() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    with Ahead(items(), size=2) as ahead:
        next(ahead)
        assert threading.active_count() == before + 1
    assert closed.is_set()
    assert threading.active_count() == before
