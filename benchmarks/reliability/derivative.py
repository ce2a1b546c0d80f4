"""Duration of a vjp from a kept state, compared with one from parameters."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.reliability.problems import body, portfolio
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row, milliseconds

__all__ = ["measure"]

_ASSETS, _FACTORS = 500, 20
"""Sizes of the portfolio problem, whose factorisation takes most of a vjp."""


_GAIN = 2.0
"""Requirement: how many times faster a vjp from a kept state is."""

_WARM = 5
"""Pairs before the measurement."""


def measure(plan: Plan) -> list[Row]:
    """Measure both alternately, each after a new solve."""
    rng = np.random.default_rng(0)
    handle, recompute = [], []
    with Server() as server, server.client() as client:
        path = server.register(portfolio(_ASSETS, _FACTORS))
        for _ in range(max(12, int(10 * plan.load_s))):
            values = {"mu": rng.uniform(0.0, 1.0, _ASSETS)}
            cotangents = {"w": rng.standard_normal(_ASSETS).tolist()}
            state = json.loads(client.post(f"{path}/solve", body(values, **{"return": ["state"]})).body)["state"]
            times = [
                client.post(f"{path}/vjp", body({}, state=state, cotangents=cotangents)),
                client.post(f"{path}/vjp", body(values, cotangents=cotangents)),
            ]
            first, second = (np.array(json.loads(answer.body)["gradients"]["mu"]) for answer in times)
            assert np.allclose(first, second, atol=1e-6), "the result must not depend on the state"
            handle.append(times[0].seconds)
            recompute.append(times[1].seconds)
    fast, slow = float(np.median(handle[_WARM:])), float(np.median(recompute[_WARM:]))
    return [
        Row(
            f"vjp by handle compared with recomputing, portfolio of {_ASSETS}",
            f">= {_GAIN:g} x faster",
            f"{slow / fast:.1f} x ({milliseconds(slow)} -> {milliseconds(fast)})",
            slow >= _GAIN * fast,
        )
    ]
