"""A flood of requests of one key: effect on another key."""

from __future__ import annotations

from benchmarks.reliability.load import Load, Tally, start
from benchmarks.reliability.problems import heavy_bodies, heavy_qp
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row, milliseconds, quantile

__all__ = ["measure"]

_KEYS = ("flood", "other")
_SIZES = (400, 401)
"""Variables of the problems of both keys, 20 ms a solve; they differ, so that requests of the keys cannot be merged."""

_FLOOD = 64
"""Clients of the flood."""

_SLOWDOWN = 2.0
"""Requirement: p95 of the other key during the flood, as a multiple of that without."""


def measure(plan: Plan) -> list[Row]:
    """Measure one client of the other key, alone and then during the flood, each with its own problem."""
    with Server(keys=_KEYS) as server:
        paths = [f"{server.register(heavy_qp(size), key)}/solve" for size, key in zip(_SIZES, _KEYS, strict=True)]
        bodies = [heavy_bodies(size) for size in _SIZES]

        def load(who: int, clients: int, seconds: float) -> Load:
            headers = server.headers(_KEYS[who])
            return Load(server.address, paths[who], bodies[who], clients, seconds, headers=headers)

        for who in range(len(_SIZES)):
            start(load(who, 4, 2.0)).result()
        alone = start(load(1, 1, plan.load_s)).result()
        flood = start(load(0, _FLOOD, plan.load_s + 1.0))
        during = start(load(1, 1, plan.load_s)).result()
        flooding = flood.result()
    return [_row(alone, during, flooding)]


def _row(alone: Tally, during: Tally, flood: Tally) -> Row:
    before, after = (quantile(tally.good, 0.95) for tally in (alone, during))
    return Row(
        f"a flood of one key ({_FLOOD} clients)",
        f"p95 of another key at most {_SLOWDOWN:g} x",
        f"{milliseconds(before)} -> {milliseconds(after)} ({after / before:.2f} x), {during.failed} failed; the flood "
        f"gets {flood.rate:.0f}/s",
        after <= _SLOWDOWN * before and during.failed == 0,
    )
