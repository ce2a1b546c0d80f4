"""Overhead of the service over the library, and liveness while all workers are busy."""

from __future__ import annotations

import json
import time

import numpy as np

import convexlayer
from benchmarks.reliability.load import Load, start
from benchmarks.reliability.problems import body, heavy_qp, heavy_values, least_squares, values_of
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row, milliseconds, percentile
from convexlayer_server import Settings
from convexlayer_server.compute.canonical import canonicalise_document
from convexlayer_server.documents import identify
from convexlayer_server.documents.grammar import Grammar

__all__ = ["library", "measure"]

_WARM = 50
"""Requests before the measurement."""

_PROBE_S = 0.02
"""Seconds between probes."""


def library(document: dict[str, object]) -> convexlayer.SolutionMap:
    """Return the solution map of a document in this process."""
    settings = Settings()
    read = identify(json.dumps(document).encode(), settings)
    return canonicalise_document(read.id, read.text, Grammar(settings), settings).solution_map("auto")


def measure(plan: Plan) -> list[Row]:
    """Measure both on one server."""
    with Server() as server:
        return [_overhead(server, plan), _liveness(server, plan)]


def _overhead(server: Server, plan: Plan) -> Row:
    """Measure one client, alternating with the library, whose median is subtracted."""
    document = least_squares()
    path, here = server.register(document), library(document)
    inside, outside = [], []
    with server.client() as client:
        end, number = time.monotonic() + plan.seconds, 0
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
    median, worst = percentile(over, 0.5), percentile(over, 0.99)
    return Row(
        "overhead of solve over the library, 10 kB, one client",
        "median <= 3 ms, p99 <= 10 ms",
        f"median {milliseconds(median)}, p99 {milliseconds(worst)} (library {milliseconds(expected)})",
        median <= 3e-3 and worst <= 10e-3,
    )


def _liveness(server: Server, plan: Plan) -> Row:
    """Measure /healthz while more clients than workers solve for 20 ms each."""
    size = 400
    path = server.register(heavy_qp(size))
    bodies = [body(heavy_values(seed, size)) for seed in range(16)]
    load = start(Load(server.address, f"{path}/solve", bodies, clients=8, seconds=plan.seconds + 2.0))
    time.sleep(2.0)  # until the load has started
    took = []
    with server.client() as client:
        while not load.done():
            answer = client.get("/healthz")
            assert answer.status == 200, answer.body
            took.append(answer.seconds)
            time.sleep(_PROBE_S)
    tally = load.result()
    worst = percentile(took, 0.99)
    return Row(
        "healthz while workers are saturated",
        "p99 <= 20 ms",
        f"p99 {milliseconds(worst)}, median {milliseconds(percentile(took, 0.5))}; {tally.rate:.0f} solves/s",
        worst <= 20e-3 and set(tally.took) == {200},
    )
