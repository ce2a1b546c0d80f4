"""Soak test: drift of memory and file descriptors under a long load, at a share of the largest rate."""

from __future__ import annotations

import json
import time

import numpy as np

from benchmarks.reliability.load import Load, start
from benchmarks.reliability.problems import body, least_squares, values_of
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row

__all__ = ["measure"]

_SAMPLE_S = 1.0
"""Seconds between samples of memory and file descriptors."""

_BODIES = 64
"""Number of different requests."""

_CLIENTS = 16
"""Largest number of outstanding requests."""

_LOAD = 0.7
"""Rate of the load, as a share of the largest rate."""

_DRIFT = 0.05
"""Requirement: growth of the memory, as a share of it."""


def measure(plan: Plan) -> list[Row]:
    """Compare memory in the second fifth of the time, after caches are full, with the last fifth."""
    document = least_squares()
    bodies = [body(values_of(document, seed), **{"return": ["variables", "state"]}) for seed in range(_BODIES)]
    resident, descriptors = [], []
    with Server(state_bytes=2**22) as server:
        path = f"{server.register(document)}/solve"
        warm = start(Load(server.address, path, bodies, clients=_CLIENTS, seconds=min(10.0, plan.load_s))).result()
        load = Load(server.address, path, bodies, _CLIENTS, seconds=plan.soak_s, rate=_LOAD * warm.rate)
        running = start(load)
        with server.client() as client:
            while not running.done():
                resident.append(server.resident_bytes())
                descriptors.append(server.descriptors())
                time.sleep(_SAMPLE_S)
            health = json.loads(client.get("/readyz").body)
        tally = running.result()
    fifth = max(1, len(resident) // 5)
    before, after = float(np.median(resident[fifth : 2 * fifth])), float(np.median(resident[-fifth:]))
    drift = after / before - 1.0
    leaked = int(np.median(descriptors[-fifth:]) - np.median(descriptors[fifth : 2 * fifth]))
    return [
        Row(
            f"soak test of {plan.soak_s / 60:.0f} minutes at {100 * _LOAD:.0f} % load",
            f"memory drift <= {100 * _DRIFT:g} %, no leaked descriptors",
            f"{100 * drift:+.1f} % of {before / 2**20:.0f} MiB, {leaked:+d} descriptors; {len(tally.good)} solves at "
            f"{tally.rate:.0f}/s, {tally.failed} failed, "
            f"{health['workers']} workers at the end",
            drift <= _DRIFT and leaked <= 0 and not tally.failed,
        )
    ]
