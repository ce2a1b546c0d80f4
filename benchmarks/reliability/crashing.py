"""Requests of one key that end workers: by a segmentation fault, and by exceeding the deadline."""

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
from benchmarks.reliability.bystander import Bystander
from benchmarks.reliability.http_client import HttpClient
from benchmarks.reliability.load import Tally
from benchmarks.reliability.problems import HARD, body, dense_qp, dense_values, heavy_qp, heavy_values
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row

__all__ = ["measure"]

_CLIENTS = 2
"""Clients that crash workers."""

_SIZE = 20
"""Variables of the first problem that crashes; each one has one more, so that none is in quarantine."""

_PAUSE_S = 0.05
"""Seconds between attempts of a key that the server refuses."""

_CRASHES = "import os, signal\n\n\ndef solve(*data, **options):\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
"""A fake ECOS package whose solver crashes."""

_DEADLINE_S, _COMPILE_S, _TIMES = 2.0, 10.0, 3
"""Settings of the server in seconds, short to save time, and the requests that exceed the deadline."""


@final
@dataclass(frozen=True)
class _Crashes:
    """Clients that repeatedly register a new problem and solve it by a crashing solver.

    Attributes:
        address: address of the server.
        headers: headers with their key.
    """

    address: tuple[str, int]
    headers: dict[str, str]


def measure(plan: Plan) -> Iterator[Row]:
    """Measure how one key's crashes and its quarantined document affect another key."""
    yield _crashes(plan)
    yield _deadlines()


def _crashes(plan: Plan) -> Row:
    with TemporaryDirectory() as folder:
        package = Path(folder, "ecos")
        package.mkdir()
        (package / "__init__.py").write_text(_CRASHES)
        with Server(keys=("attacker", "victim"), packages=folder) as server:
            attack = Attack(_crash, _Crashes(server.address, server.headers("attacker")))
            effect = Bystander(server, "victim").measure(attack, plan)
    statistics = f"solves of the attacker {attack.outcome}"
    row = effect.row("a crashing solver, for new problems", statistics, doubles=False)
    return row.with_log(server.log)


def _crash(crashes: _Crashes, over: Callable[[], bool]) -> Tally:
    """Attack; return the tally of solves."""
    tally, sizes = Tally(), count(_SIZE)

    def repeat() -> None:
        with HttpClient(crashes.address, crashes.headers) as client:
            while True:
                size = next(sizes)
                answer = client.post("/v1/problems", json.dumps(dense_qp(size)).encode())
                if answer.status == 201:
                    path = f"/v1/problems/{json.loads(answer.body)['id']}/solve"
                    tally.add(client.post(path, body(dense_values(0, size), options={"solver": "ecos"})))
                else:
                    time.sleep(_PAUSE_S)

    for _ in range(_CLIENTS):
        threading.Thread(target=repeat, daemon=True).start()  # daemon threads end with the process
    while not over():
        time.sleep(_PAUSE_S)
    return tally


def _deadlines() -> Row:
    """The values determine the duration of a solve; those of the other key are easy."""
    document = heavy_qp()
    hard = body(heavy_values(0), options=HARD)
    with Server(keys=("attacker", "victim"), deadline_s=_DEADLINE_S, canonicalise_limit_s=_COMPILE_S) as server:
        path = f"{server.register(document, 'attacker')}/solve"
        with server.client("attacker") as client:
            given = Tally()
            for _ in range(_TIMES):
                given.add(client.post(path, hard))
        with server.client("victim") as client:
            registered = client.post("/v1/problems", json.dumps(document).encode())
            solved = client.post(path, body(heavy_values(1)))
    return Row(
        f"a document of which {_TIMES} requests exceeded the deadline: use by another key",
        "registered and solved",
        f"register {registered.status}, solve {solved.status}; the requests {given}",
        registered.status == 201 and solved.status == 200,
    ).with_log(server.log)
