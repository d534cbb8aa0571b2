"""Iterators that run in processes, several at a time, and whose items come in the order of the tasks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tada.data.workers import Lost, WorkerProcess

Task = TypeVar("Task")
Item = TypeVar("Item")

_JOIN_SECONDS = 5.0  # for a thread that decodes in this process: nothing can stop it


def iterators_in_processes(
    function: Callable[[Task], Iterator[Item]],
    tasks: Iterable[Task],
    *,
    num_processes: int,
    timeout_seconds: float,
    max_held: int,
    attempts: int = 1,
    stays_here: Callable[[Task], bool] = lambda task: False,
) -> Generator[tuple[Task, Item | Lost], None, None]:
    """Yield each task with each item of ``function(task)``, in the order of the tasks, while later items are made.

    An iterator whose process dies is begun again, and all its items come again, since its file may have changed;
    ``Lost`` ends it after the last attempt. One who may stop early closes this generator (``contextlib.closing``).

    Args:
        function: defined in a module, so that it can be pickled.
        tasks: read by several threads, one at a time.
        timeout_seconds: for one item. A process that takes longer is killed, and its task is not begun again.
        max_held: items that are held in memory before later ones wait; each process makes at most one more.
        stays_here: whether a task cannot go to another process; its iterator then runs in a thread of this one.

    Raises:
        BaseException: any error of ``function`` or ``tasks``; ``function`` should give errors of single files as items.
    """
    line: _Line[Task, Item | Lost] = _Line(iter(tasks), max_held)
    processes: list[WorkerProcess[Task, Item]] = [
        WorkerProcess(function, timeout_seconds) for _ in range(num_processes)
    ]

    def serve(process: WorkerProcess[Task, Item]) -> None:
        try:
            while (place := line.next_place()) is not None:
                items: Iterator[Item | Lost]
                if stays_here(place.task):
                    items = function(place.task)
                else:
                    items = process.answers(place.task, attempts=attempts)
                for item in items:
                    if not line.put(place, item):
                        return
                line.end(place)
        except BaseException as fault:  # raised again in the caller's thread
            line.fail(fault)

    threads = [threading.Thread(target=serve, args=[process], daemon=True) for process in processes]
    try:
        for thread in threads:
            thread.start()
        yield from line
    finally:
        line.close()
        for process in processes:
            process.stop()
        end = time.monotonic() + _JOIN_SECONDS
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(end - time.monotonic(), 0.0))
        for process in processes:
            process.close()


@dataclass(slots=True, eq=False)
class _Place(Generic[Task, Item]):
    """A task's place in the line, and its items that were made and not yet taken."""

    task: Task
    items: deque[Item] = field(default_factory=deque)
    is_ended: bool = False


class _Line(Generic[Task, Item]):
    """Items of several tasks that are made at once, in the order of the tasks. All methods may be called by any thread.

    The first task in the line never waits for room, or it might wait for items behind it that nobody takes.
    """

    def __init__(self, tasks: Iterator[Task], max_held: int) -> None:
        self._tasks, self._max_held = tasks, max_held
        self._changed, self._reading = threading.Condition(), threading.Lock()
        self._places: deque[_Place[Task, Item]] = deque()
        self._held = 0
        self._is_read = self._is_closed = False
        self._fault: BaseException | None = None
        self._fault_of_tasks: BaseException | None = None

    def next_place(self) -> _Place[Task, Item] | None:
        """The place of the next task; None after the last, or when the line is closed."""
        with self._reading:  # tasks are read by one thread at a time, and take places in their order
            with self._changed:
                while self._held >= self._max_held and not self._is_closed:
                    self._changed.wait()
                if self._is_closed or self._is_read:
                    return None
            try:
                place: _Place[Task, Item] = _Place(next(self._tasks))
            except BaseException as fault:  # raised again after the items before it
                with self._changed:
                    self._is_read = True
                    self._fault_of_tasks = None if isinstance(fault, StopIteration) else fault
                    self._changed.notify_all()
                return None
            with self._changed:
                self._places.append(place)
                self._changed.notify_all()
                return place

    def put(self, place: _Place[Task, Item], item: Item) -> bool:
        """Add an item, when there is room for it; False if the line was closed."""
        with self._changed:
            while self._held >= self._max_held and self._places[0] is not place and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return False
            place.items.append(item)
            self._held += 1
            self._changed.notify_all()
            return True

    def end(self, place: _Place[Task, Item]) -> None:
        with self._changed:
            place.is_ended = True
            self._changed.notify_all()

    def fail(self, fault: BaseException) -> None:
        with self._changed:
            self._fault = self._fault or fault
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[tuple[Task, Item]]:
        while True:
            with self._changed:
                while not self._is_ready():
                    self._changed.wait()
                if self._fault is not None:
                    raise self._fault
                if not self._places:
                    if self._fault_of_tasks is not None:
                        raise self._fault_of_tasks
                    return
                place = self._places[0]
                if not place.items:
                    self._places.popleft()
                    self._changed.notify_all()
                    continue
                item = place.items.popleft()
                self._held -= 1
                self._changed.notify_all()
            yield place.task, item

    def _is_ready(self) -> bool:
        if self._fault is not None:
            return True
        if not self._places:
            return self._is_read
        return bool(self._places[0].items) or self._places[0].is_ended
