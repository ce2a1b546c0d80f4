"""Throughput of 64 concurrent clients of one small problem, with and without merging."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from dataclasses import dataclass

import numpy as np

from benchmarks.reliability.load import Load, start
from benchmarks.reliability.problems import body, dense_qp, dense_values
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row
from convexlayer_server import Settings
from convexlayer_server.compute.local_backend import LocalBackend
from convexlayer_server.compute.protocol import ComputeRequest

__all__ = ["measure"]

_CLIENTS = 64
"""Concurrent clients, the number of the requirement."""

_ROUNDS = 3
"""Rounds in which the variants alternate, so that a slow machine affects both."""


_DIRECT_GAIN, _HTTP_GAIN, _SINGLE_GAIN = 5.0, 1.5, 0.97
"""Requirements for the gain by merging: compute backend alone, over HTTP, and for one client, where 0.97 is noise."""


@dataclass(frozen=True)
class _Rates:
    """Solves per second, without and with merging."""

    off: float
    on: float

    @property
    def gain(self) -> float:
        """Ratio of the rates."""
        return self.on / self.off


def measure(plan: Plan) -> list[Row]:
    """Measure the compute backend directly, over HTTP, and with a single client."""
    direct = asyncio.run(_backend_rates(plan.load_s / 2))
    many, one = _over_http(plan.load_s / 2)
    return [
        Row(
            "64 concurrent clients, dense QP of 10, batching on compared with off, compute backend alone",
            f">= {_DIRECT_GAIN:g} x",
            f"{direct.gain:.1f} x ({direct.off:.0f} -> {direct.on:.0f} solves/s)",
            direct.gain >= _DIRECT_GAIN,
        ),
        Row(
            "the same over HTTP",
            f">= {_HTTP_GAIN:g} x, and never slower for one client",
            f"{many.gain:.2f} x ({many.off:.0f} -> {many.on:.0f} solves/s); one client {one.gain:.2f} x "
            f"({one.off:.0f} -> {one.on:.0f})",
            many.gain >= _HTTP_GAIN and one.gain >= _SINGLE_GAIN,
        ),
    ]


async def _backend_rates(seconds: float) -> _Rates:
    document, rates = json.dumps(dense_qp()).encode(), []
    requests = [
        ComputeRequest(request_id="", problem_id="p", operation="solve", parameters=dense_values(seed))
        for seed in range(_CLIENTS)
    ]
    backends = [LocalBackend(Settings(batching=batching)) for batching in (False, True)]
    for backend in backends:
        await backend.open()
        await backend.register("p", document)
        await _calls(backend, document, requests, 2.0)
    rates = [
        [await _calls(backend, document, requests, seconds / _ROUNDS) for backend in backends] for _ in range(_ROUNDS)
    ]
    for backend in backends:
        await backend.close()
    return _Rates(*np.median(rates, axis=0))


async def _calls(backend: LocalBackend, document: bytes, requests: list[ComputeRequest], seconds: float) -> float:
    """Return requests per second."""
    count, start = 0, time.perf_counter()

    async def call(request: ComputeRequest) -> None:
        nonlocal count
        while time.perf_counter() < start + seconds:
            own = ComputeRequest(
                request_id=uuid.uuid4().hex, problem_id="p", operation="solve", parameters=request.parameters
            )
            await backend.run(own, document)
            count += 1

    await asyncio.gather(*(call(request) for request in requests))
    return count / (time.perf_counter() - start)


def _over_http(seconds: float) -> tuple[_Rates, _Rates]:
    bodies = [body(dense_values(seed)) for seed in range(_CLIENTS)]
    many: list[list[float]] = []
    one: list[list[float]] = []
    with Server(batching=False) as off, Server(batching=True) as on:
        paths = [server.register(dense_qp()) for server in (off, on)]
        for number in range(_ROUNDS + 1):  # the first is a warm-up
            for rates, clients in ((many, _CLIENTS), (one, 1)):
                loads = [
                    Load(server.address, f"{path}/solve", bodies, clients, seconds / _ROUNDS)
                    for server, path in zip((off, on), paths, strict=True)
                ]
                found = [start(load).result().rate for load in loads]
                if number:
                    rates.append(found)
    return _Rates(*np.median(many, axis=0)), _Rates(*np.median(one, axis=0))
