"""Slow work of one key, of several kinds: effect on another key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.reliability.attack import Attack
from benchmarks.reliability.bystander import Bystander
from benchmarks.reliability.load import Load, run
from benchmarks.reliability.problems import (
    HARD,
    body,
    dense_batch,
    dense_qp,
    heavy_bodies,
    heavy_qp,
    many_cones,
    nearest_correlation,
)
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row

__all__ = ["measure"]

_MAX_DURATION_S = 120.0
"""Limit of a load in seconds; it is stopped earlier."""

_TIMEOUT_S = 0.6
"""Seconds after which clients abort."""


@dataclass(frozen=True)
class _Work:
    """The work of one key.

    Attributes:
        what: description.
        document: its problem; None if it registers documents.
        bodies: bodies of its requests.
        clients: number of concurrent clients.
        timeout_s: seconds after which they disconnect.
    """

    what: str
    document: dict[str, object] | None
    bodies: Sequence[bytes]
    clients: int
    timeout_s: float = _MAX_DURATION_S


def measure(plan: Plan) -> Iterator[Row]:
    """Measure each kind on a new server."""
    return map(partial(_row, plan), _works())


def _works() -> list[_Work]:
    storm = f"16 clients that abort solves of a minute after {_TIMEOUT_S:g} s"
    flood = heavy_bodies()
    batches = [body(dense_batch(seed, 3000, 12), options={"solver": "osqp"}) for seed in range(4)]  # 4 ms each
    exact = [body(_symmetric(seed, 64, 30), options={"tol": 1e-15}) for seed in range(2)]
    hard = heavy_bodies(options=HARD)
    documents = [json.dumps(many_cones(300, seed)).encode() for seed in range(1, 500)]
    return [
        _Work("a flood of 64 clients, 20 ms each", heavy_qp(), flood, 64),
        _Work("four batches of 3,000 small problems", dense_qp(12), batches, 4),
        _Work("two batches of 64 semidefinite programs, tol 1e-15", nearest_correlation(30), exact, 2),
        _Work("four solves of a minute each, by SCS", heavy_qp(), hard, 4),
        _Work(storm, heavy_qp(), hard, 16, _TIMEOUT_S),
        _Work("four clients that register new problems, seconds each", None, documents, 4),
    ]


def _row(plan: Plan, work: _Work) -> Row:
    with Server(keys=("attacker", "victim")) as server:
        path = "/v1/problems" if work.document is None else f"{server.register(work.document, 'attacker')}/solve"
        load = Load(
            server.address,
            path,
            work.bodies,
            work.clients,
            _MAX_DURATION_S,
            headers=server.headers("attacker"),
            timeout_s=work.timeout_s,
        )
        attack = Attack(run, load)
        effect = Bystander(server, "victim").measure(attack, plan)
    return effect.row(work.what, f"the attacker {attack.outcome}").with_log(server.log)


def _symmetric(seed: int, batch: int, size: int) -> dict[str, np.ndarray]:
    values = np.random.default_rng(seed).standard_normal((batch, size, size))
    return {"A": (values + values.transpose(0, 2, 1)) / 2.0}
