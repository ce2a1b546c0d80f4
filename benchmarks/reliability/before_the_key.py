"""Connections that never come to the point, which needs no key: what probes and another caller notice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.reliability.attack import Attack
from benchmarks.reliability.crowd import Crowd, keep
from benchmarks.reliability.load import Tally
from benchmarks.reliability.problems import body, dense_qp, dense_values
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row, milliseconds, percentile
from benchmarks.reliability.watching import Memory, probed

__all__ = ["measure"]

_BEGINNING_S = 1.0
_SOLVE_S = 0.2
_P99_S, _TIMES, _GROWTH_BYTES = 50e-3, 3.0, 100e6

_HEAD = b"GET / HTTP/1.1\r\nHost: server\r\n"
_MANY = tuple(f"127.0.1.{number}" for number in range(1, 101))
"""Addresses of this machine, as Linux has them, so that limits for one of them do not help."""


@dataclass(frozen=True)
class _Attack:
    """An attack.

    Attributes:
        what: in words.
        crowd: who does it, whatever the server's address.
        descriptors: that the server may have open.
        head_s: what the server gives a client for the head of a request, where it is told; then it closes as many
            connections as there are.
    """

    what: str
    crowd: Crowd
    descriptors: int | None = None
    head_s: float | None = None


_NOBODY = ("127.0.0.1", 0)
_ATTACKS = (
    _Attack(
        "four headers that never end, 50 MB/s",
        Crowd(_NOBODY, 4, _HEAD + b"X-Long: ", b"a" * 2**16, every_s=5e-3, most_bytes=10**9),
    ),
    _Attack(
        "four requests whose short headers never end, 2.4 MB/s",
        Crowd(_NOBODY, 4, _HEAD, b"a: b\r\n" * 1000, every_s=10e-3, most_bytes=30 * 10**6),
    ),
    _Attack("1,500 silent connections, 2 s for the head of a request", Crowd(_NOBODY, 1500), head_s=2.0),
    _Attack("1,500 silent connections from 100 addresses, 256 descriptors", Crowd(_NOBODY, 1500, sources=_MANY), 256),
    _Attack(
        "500 slow headers from 100 addresses, 256 descriptors",
        Crowd(_NOBODY, 500, _HEAD, b"a: b\r\n", every_s=1.0, sources=_MANY),
        256,
    ),
)


def measure(plan: Plan) -> Iterator[Row]:
    """A server for each, so that what one leaves behind is not the next one's."""
    return map(partial(_row, plan), _ATTACKS)


def _row(plan: Plan, attack: _Attack) -> Row:
    settings: dict[str, Any] = {} if attack.head_s is None else {"head_s": attack.head_s}
    with Server(keys=("victim",), descriptors=attack.descriptors, **settings) as server:
        path = f"{server.register(dense_qp(), 'victim')}/solve"
        server.rest()
        quiet, _, _ = _probe(server, path, plan.seconds)
        crowd = Attack(keep, replace(attack.crowd, address=server.address))
        with crowd:
            time.sleep(_BEGINNING_S)
            beside, solves, grown_bytes = _probe(server, path, plan.seconds)
    before, after = (percentile(tally.every, 0.99) for tally in (quiet, beside))
    return Row(
        attack.what,
        f"healthz p99 <= {milliseconds(_P99_S)} and {_TIMES:g} x quiet, no probe lost; another's solves answered; "
        f"<= {_GROWTH_BYTES / 1e6:+.0f} MB{'; all of them closed' * (attack.head_s is not None)}",
        f"p99 {milliseconds(before)} -> {milliseconds(after)}, {beside.failed} of {len(beside.every)} lost; "
        f"{solves.failed} of {len(solves.every)} solves failed, {milliseconds(max(solves.every))} at worst; "
        f"{grown_bytes / 1e6:+.0f} MB; {crowd.outcome}",
        after <= min(_P99_S, _TIMES * before)
        and not beside.failed
        and not solves.failed
        and grown_bytes <= _GROWTH_BYTES
        and (attack.head_s is None or crowd.outcome.closed >= attack.crowd.connections),
    ).with_log(server.log)


def _probe(server: Server, path: str, seconds: float) -> tuple[Tally, Tally, int]:
    """Probes, solves of another key, each with a connection of its own, and by how much the server grows."""
    asked = body(dense_values(0))
    memory = Memory(server)
    with ExitStack() as stack:
        stack.enter_context(memory.watched())
        probes = stack.enter_context(probed(server, lambda caller: caller.get("/healthz")))
        solving = probed(server, lambda caller: caller.post(path, asked), key="victim", every_s=_SOLVE_S)
        solves = stack.enter_context(solving)
        time.sleep(seconds)
    return probes, solves, memory.peak_bytes - memory.before_bytes
