"""Workers killed under load."""

from __future__ import annotations

import random
import time

import psutil

from benchmarks.reliability.load import Load, start
from benchmarks.reliability.problems import heavy_bodies, heavy_qp
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row

__all__ = ["measure"]

_CLIENTS = 8
"""Concurrent clients."""

_PAUSE_S = 2.0
"""Seconds between kills."""

_WORKERS = 2
"""Workers of the server."""

_RECOVERY_S = 5.0
"""Requirement: seconds from a kill until all workers are ready."""


def measure(plan: Plan) -> list[Row]:
    """Kill workers one after another, including the standby; measure failures and recovery times."""
    generator = random.Random(0)
    bodies = heavy_bodies()
    back = []
    with Server(workers=_WORKERS) as server:
        path = f"{server.register(heavy_qp())}/solve"
        start(Load(server.address, path, bodies, clients=_CLIENTS, seconds=2.0)).result()
        descriptors = server.descriptors()
        load = start(Load(server.address, path, bodies, _CLIENTS, seconds=plan.kills * (_PAUSE_S + _RECOVERY_S)))
        for _ in range(plan.kills):
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
            f"SIGKILL a worker under load, {plan.kills} times",
            f"only its in-flight requests fail, as 503; recovery in <= {_RECOVERY_S:g} s; nothing else fails",
            f"{counts.get(503, 0)} of {sum(counts.values())} requests were 503, {wrong} failed otherwise; recovery in "
            f"{max(back, default=0.0):.2f} s at most; {leaked:+d} descriptors",
            wrong == 0 and tally.failed <= _CLIENTS * plan.kills and max(back, default=0.0) <= _RECOVERY_S,
        )
    ]
