"""Metrics for Prometheus. They name neither keys nor problems, so they cannot grow without bound."""

from __future__ import annotations

from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
_ELEMENTS = tuple(2**power for power in range(0, 14, 2))


@final
class Metrics:
    """What one server counts.

    Attributes:
        requests: seconds of requests, by method, route and status.
        queue: seconds that requests waited for the engine, by operation.
        compute: seconds that they were in it, by operation.
        elements: elements of their batches, by operation.
        refused: requests refused before their bodies were read, and connections, by the slug of the problem.
        connections: connections that are open.
        held: bytes held for requests: their bodies, arrays and answers.
        waiting: requests that wait for the engine.
        unread: large bodies that wait to be read.
        running: requests in it.
        compiled: problems that it holds compiled.
        workers: workers that can compute.
        replaced: workers that were replaced.
        portable: 1 where workers compute without compiled kernels, else 0.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)

        def histogram(name: str, text: str, labels: list[str], buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"convexlayer_{name}", text, labels, buckets=buckets, registry=self._registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"convexlayer_{name}", text, registry=self._registry)

        self.requests = histogram("request_seconds", "Requests served", ["method", "route", "status"])
        self.queue = histogram("queue_seconds", "Waiting for the engine", ["operation"])
        self.compute = histogram("compute_seconds", "In the engine", ["operation"])
        self.elements = histogram("batch_elements", "Elements of a request", ["operation"], _ELEMENTS)
        self.refused = Counter("convexlayer_refused", "Refused at the gate", ["reason"], registry=self._registry)
        self.connections = gauge("connections", "Open connections")
        self.held = gauge("held_bytes", "Held for requests")
        self.waiting = gauge("waiting_requests", "Waiting for the engine")
        self.unread = gauge("waiting_bodies", "Waiting to be read")
        self.running = gauge("running_requests", "In the engine")
        self.compiled = gauge("compiled_problems", "Problems held compiled")
        self.workers = gauge("workers", "Workers that can compute")
        self.replaced = gauge("workers_replaced", "Workers replaced since the start")
        self.portable = gauge("kernels_portable", "Whether workers compute without compiled kernels")

    def written(self) -> bytes:
        """All of them, in the text format of Prometheus."""
        return generate_latest(self._registry)
