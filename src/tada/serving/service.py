"""Answers: from an uploaded video to what ``tada predict`` or ``tada localize`` would print of it as JSON."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from tada.localization.localizer import Localizer
from tada.recognition.recognizer import Recognizer
from tada.serving.batches import BatchedNetwork, batched
from tada.serving.limits import Limits
from tada.serving.metrics import Metrics
from tada.serving.uploads import Refusal, received
from tada.video.isolation.readers import OpenedVideos, Readers, Upload

_LONGEST_RETRY_SECONDS = 60
_GONE = Refusal(499, "disconnected", "the client has gone")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a request may say beside the video."""

    top: int = 5
    """Of a recognizer: classes to name."""
    clips: int | None = None
    """Of a recognizer: number of clips, spread over the video or each window."""
    window_seconds: float | None = None
    """Of a recognizer: divide the video into windows this long."""
    min_score: float | None = None
    """Of a localizer: lowest score, in place of each class's own threshold."""


class Service:
    """A model that answers requests, within limits.

    Args:
        folder: an existing folder for uploads.
    """

    def __init__(self, model: Recognizer | Localizer, readers: Readers, limits: Limits, folder: Path) -> None:
        self.limits, self.metrics, self.folder = limits, Metrics(), folder
        self.model = model
        self._readers = readers
        recognizer = model if isinstance(model, Recognizer) else model.feature_maker()[0]
        self._network = BatchedNetwork(
            recognizer.network, max_clips=limits.max_batch, on_batch=self.metrics.batches.observe
        )
        self._served: Recognizer | Localizer = batched(recognizer, self._network)
        if isinstance(model, Localizer):
            localizer = copy.copy(model)
            localizer.backbone = self._served
            self._served = localizer
        self._threads = ThreadPoolExecutor(limits.concurrent, thread_name_prefix="answer")
        self._slots = asyncio.Semaphore(limits.concurrent)
        self._num_requests = 0
        self._usual_seconds = 1.0
        self.is_ending = False

    @property
    def is_recognizer(self) -> bool:
        """Whether it says what happens; else it says when."""
        return isinstance(self.model, Recognizer)

    def close(self) -> None:
        """End the threads; no request may run."""
        self._threads.shutdown()
        self._network.close()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request.

        Raises:
            Refusal: too many are here.
        """
        limits = self.limits
        if self._num_requests >= limits.concurrent + limits.max_waiting:
            rounds = self._num_requests / limits.concurrent
            seconds = min(max(1, math.ceil(self._usual_seconds * rounds / 2)), _LONGEST_RETRY_SECONDS)
            raise Refusal(
                503,
                "busy",
                f"{self._num_requests} requests are being answered or wait, which is this server's limit; try again in "
                f"{seconds} s",
                retry_seconds=seconds,
            )
        self._num_requests += 1
        self.metrics.requests.inc()
        try:
            yield
        finally:
            self._num_requests -= 1
            self.metrics.requests.dec()

    @asynccontextmanager
    async def upload(
        self, body: AsyncIterator[bytes], content_type: str, content_length: str | None
    ) -> AsyncIterator[Upload]:
        """Receive a video; see ``received``."""

        async def counted_body() -> AsyncIterator[bytes]:
            async for data in body:
                self.metrics.uploaded.inc(len(data))
                yield data

        async with received(counted_body(), content_type, content_length, self.folder, self.limits) as upload:
            yield upload

    async def answer(
        self, upload: Upload, options: Options, disconnected: Callable[[], Awaitable[None]]
    ) -> dict[str, Any]:
        """The answer for a video, as the command line's JSON has it.

        Args:
            disconnected: returns when the client has gone, and with it the reason to go on.

        Raises:
            VideoError: the video cannot be read within the limits.
            OptionError: the options do not suit the model.
            Refusal: it took too long, or the client has gone.
        """
        limits = self.limits
        late = Refusal(
            503,
            "timeout",
            f"{upload.name!r} has no answer after {limits.answer_seconds:g} s, which is this server's limit; send a "
            "shorter video, or try again later",
            retry_seconds=1,
        )
        deadline = monotonic() + limits.answer_seconds
        gone = asyncio.ensure_future(disconnected())
        slot = asyncio.ensure_future(self._slots.acquire())
        try:
            await asyncio.wait({slot, gone}, timeout=limits.answer_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not slot.done():
                raise _GONE if gone.done() else late
            return await self._process(upload, options, gone, deadline, late)
        finally:
            gone.cancel()
            if slot.done():
                self._slots.release()
            slot.cancel()
            await asyncio.wait({slot, gone})

    async def _process(
        self, upload: Upload, options: Options, gone: asyncio.Future[None], deadline: float, late: Refusal
    ) -> dict[str, Any]:
        opened = OpenedVideos()
        begin = monotonic()
        self.metrics.processing.inc()
        work: asyncio.Future[Any] = asyncio.ensure_future(
            asyncio.get_running_loop().run_in_executor(self._threads, self._predict, upload, options, opened)
        )
        try:
            await asyncio.wait({work, gone}, timeout=deadline - begin, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                found: dict[str, Any] = work.result()
                return found
            refusal = _GONE if gone.done() else late
            opened.stop(refusal.message)
            await asyncio.wait({work})  # the slot is free when the thread is
            with suppress(Exception):
                work.result()
            raise refusal
        finally:
            if not work.done():  # the server ends in a hurry
                opened.stop("the server ends")
            self.metrics.processing.dec()
            seconds = monotonic() - begin
            self.metrics.processing_seconds.observe(seconds)
            self._usual_seconds += 0.1 * (seconds - self._usual_seconds)

    def _predict(self, upload: Upload, options: Options, opened: OpenedVideos) -> dict[str, Any]:
        source = self._readers.source(upload, opened, self.limits.decoding)
        if isinstance(self._served, Localizer):
            return self._served.localize(source, min_score=options.min_score).as_dict()
        prediction = self._served.predict(source, num_clips=options.clips, window_seconds=options.window_seconds)
        return prediction.as_dict(options.top)
