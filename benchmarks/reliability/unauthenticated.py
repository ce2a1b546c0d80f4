"""Attacks by connections that never complete a request, which need no key: effect on probes and other clients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.reliability.attack import RAMP_UP_S, Attack
from benchmarks.reliability.idle_connections import ConnectionGroup, maintain
from benchmarks.reliability.load import Tally
from benchmarks.reliability.probes import Memory, probed
from benchmarks.reliability.problems import body, dense_qp, dense_values
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row, milliseconds, quantile

__all__ = ["measure"]

_SOLVE_S = 0.2
"""Seconds between solves of the other key."""

_P99_S, _TIMES, _GROWTH_BYTES = 50e-3, 3.0, 100e6
"""Requirements: p99 of a probe in seconds, its multiple of that without attack, and growth of the memory."""

_HEAD = b"GET / HTTP/1.1\r\nHost: server\r\n"
_MANY = tuple(f"127.0.1.{number}" for number in range(1, 101))
"""Loopback addresses of Linux, so that limits per address have no effect."""


@dataclass(frozen=True)
class _Attack:
    """An attack.

    Attributes:
        what: description.
        group: the connections, without the server's address.
        descriptors: file descriptors that the server may open.
        head_s: ``head_s`` of the server, if set; it then closes every connection.
    """

    what: str
    group: ConnectionGroup
    descriptors: int | None = None
    head_s: float | None = None


_NO_ADDRESS = ("127.0.0.1", 0)
_ATTACKS = (
    _Attack(
        "four endless headers, 50 MB/s",
        ConnectionGroup(_NO_ADDRESS, 4, _HEAD + b"X-Long: ", b"a" * 2**16, every_s=5e-3, max_bytes=10**9),
    ),
    _Attack(
        "four requests with endless short headers, 2.4 MB/s",
        ConnectionGroup(_NO_ADDRESS, 4, _HEAD, b"a: b\r\n" * 1000, every_s=10e-3, max_bytes=30 * 10**6),
    ),
    _Attack("1,500 silent connections, 2 s for the head of a request", ConnectionGroup(_NO_ADDRESS, 1500), head_s=2.0),
    _Attack(
        "1,500 silent connections from 100 addresses, 256 descriptors",
        ConnectionGroup(_NO_ADDRESS, 1500, sources=_MANY),
        256,
    ),
    _Attack(
        "500 slow headers from 100 addresses, 256 descriptors",
        ConnectionGroup(_NO_ADDRESS, 500, _HEAD, b"a: b\r\n", every_s=1.0, sources=_MANY),
        256,
    ),
)


def measure(plan: Plan) -> Iterator[Row]:
    """Measure each attack on a new server."""
    return map(partial(_row, plan), _ATTACKS)


def _row(plan: Plan, attack: _Attack) -> Row:
    settings: dict[str, Any] = {} if attack.head_s is None else {"head_s": attack.head_s}
    with Server(keys=("victim",), descriptors=attack.descriptors, **settings) as server:
        path = f"{server.register(dense_qp(), 'victim')}/solve"
        server.wait_until_idle()
        quiet, _, _ = _probe(server, path, plan.load_s)
        group = Attack(maintain, replace(attack.group, address=server.address))
        with group:
            time.sleep(RAMP_UP_S)
            during, solves, grown_bytes = _probe(server, path, plan.load_s)
    before, after = (quantile(tally.every, 0.99) for tally in (quiet, during))
    return Row(
        attack.what,
        f"healthz p99 <= {milliseconds(_P99_S)} and {_TIMES:g} x quiet, no probe lost; solves of another key succeed; "
        f"<= {_GROWTH_BYTES / 1e6:+.0f} MB{'; all connections closed' * (attack.head_s is not None)}",
        f"p99 {milliseconds(before)} -> {milliseconds(after)}, {during.failed} of {len(during.every)} lost; "
        f"{solves.failed} of {len(solves.every)} solves failed, {milliseconds(max(solves.every))} at worst; "
        f"{grown_bytes / 1e6:+.0f} MB; {group.outcome}",
        after <= min(_P99_S, _TIMES * before)
        and not during.failed
        and not solves.failed
        and grown_bytes <= _GROWTH_BYTES
        and (attack.head_s is None or group.outcome.closed >= attack.group.connections),
    ).with_log(server.log)


def _probe(server: Server, path: str, seconds: float) -> tuple[Tally, Tally, int]:
    """Return the tallies of probes and of another key's solves, each on a new connection, and the growth of memory."""
    request_body = body(dense_values(0))
    memory = Memory(server)
    with ExitStack() as stack:
        stack.enter_context(memory.watched())
        probes = stack.enter_context(probed(server, lambda client: client.get("/healthz")))
        solving = probed(server, lambda client: client.post(path, request_body), key="victim", every_s=_SOLVE_S)
        solves = stack.enter_context(solving)
        time.sleep(seconds)
    return probes, solves, memory.peak_bytes - memory.before_bytes
