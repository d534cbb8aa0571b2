"""Metrics of a server, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """What a server counts. Each server has its own registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        own = self._registry
        self.answers = Counter(
            "tada_answers",
            "Answers by HTTP status; reason: ok, or the word of the error",
            ["status", "reason"],
            registry=own,
        )
        self.seconds = Histogram(
            "tada_answer_seconds", "From a request's first byte to its answer", buckets=_SECONDS, registry=own
        )
        self.processing_seconds = Histogram(
            "tada_processing_seconds",
            "Decoding and network of a video, without waiting",
            buckets=_SECONDS,
            registry=own,
        )
        self.uploaded = Counter("tada_uploaded_bytes", "Bytes of bodies that were received", registry=own)
        self.batches = Histogram(
            "tada_batch_clips",
            "Clips that passed the network at a time",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=own,
        )
        self.requests = Gauge("tada_requests", "Requests that are uploading, waiting or processed", registry=own)
        self.processing = Gauge("tada_processing", "Videos that are processed", registry=own)

    def text(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return bytes(generate_latest(self._registry))
