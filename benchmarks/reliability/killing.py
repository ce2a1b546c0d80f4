"""Workers killed under load."""

from __future__ import annotations

import random
import time

import psutil

from benchmarks.reliability.load import Load, start
from benchmarks.reliability.problems import body, heavy_qp, heavy_values
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row

__all__ = ["measure"]

_SIZE = 400
"""Variables of the problem, 20 ms a solve."""

_CLIENTS = 8
"""Concurrent clients."""

_PAUSE_S = 2.0
"""Seconds between kills."""

_WORKERS = 2
"""Workers of the server."""


def measure(plan: Plan) -> list[Row]:
    """Kill workers one after another, including the standby; measure failures and recovery times."""
    generator = random.Random(0)
    bodies = [body(heavy_values(seed, _SIZE)) for seed in range(16)]
    back = []
    with Server(workers=_WORKERS) as server:
        path = f"{server.register(heavy_qp(_SIZE))}/solve"
        start(Load(server.address, path, bodies, clients=_CLIENTS, seconds=2.0)).result()
        descriptors = server.descriptors()
        load = start(Load(server.address, path, bodies, _CLIENTS, seconds=plan.count * (_PAUSE_S + 5.0)))
        for _ in range(plan.count):
            time.sleep(_PAUSE_S)
            try:
                generator.choice(server.workers()).kill()
            except psutil.NoSuchProcess:
                continue
            back.append(server.wait_for_workers())
        tally = load.result()
        server.wait_for_workers()
        leaked = server.descriptors() - descriptors
    counts = tally.counts()
    wrong = tally.failed - counts.get(503, 0)
    return [
        Row(
            f"SIGKILL a worker under load, {plan.count} times",
            "only its in-flight requests fail, as 503; recovery in <= 5 s; nothing else fails",
            f"{counts.get(503, 0)} of {sum(counts.values())} requests were 503, {wrong} failed otherwise; recovery in "
            f"{max(back, default=0.0):.2f} s at most; {leaked:+d} descriptors",
            wrong == 0 and tally.failed <= _CLIENTS * plan.count and max(back, default=0.0) <= 5.0,
        )
    ]
