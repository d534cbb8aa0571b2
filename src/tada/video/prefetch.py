"""Prefetch the items of an iterator in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.05
_JOIN_SECONDS = 5.0


class _End(NamedTuple):
    fault: BaseException | None


class Ahead(Generic[Item]):
    """Prefetches up to ``size`` items of an iterator, which runs in its own thread. Use it in a ``with``.

    This saves time if the iterator mostly runs without the GIL, as decoding does. An exception of the iterator is
    raised by ``next``, after the items before it.
    """

    def __init__(self, items: Iterator[Item], *, size: int) -> None:
        self._items, self._is_closed = items, threading.Event()
        self._queue: queue.Queue[Item | _End] = queue.Queue(size)
        self._end: _End | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        fault = None
        try:
            for item in self._items:
                if not self._put(item):
                    break
        except BaseException as raised:
            fault = raised
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
            self._put(_End(fault))

    def _put(self, item: Item | _End) -> bool:
        while not self._is_closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    @property
    def is_ready(self) -> bool:
        """Whether ``next`` would return without waiting."""
        return not self._queue.empty()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        if self._end is None:
            item = self._queue.get()
            if not isinstance(item, _End):
                return item
            self._end = item
            if item.fault is not None:
                raise item.fault
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the iterator and wait for its thread, at most 5 s: a dead camera might never return."""
        self._is_closed.set()
        self._thread.join(_JOIN_SECONDS)
