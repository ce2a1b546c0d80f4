"""Throughput of small problems with 64 clients, and CPU time per request, by process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import final

from benchmarks.reliability.load import Load, start
from benchmarks.reliability.problems import body, dense_qp, dense_values
from benchmarks.reliability.server import Server, cpu_s
from benchmarks.reliability.table import Plan, Row, milliseconds, quantile

__all__ = ["measure"]

_CLIENTS = 64
"""Concurrent clients, the number of the requirement."""

_BODIES = 256
"""Number of different requests."""

_ROUNDS = 4
"""Rounds in which the servers alternate, so that a slow machine affects both."""

_GAIN, _SPREAD = 3.0, 3.0
"""Requirements: throughput as a multiple of the other server's, and p99 as a multiple of p50."""


@final
@dataclass
class _Measured:
    """Measurements of one server.

    Attributes:
        rates: requests per second, by round.
        took: seconds of every request.
        failed: number of failed requests.
        cpu_s: CPU seconds, by process.
    """

    rates: list[float]
    took: list[float]
    failed: int
    cpu_s: dict[str, float]

    def __str__(self) -> str:
        middle, worst = (milliseconds(quantile(self.took, share)) for share in (0.5, 0.99))
        each = ", ".join(f"{who} {milliseconds(seconds / len(self.took))}" for who, seconds in self.cpu_s.items())
        return f"{quantile(self.rates, 0.5):.0f}/s, p50 {middle}, p99 {worst}; CPU time of each: {each}"


def measure(plan: Plan) -> Iterator[Row]:
    """Measure one row; with another checkout, two, alternating between the servers."""
    sources = [None] if plan.against is None else [plan.against, None]
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(source=source)) for source in sources]
        loads = [_load(server, plan.load_s / _ROUNDS) for server in servers]
        found = [_Measured([], [], 0, {}) for _ in servers]
        for load in loads:
            start(load).result()  # warm-up
        for _ in range(_ROUNDS):
            for server, load, measured in zip(servers, loads, found, strict=True):
                _add_round(server, load, measured)
    here, log = found[-1], servers[-1].log
    what = f"{_CLIENTS} clients, dense QP of 10, over HTTP"
    even = quantile(here.took, 0.99) <= _SPREAD * quantile(here.took, 0.5)
    text = f"{here}; {here.failed} failed"
    yield Row(what, f"p99 <= {_SPREAD:g} x p50, none fails", text, even and not here.failed).with_log(log)
    if plan.against is not None:
        before, after = (quantile(measured.rates, 0.5) for measured in found)
        text = f"{after / before:.2f} x; there {found[0]}"
        yield Row(f"{what}, against {plan.against}", f">= {_GAIN:g} x", text, after >= _GAIN * before)


def _load(server: Server, seconds: float) -> Load:
    bodies = [body(dense_values(seed)) for seed in range(_BODIES)]
    return Load(server.address, f"{server.register(dense_qp())}/solve", bodies, _CLIENTS, seconds)


def _add_round(server: Server, load: Load, measured: _Measured) -> None:
    before = [cpu_s(server.front()), cpu_s(server.workers())]
    tally = start(load).result()
    after = [cpu_s(server.front()), cpu_s(server.workers())]
    measured.rates.append(tally.rate)
    measured.took += tally.good
    measured.failed += tally.failed
    spent = [*(end - start for start, end in zip(before, after, strict=True)), tally.cpu_s]
    for who, seconds in zip(("server", "workers", "load"), spent, strict=True):
        measured.cpu_s[who] = measured.cpu_s.get(who, 0.0) + seconds
