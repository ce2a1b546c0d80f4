"""Effect of an attack on another key, which solves a small problem, and then registers a new one."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, final

from benchmarks.reliability.attack import RAMP_UP_S, Attack
from benchmarks.reliability.load import Load, Tally, start
from benchmarks.reliability.problems import body, dense_qp, dense_values
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row, milliseconds, quantile

__all__ = ["Bystander", "Effect"]

_SIZE, _NEW_SIZE = 10, 11
"""Variables of the problem that is solved throughout, and of the one that is registered during the attack."""

_BODIES = 64
"""Number of different requests, which the client sends in turn."""

_WARM_S = 2.0
"""Seconds of solves before the measurement: the first ones compile the problem."""

_TIMEOUT_S = 20.0
"""Seconds after which a request of the other key counts as failed."""

_WORST_S, _NEW_S = 1.0, 5.0
"""Requirements in seconds: p99 of a solve, and a new problem from registration to its first solution."""


@final
@dataclass(frozen=True)
class Effect:
    """The measured effect.

    Attributes:
        alone: requests without the attack.
        during: requests during the attack.
        new_s: seconds from registering a new problem to its first solution, during the attack; infinite on failure.
    """

    alone: Tally
    during: Tally
    new_s: float

    def row(self, what: str, statistics: str, *, doubles: bool = True) -> Row:
        """Return the row of an attack.

        Args:
            what: description of the attack.
            statistics: statistics of the attack.
            doubles: whether the 95th percentile must at most double.
        """
        before, after = (quantile(tally.every, 0.95) for tally in (self.alone, self.during))
        worst, count = quantile(self.during.every, 0.99), len(self.during.every)
        targets = ["p95 at most doubles"] * doubles + [f"p99 <= {_WORST_S:g} s", "none fails"]
        met = (after <= 2.0 * before or not doubles) and worst <= _WORST_S and not self.during.failed
        return Row(
            f"{what}: small solves of another key",
            f"{', '.join(targets)}; a new problem of its own within {_NEW_S:g} s",
            f"p95 {milliseconds(before)} -> {milliseconds(after)} ({after / before:.2f} x), p99 {milliseconds(worst)}, "
            f"{self.during.failed} of {count} failed; new in {self.new_s:.2f} s; {statistics}",
            met and self.new_s <= _NEW_S,
        )


@final
class Bystander:
    """A key with one client, which sends one request after another.

    Args:
        server: the server.
        key: name of the key.
    """

    def __init__(self, server: Server, key: str) -> None:
        self._server, self._key = server, key
        self._path = f"{server.register(dense_qp(_SIZE), key)}/solve"
        self._bodies = [body(dense_values(seed, _SIZE)) for seed in range(_BODIES)]
        self._solve(_WARM_S)
        server.wait_until_idle()

    def measure(self, attack: Attack[Any], plan: Plan) -> Effect:
        """Solve alone, and then during an attack."""
        alone = self._solve(plan.load_s)
        with attack:
            time.sleep(RAMP_UP_S)
            return Effect(alone, self._solve(plan.load_s), self._register_and_solve())

    def _solve(self, seconds: float) -> Tally:
        headers = self._server.headers(self._key)
        load = Load(self._server.address, self._path, self._bodies, 1, seconds, headers=headers, timeout_s=_TIMEOUT_S)
        return start(load).result()

    def _register_and_solve(self) -> float:
        start = time.monotonic()
        with self._server.client(self._key, timeout_s=_TIMEOUT_S) as client:
            answer = client.post("/v1/problems", json.dumps(dense_qp(_NEW_SIZE)).encode())
            if answer.status == 201:
                path = f"/v1/problems/{json.loads(answer.body)['id']}/solve"
                answer = client.post(path, body(dense_values(0, _NEW_SIZE)))
        return time.monotonic() - start if answer.status == 200 else float("inf")
