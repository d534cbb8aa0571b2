"""Batches across requests: clips of several videos pass the network together.

Each request runs the usual prediction in a thread of its own; only its network is replaced. While the network is busy
clips collect, and all that have collected are the next batch: a request that is alone waits for nobody.

Shapes: N clips, T frames, K classes, D features.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tada.recognition.recognizer import Recognizer

_Kind = Literal["logits", "features"]


class _Wanted(NamedTuple):
    kind: _Kind
    clips: Tensor
    """[N, 3, T, H, W]."""
    found: Future[Tensor]


class BatchedNetwork:
    """A network that many threads may call at a time: it runs in one thread, on batches of what they bring.

    Args:
        network: clips [N, 3, T, H, W] -> logits [N, K]; ``network.features`` -> features [N, D].
        max_clips: largest batch; a caller who brings more at once gets a batch of his own.
        on_batch: called with the size of each batch.
    """

    def __init__(self, network: Any, *, max_clips: int, on_batch: Callable[[int], object] = lambda count: None) -> None:
        self._network, self._max_clips, self._on_batch = network, max_clips, on_batch
        self._waiting: deque[_Wanted] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    def __call__(self, clips: Tensor) -> Tensor:
        """Logits [N, K]."""
        return self._wait("logits", clips)

    def features(self, clips: Tensor) -> Tensor:
        """Features [N, D]."""
        return self._wait("features", clips)

    def _wait(self, kind: _Kind, clips: Tensor) -> Tensor:
        wanted = _Wanted(kind, clips, Future())
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the network was closed")
            self._waiting.append(wanted)
            self._changed.notify()
        return wanted.found.result()

    def close(self) -> None:
        """End the thread, after what waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._is_closed:
                        return
                    self._changed.wait()
                batch = self._take()
            self._answer(batch)

    def _take(self) -> list[_Wanted]:
        """The first that waits, and all others that fit into its batch."""
        first = self._waiting.popleft()
        batch, count = [first], len(first.clips)
        left: deque[_Wanted] = deque()
        for wanted in self._waiting:
            is_alike = wanted.kind == first.kind and wanted.clips.shape[1:] == first.clips.shape[1:]
            if is_alike and count + len(wanted.clips) <= self._max_clips:
                batch.append(wanted)
                count += len(wanted.clips)
            else:
                left.append(wanted)
        self._waiting = left
        return batch

    def _answer(self, batch: Sequence[_Wanted]) -> None:
        sizes = [len(wanted.clips) for wanted in batch]
        call = self._network if batch[0].kind == "logits" else self._network.features
        try:
            with torch.inference_mode():
                clips = batch[0].clips if len(batch) == 1 else torch.cat([wanted.clips for wanted in batch])
                found = torch.split(call(clips), sizes)
        except Exception as fault:
            if len(batch) > 1:  # memory may be short: one after another
                for wanted in batch:
                    self._answer([wanted])
            else:
                batch[0].found.set_exception(fault)
            return
        self._on_batch(sum(sizes))
        for wanted, part in zip(batch, found, strict=True):
            wanted.found.set_result(part)


def batched(recognizer: Recognizer, network: BatchedNetwork) -> Recognizer:
    """The same recognizer, whose predictions use ``network``."""
    served = copy.copy(recognizer)
    served.network = network  # type: ignore[assignment]  # it is called as the others are
    return served
