"""One key has long work of many kinds: what another key notices of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.reliability.attack import Attack
from benchmarks.reliability.load import Load, run
from benchmarks.reliability.problems import (
    HARD,
    body,
    dense_batch,
    dense_qp,
    heavy_qp,
    heavy_values,
    many_cones,
    nearest_correlation,
)
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row
from benchmarks.reliability.victim import Victim

__all__ = ["measure"]

_LONGEST_S = 120.0
_GIVEN_UP_S = 0.6
_HEAVY = 400  # 20 ms; a minute as exact as can be


@dataclass(frozen=True)
class _Work:
    """What one key does.

    Attributes:
        what: in words.
        document: its problem; None where it registers documents.
        bodies: of its requests.
        callers: how many at a time.
        timeout_s: for how long they wait.
    """

    what: str
    document: dict[str, object] | None
    bodies: Sequence[bytes]
    callers: int
    timeout_s: float = _LONGEST_S


def measure(plan: Plan) -> Iterator[Row]:
    """A server for each, so that none has to do with what another left behind."""
    return map(partial(_row, plan), _works())


def _works() -> list[_Work]:
    storm = f"16 connections that give up solves of a minute after {_GIVEN_UP_S:g} s"
    flood = [body(heavy_values(seed, _HEAVY)) for seed in range(16)]
    batches = [body(dense_batch(seed, 3000, 12), options={"solver": "osqp"}) for seed in range(4)]  # 4 ms each
    exact = [body(_symmetric(seed, 64, 30), options={"tol": 1e-15}) for seed in range(2)]
    hard = [body(heavy_values(seed, _HEAVY), options=HARD) for seed in range(16)]
    documents = [json.dumps(many_cones(300, seed)).encode() for seed in range(1, 500)]
    return [
        _Work("a flood of 64 callers, 20 ms each", heavy_qp(_HEAVY), flood, 64),
        _Work("four batches of 3,000 small problems", dense_qp(12), batches, 4),
        _Work("two batches of 64 semidefinite programs, tol 1e-15", nearest_correlation(30), exact, 2),
        _Work("four solves of a minute each, by SCS", heavy_qp(_HEAVY), hard, 4),
        _Work(storm, heavy_qp(_HEAVY), hard, 16, _GIVEN_UP_S),
        _Work("four callers that register ever new problems, seconds each", None, documents, 4),
    ]


def _row(plan: Plan, work: _Work) -> Row:
    with Server(keys=("attacker", "victim")) as server:
        path = "/v1/problems" if work.document is None else f"{server.register(work.document, 'attacker')}/solve"
        load = Load(
            server.address,
            path,
            work.bodies,
            work.callers,
            _LONGEST_S,
            headers=server.headers("attacker"),
            timeout_s=work.timeout_s,
        )
        attack = Attack(run, load)
        noticed = Victim(server, "victim").notice(attack, plan)
    return noticed.row(work.what, f"the attack {attack.outcome}").with_log(server.log)


def _symmetric(seed: int, batch: int, size: int) -> dict[str, np.ndarray]:
    values = np.random.default_rng(seed).standard_normal((batch, size, size))
    return {"A": (values + values.transpose(0, 2, 1)) / 2.0}
