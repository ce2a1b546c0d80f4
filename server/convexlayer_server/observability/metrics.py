"""Prometheus metrics. Their labels contain neither keys nor problems, so their number is bounded."""

from __future__ import annotations

from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
"""Upper bounds of the histograms of durations, from a small solve to a long job."""

_ELEMENTS_BUCKETS = tuple(2**power for power in range(0, 14, 2))
"""Upper bounds of the histogram of batch sizes."""


@final
class Metrics:
    """The metrics of one server.

    Attributes:
        requests: seconds of requests, by method, route and status.
        queue: seconds that requests waited in the queue, by operation.
        compute: seconds of computing, by operation.
        elements: batch sizes, by operation.
        refused: refused connections, and requests refused before their bodies were read, by slug.
        connections: open connections.
        held: bytes held for requests.
        waiting: requests in the queue.
        waiting_bodies: large bodies that wait for a parser.
        running: requests in the compute backend.
        cached_problems: problems that workers hold canonicalised.
        workers: workers that can compute.
        replaced: workers that ended unexpectedly.
        portable: 1 if a worker runs the portable kernels, else 0.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)

        def histogram(
            name: str, text: str, labels: list[str], buckets: tuple[float, ...] = _SECONDS_BUCKETS
        ) -> Histogram:
            return Histogram(f"convexlayer_{name}", text, labels, buckets=buckets, registry=self._registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"convexlayer_{name}", text, registry=self._registry)

        self.requests = histogram("request_seconds", "Duration of requests", ["method", "route", "status"])
        self.queue = histogram("queue_seconds", "Time in the queue", ["operation"])
        self.compute = histogram("compute_seconds", "Time in the compute backend", ["operation"])
        self.elements = histogram("batch_elements", "Elements of a request", ["operation"], _ELEMENTS_BUCKETS)
        self.refused = Counter(
            "convexlayer_refused", "Refused connections and requests", ["reason"], registry=self._registry
        )
        self.connections = gauge("connections", "Open connections")
        self.held = gauge("held_bytes", "Bytes held for requests")
        self.waiting = gauge("waiting_requests", "Requests in the queue")
        self.waiting_bodies = gauge("waiting_bodies", "Large bodies that wait for a parser")
        self.running = gauge("running_requests", "Requests in the compute backend")
        self.cached_problems = gauge("cached_problems", "Problems that workers hold canonicalised")
        self.workers = gauge("workers", "Workers that can compute")
        self.replaced = gauge("workers_replaced", "Workers replaced since the start")
        self.portable = gauge("kernels_portable", "Whether a worker runs the portable kernels")

    def exposition(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
