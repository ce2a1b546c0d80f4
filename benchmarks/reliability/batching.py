"""Sixty-four callers of one small problem, their requests merged or not."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from dataclasses import dataclass

import numpy as np

from benchmarks.reliability.load import Load, started
from benchmarks.reliability.problems import body, dense_qp, dense_values
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row
from convexlayer_server import Settings
from convexlayer_server.compute.local_backend import LocalBackend
from convexlayer_server.compute.protocol import ComputeRequest

__all__ = ["measure"]

_CALLERS = 64
_ROUNDS = 3


@dataclass(frozen=True)
class _Rates:
    """Solves a second, without and with merging."""

    off: float
    on: float

    @property
    def gain(self) -> float:
        """How many times more."""
        return self.on / self.off


def measure(plan: Plan) -> list[Row]:
    """At the engine's seam, over HTTP, and for a single caller."""
    seam = asyncio.run(_at_the_seam(plan.seconds / 2))
    many, one = _over_http(plan.seconds / 2)
    return [
        Row(
            "64 concurrent callers, dense QP of 10, batching on against off, at the engine's seam",
            ">= 5 x",
            f"{seam.gain:.1f} x ({seam.off:.0f} -> {seam.on:.0f} solves/s)",
            seam.gain >= 5.0,
        ),
        Row(
            "the same over HTTP",
            ">= 1.5 x, and never slower for one client",
            f"{many.gain:.2f} x ({many.off:.0f} -> {many.on:.0f} solves/s); one client {one.gain:.2f} x "
            f"({one.off:.0f} -> {one.on:.0f})",
            many.gain >= 1.5 and one.gain >= 0.97,
        ),
    ]


async def _at_the_seam(seconds: float) -> _Rates:
    document, rates = json.dumps(dense_qp()).encode(), []
    requests = [
        ComputeRequest(request_id="", problem_id="p", operation="solve", parameters=dense_values(seed))
        for seed in range(_CALLERS)
    ]
    engines = [LocalBackend(Settings(batching=batching)) for batching in (False, True)]
    for engine in engines:
        await engine.open()
        await engine.register("p", document)
        await _calls(engine, document, requests, 2.0)
    rates = [
        [await _calls(engine, document, requests, seconds / _ROUNDS) for engine in engines] for _ in range(_ROUNDS)
    ]
    for engine in engines:
        await engine.close()
    return _Rates(*np.median(rates, axis=0))


async def _calls(engine: LocalBackend, document: bytes, requests: list[ComputeRequest], seconds: float) -> float:
    """Requests a second."""
    count, start = 0, time.perf_counter()

    async def call(request: ComputeRequest) -> None:
        nonlocal count
        while time.perf_counter() < start + seconds:
            own = ComputeRequest(
                request_id=uuid.uuid4().hex, problem_id="p", operation="solve", parameters=request.parameters
            )
            await engine.run(own, document)
            count += 1

    await asyncio.gather(*(call(request) for request in requests))
    return count / (time.perf_counter() - start)


def _over_http(seconds: float) -> tuple[_Rates, _Rates]:
    bodies = [body(dense_values(seed)) for seed in range(_CALLERS)]
    many: list[list[float]] = []
    one: list[list[float]] = []
    with Server(batching=False) as off, Server(batching=True) as on:
        paths = [server.register(dense_qp()) for server in (off, on)]
        for number in range(_ROUNDS + 1):  # the first is for warmth
            for rates, callers in ((many, _CALLERS), (one, 1)):
                loads = [
                    Load(server.address, f"{path}/solve", bodies, callers, seconds / _ROUNDS)
                    for server, path in zip((off, on), paths, strict=True)
                ]
                found = [started(load).result().rate for load in loads]
                if number:
                    rates.append(found)
    return _Rates(*np.median(many, axis=0)), _Rates(*np.median(one, axis=0))
