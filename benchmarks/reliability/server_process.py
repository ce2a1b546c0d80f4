"""Memory and responsiveness of the server process under expensive requests of one key."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.reliability.attack import RAMP_UP_S, Attack
from benchmarks.reliability.http_client import HttpClient, Response
from benchmarks.reliability.idle_connections import ConnectionGroup, maintain
from benchmarks.reliability.load import Load, Tally, request, run
from benchmarks.reliability.probes import Memory, probed
from benchmarks.reliability.problems import body, dense_batch, dense_qp, dense_values, line, solution_map
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row, milliseconds, quantile

__all__ = ["measure"]

_KEYS = ("attacker", "victim")
_MAX_DURATION_S = 120.0
"""Limit of a load in seconds; it is stopped earlier."""

_PEAK_BYTES, _AFTER, _AFTER_S = 1.3e9, 1.3, 30.0
"""Requirements: largest memory, and its multiple of the initial one to which it returns within these seconds."""

_P99_S, _WAIT_S = 50e-3, 1.0
"""Requirement for p99 of a probe, and for the longest wait of another key, in seconds."""

_ROWS, _SIZE = 256, 4096
"""Elements of a request, and entries of each solution."""

_LARGE_RESULT = line(_SIZE, minimize="sum(x)", subject_to=["x == t * c"])
"""A problem with small requests, whose solutions for a batch are 20 MB of JSON."""

_UPLOAD_BYTES = 15 * 10**6
"""Bytes of an upload that stalls."""

_ROOT, _NUMBERS, _DOCUMENTS, _REGISTERING = 640, 600_000, 8, 4
"""Sizes of the large documents: rows of a square constant and numbers of a list; documents, and clients that
register them."""

_PROBLEMS, _PAGE_BYTES = 5_000, 200_000
"""Registered problems of a key, and the requirement for the bytes of a page of their list."""


def measure(plan: Plan) -> Iterator[Row]:
    """Measure each on a new server."""
    for row in (_unread, _stalled, _bodies, _document):
        yield row(plan)
    yield _listing()


def _unread(plan: Plan) -> Row:
    """Clients that request large responses and never read."""
    request_body = body({"t": np.random.default_rng(0).uniform(1.0, 2.0, _ROWS)})
    with Server(keys=_KEYS) as server:
        path = f"{server.register(_LARGE_RESULT, 'attacker')}/solve"
        with server.client("attacker") as client:
            answer = client.post(path, request_body)  # warm-up
        group = ConnectionGroup(
            server.address,
            64,
            request(server.address, path, request_body, server.headers("attacker")),
            never_reads=True,
        )
        what = f"64 unread responses of {len(answer.body) / 1e6:.0f} MB"
        row = _held(server, group, what, plan)
    return row.with_log(server.log)


def _stalled(plan: Plan) -> Row:
    """Clients that announce bodies and send parts of them."""
    with Server(keys=_KEYS) as server:
        path = f"{server.register(_LARGE_RESULT, 'attacker')}/solve"
        whole = request(server.address, path, b" " * _UPLOAD_BYTES, server.headers("attacker"))
        first = whole[: -_UPLOAD_BYTES // 3]
        group = ConnectionGroup(server.address, 100, first, max_bytes=100 * len(first))
        row = _held(server, group, "100 bodies of 15 MB that stall after 10 MB", plan)
    return row.with_log(server.log)


def _held(server: Server, group: ConnectionGroup, what: str, plan: Plan) -> Row:
    """Measure memory during and after a group of connections, and small solves of another key."""
    path, request_body = f"{server.register(dense_qp(), 'victim')}/solve", body(dense_values(0))
    server.wait_until_idle()
    memory = Memory(server)
    with Attack(maintain, group) as attack, memory.watched():
        time.sleep(RAMP_UP_S)
        with probed(server, lambda client: client.post(path, request_body), key="victim") as solves:
            time.sleep(plan.load_s)
    back_s = memory.seconds_until(_AFTER * memory.before_bytes, _AFTER_S)
    after = "not back" if back_s is None else f"back after {back_s:.1f} s"
    return Row(
        what,
        f"<= {_PEAK_BYTES / 1e6:.0f} MB, back to {_AFTER:g} x in {_AFTER_S:g} s; solves of another key succeed",
        f"{memory.before_bytes / 1e6:.0f} -> {memory.peak_bytes / 1e6:.0f} MB, then {memory.now_bytes() / 1e6:.0f} MB, "
        f"{after}; {solves.failed} of {len(solves.every)} solves failed, p99 "
        f"{milliseconds(quantile(solves.every, 0.99))}; {attack.outcome}",
        memory.peak_bytes <= _PEAK_BYTES and back_s is not None and not solves.failed,
    )


def _probed_beside(
    server: Server, load: Load, ask: Callable[[HttpClient], Response], plan: Plan, key: str | None = None
) -> tuple[Tally, Attack[Tally]]:
    """Return the tally of probes during a load, and the load."""
    server.wait_until_idle()
    with Attack(run, load) as attack:
        time.sleep(RAMP_UP_S)
        with probed(server, ask, key=key) as tally:
            time.sleep(plan.load_s)
    return tally, attack


def _bodies(plan: Plan) -> Row:
    """Large bodies that are rejected after parsing because of their shapes."""
    wrong = body({"q": np.random.default_rng(0).standard_normal((180, _SIZE))})
    with Server(keys=_KEYS) as server:
        path = f"{server.register(dense_qp(), 'attacker')}/solve"
        request_body = body(dense_batch(0, 500))
        load = Load(server.address, path, [wrong], 8, _MAX_DURATION_S, headers=server.headers("attacker"))
        server.register(dense_qp(), "victim")
        solves, attack = _probed_beside(
            server, load, lambda client: client.post(path, request_body), plan, key="victim"
        )
    worst = max(solves.every)
    return Row(
        f"eight clients with JSON of {len(wrong) / 1e6:.0f} MB: requests of another key with "
        f"{len(request_body) / 1e3:.0f} kB",
        f"<= {_WAIT_S:g} s, none fails",
        f"{milliseconds(quantile(solves.every, 0.5))}, {milliseconds(worst)} at worst, {solves.failed} of "
        f"{len(solves.every)} failed; the attacker {attack.outcome}",
        worst <= _WAIT_S and not solves.failed,
    ).with_log(server.log)


def _document(plan: Plan) -> Row:
    """New documents of both kinds, nearly of the maximum size."""
    documents = list(_documents())
    with Server(keys=_KEYS) as server:
        own = server.headers("attacker")
        load = Load(server.address, "/v1/problems", documents, _REGISTERING, _MAX_DURATION_S, headers=own)
        probes, attack = _probed_beside(server, load, lambda client: client.get("/healthz"), plan)
    worst = quantile(probes.every, 0.99)
    return Row(
        f"healthz while {_REGISTERING} clients register documents of {len(documents[0]) / 2**20:.0f} MiB",
        f"p99 <= {milliseconds(_P99_S)}, none fails",
        f"p99 {milliseconds(worst)}, {milliseconds(max(probes.every))} at worst, {probes.failed} of "
        f"{len(probes.every)} failed; the attacker {attack.outcome}",
        worst <= _P99_S and not probes.failed,
    ).with_log(server.log)


def _documents() -> Iterator[bytes]:
    """Yield expression and cone program documents alternately."""
    rng = np.random.default_rng(0)
    kept: dict[str, Any] = {
        "kind": "expression",
        "parameters": {"t": {"shape": []}},
        "variables": {"x": {"shape": [_ROOT]}},
    }
    dense = {"A": rng.standard_normal((_ROOT, _ROOT)).tolist()}
    program = solution_map(
        {**kept, "constants": dense, "minimize": "sum_squares(x)", "subject_to": ["A @ x <= t"]}
    ).program.to_document()
    numbers = rng.standard_normal(_NUMBERS).tolist()
    for number in range(_DOCUMENTS):
        numbers[0] = program["data"]["constant"][-1] = float(number + 1)
        yield json.dumps({**kept, "constants": {"c": numbers}, "minimize": "sum_squares(x - t * sum(c))"}).encode()
        yield json.dumps({"kind": "cone_program", "program": program}).encode()


def _listing() -> Row:
    """List many registrations, copied from one in the store."""
    pages, ids, after = list[Response](), set[str](), ""
    with TemporaryDirectory() as folder:
        path = str(Path(folder, "store.sqlite"))
        with Server(store=path, keys=("many",), max_problems_per_key=_PROBLEMS) as server:
            server.register(dense_qp(), "many")
            _multiply(path)
            with server.client("many") as client:
                while after is not None:
                    pages.append(client.get(f"/v1/problems?after={after}" if after else "/v1/problems"))
                    listed = json.loads(pages[-1].body)
                    ids |= {problem["id"] for problem in listed["problems"]}
                    after = listed.get("next")
    largest, slowest = max(len(page.body) for page in pages), max(page.seconds for page in pages)
    return Row(
        f"GET /v1/problems of {_PROBLEMS} registrations",
        f"pages of at most {_PAGE_BYTES / 1e3:.0f} kB",
        f"{len(ids)} in {len(pages)} pages, {largest / 1e3:.0f} kB in {milliseconds(slowest)} at worst",
        largest <= _PAGE_BYTES and len(ids) == _PROBLEMS,
    ).with_log(server.log)


def _multiply(path: str) -> None:
    """Copy the only problem of a store under other IDs."""
    with closing(sqlite3.connect(path)) as store, store:
        (known,) = store.execute("SELECT id FROM problem").fetchone()
        for (table,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid").fetchall():
            columns = store.execute(f"PRAGMA table_info({table})").fetchall()
            numbered = [kind == "INTEGER" and bool(key) for _, _, kind, _, _, key in columns]
            query = f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})"
            for row in store.execute(f"SELECT * FROM {table}").fetchall():
                if known in str(row):
                    store.executemany(query, _others(row, numbered, known))


def _others(row: Sequence[Any], numbered: Sequence[bool], known: str) -> Iterator[list[Any]]:
    """Yield copies of a row for other IDs, without SQLite's row numbers."""
    for number in range(1, _PROBLEMS):
        other = f"{known[:-5]}{number:05}"
        values = [value.replace(known, other) if isinstance(value, str) else value for value in row]
        yield [None if own else value for own, value in zip(numbered, values, strict=True)]
