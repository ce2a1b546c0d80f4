"""Overload: twice the peak request rate."""

from __future__ import annotations

from benchmarks.reliability.load import Load, start
from benchmarks.reliability.problems import heavy_bodies, heavy_qp
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row, milliseconds, quantile

__all__ = ["measure"]

_CLIENTS = 256
"""Largest number of outstanding requests of the open load."""

_SHARE, _REFUSAL_S = 0.9, 20e-3
"""Requirements: successful requests as a share of the peak, and p95 in seconds of a refusal."""


def measure(plan: Plan) -> list[Row]:
    """The peak is the rate of a closed load, with the same merging as under overload."""
    bodies = heavy_bodies()
    with Server(max_waiting=32, max_in_flight_per_key=64) as server:
        path = f"{server.register(heavy_qp())}/solve"
        start(Load(server.address, path, bodies, clients=4, seconds=2.0)).result()
        peak = start(Load(server.address, path, bodies, clients=32, seconds=plan.load_s)).result().rate
        load = Load(server.address, path, bodies, clients=_CLIENTS, seconds=plan.load_s, rate=2.0 * peak)
        tally = start(load).result()
    refused = tally.took.get(429, [])
    others = sum(count for status, count in tally.counts().items() if status not in (200, 429))
    worst = quantile(refused, 0.95)
    share = tally.rate / peak
    return [
        Row(
            "twice the peak load, solves of 20 ms",
            f"goodput >= {100 * _SHARE:g} % of peak, the rest 429 with Retry-After in <= {milliseconds(_REFUSAL_S)}, "
            "no other 5xx",
            f"{100 * share:.0f} % of {peak:.0f}/s; {len(refused)} of {sum(tally.counts().values())} refused, "
            f"p95 {milliseconds(worst)}, median {milliseconds(quantile(refused, 0.5))}; {others} others",
            share >= _SHARE and worst <= _REFUSAL_S and others == 0 and not tally.without_retry_after,
        )
    ]
