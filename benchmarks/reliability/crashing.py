"""Work of one key that ends workers: by a segmentation fault, and by taking too long."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import final

from benchmarks.reliability.attack import Attack
from benchmarks.reliability.caller import Caller
from benchmarks.reliability.load import Tally
from benchmarks.reliability.problems import HARD, body, dense_qp, dense_values, heavy_qp, heavy_values
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row
from benchmarks.reliability.victim import Victim

__all__ = ["measure"]

_CALLERS = 2
_SIZE = 20
_PAUSE_S = 0.05
_CRASHES = "import os, signal\n\n\ndef solve(*data, **options):\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
"""A package of a third-party solver, which stands in for ECOS on the server that it is attacked on."""

_HEAVY = 400
_DEADLINE_S, _COMPILE_S, _TIMES = 2.0, 10.0, 3


@final
@dataclass(frozen=True)
class _Crashes:
    """Callers that each register a new problem and have it solved by what crashes, again and again.

    Attributes:
        address: of the server.
        headers: of their key.
    """

    address: tuple[str, int]
    headers: dict[str, str]


def measure(plan: Plan) -> Iterator[Row]:
    """What another key notices of crashes; and whether it may use a document that was too expensive for the first."""
    yield _crashes(plan)
    yield _deadlines()


def _crashes(plan: Plan) -> Row:
    with TemporaryDirectory() as folder:
        package = Path(folder, "ecos")
        package.mkdir()
        (package / "__init__.py").write_text(_CRASHES)
        with Server(keys=("attacker", "victim"), packages=folder) as server:
            attack = Attack(_crash, _Crashes(server.address, server.headers("attacker")))
            noticed = Victim(server, "victim").notice(attack, plan)
    became = f"solves of the attack {attack.outcome}"
    row = noticed.row("a solver that crashes, for ever new problems", became, doubles=False)
    return row.with_log(server.log)


def _crash(crashes: _Crashes, over: Callable[[], bool]) -> Tally:
    """The attack; the tally is of solves."""
    tally, sizes = Tally(), count(_SIZE)

    def go_on() -> None:
        with Caller(crashes.address, crashes.headers) as caller:
            while True:
                size = next(sizes)
                answer = caller.post("/v1/problems", json.dumps(dense_qp(size)).encode())
                if answer.status == 201:
                    path = f"/v1/problems/{json.loads(answer.body)['id']}/solve"
                    tally.add(caller.post(path, body(dense_values(0, size), options={"solver": "ecos"})))
                else:
                    time.sleep(_PAUSE_S)

    for _ in range(_CALLERS):
        threading.Thread(target=go_on, daemon=True).start()  # they end with the process
    while not over():
        time.sleep(_PAUSE_S)
    return tally


def _deadlines() -> Row:
    """The data decide how long the document takes, and those of the other key are easy."""
    document = heavy_qp(_HEAVY)
    hard = body(heavy_values(0, _HEAVY), options=HARD)
    with Server(keys=("attacker", "victim"), deadline_s=_DEADLINE_S, compile_limit_s=_COMPILE_S) as server:
        path = f"{server.register(document, 'attacker')}/solve"
        with server.caller("attacker") as caller:
            given = Tally()
            for _ in range(_TIMES):
                given.add(caller.post(path, hard))
        with server.caller("victim") as caller:
            registered = caller.post("/v1/problems", json.dumps(document).encode())
            solved = caller.post(path, body(heavy_values(1, _HEAVY)))
    return Row(
        f"a document of which {_TIMES} requests exceeded the deadline: another key's use of it",
        "registered and solved",
        f"register {registered.status}, solve {solved.status}; the requests {given}",
        registered.status == 201 and solved.status == 200,
    ).with_log(server.log)
