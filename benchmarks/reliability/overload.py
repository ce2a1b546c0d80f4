"""Overload: twice the peak request rate."""

from __future__ import annotations

from benchmarks.reliability.load import Load, start
from benchmarks.reliability.problems import body, heavy_qp, heavy_values
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row, milliseconds, percentile

__all__ = ["measure"]

_SIZE = 400
"""Variables of the problem, 20 ms a solve."""

_CLIENTS = 256
"""Largest number of outstanding requests of the open load."""


def measure(plan: Plan) -> list[Row]:
    """The peak is the rate of a closed load, with the same merging as under overload."""
    bodies = [body(heavy_values(seed, _SIZE)) for seed in range(16)]
    with Server(max_waiting=32, max_in_flight_per_key=64) as server:
        path = f"{server.register(heavy_qp(_SIZE))}/solve"
        start(Load(server.address, path, bodies, clients=4, seconds=2.0)).result()
        peak = start(Load(server.address, path, bodies, clients=32, seconds=plan.seconds)).result().rate
        load = Load(server.address, path, bodies, clients=_CLIENTS, seconds=plan.seconds, rate=2.0 * peak)
        tally = start(load).result()
    refused = tally.took.get(429, [])
    others = sum(count for status, count in tally.counts().items() if status not in (200, 429))
    worst = percentile(refused, 0.95)
    share = tally.rate / peak
    return [
        Row(
            "twice the peak load, solves of 20 ms",
            "goodput >= 90 % of peak, the rest 429 with Retry-After in <= 20 ms, no other 5xx",
            f"{100 * share:.0f} % of {peak:.0f}/s; {len(refused)} of {sum(tally.counts().values())} refused, "
            f"p95 {milliseconds(worst)}, median {milliseconds(percentile(refused, 0.5))}; {others} others",
            share >= 0.9 and worst <= 20e-3 and others == 0 and not tally.without_retry_after,
        )
    ]
