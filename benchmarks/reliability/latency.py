"""Overhead of the service over the library, and liveness while all workers are busy."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.reliability.load import Load, start
from benchmarks.reliability.problems import body, heavy_bodies, heavy_qp, least_squares, solution_map, values_of
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row, milliseconds, quantile

__all__ = ["measure"]

_WARM = 50
"""Requests before the measurement."""

_PROBE_S = 0.02
"""Seconds between probes."""

_OVERHEAD_P50_S, _OVERHEAD_P99_S, _PROBE_P99_S = 3e-3, 10e-3, 20e-3
"""Requirements in seconds: median and p99 of the overhead, and p99 of a probe."""

_START_S = 2.0
"""Seconds until a load has started."""


def measure(plan: Plan) -> list[Row]:
    """Measure both on one server."""
    with Server() as server:
        return [_overhead(server, plan), _liveness(server, plan)]


def _overhead(server: Server, plan: Plan) -> Row:
    """Measure one client, alternating with the library, whose median is subtracted."""
    document = least_squares()
    path, here = server.register(document), solution_map(document)
    inside, outside = [], []
    with server.client() as client:
        end, number = time.monotonic() + plan.load_s, 0
        while time.monotonic() < end or number <= 2 * _WARM:
            values = values_of(document, number)
            start = time.perf_counter()
            here.solve(list(values.values()))
            inside.append(time.perf_counter() - start)
            answer = client.post(f"{path}/solve", body(values))
            assert answer.status == 200, answer.body
            outside.append(answer.seconds)
            number += 1
    expected = float(np.median(inside[_WARM:]))
    over = [seconds - expected for seconds in outside[_WARM:]]
    median, worst = quantile(over, 0.5), quantile(over, 0.99)
    return Row(
        "overhead of solve over the library, 10 kB, one client",
        f"median <= {milliseconds(_OVERHEAD_P50_S)}, p99 <= {milliseconds(_OVERHEAD_P99_S)}",
        f"median {milliseconds(median)}, p99 {milliseconds(worst)} (library {milliseconds(expected)})",
        median <= _OVERHEAD_P50_S and worst <= _OVERHEAD_P99_S,
    )


def _liveness(server: Server, plan: Plan) -> Row:
    """Measure /healthz while more clients than workers solve for 20 ms each."""
    path = server.register(heavy_qp())
    load = start(Load(server.address, f"{path}/solve", heavy_bodies(), clients=8, seconds=plan.load_s + _START_S))
    time.sleep(_START_S)
    took = []
    with server.client() as client:
        while not load.done():
            answer = client.get("/healthz")
            assert answer.status == 200, answer.body
            took.append(answer.seconds)
            time.sleep(_PROBE_S)
    tally = load.result()
    worst = quantile(took, 0.99)
    return Row(
        "healthz while workers are saturated",
        f"p99 <= {milliseconds(_PROBE_P99_S)}",
        f"p99 {milliseconds(worst)}, median {milliseconds(quantile(took, 0.5))}; {tally.rate:.0f} solves/s",
        worst <= _PROBE_P99_S and set(tally.took) == {200},
    )
