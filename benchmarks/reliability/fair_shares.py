"""Fair shares: what the server keeps for one key while another key exceeds the total."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.reliability.http_client import HttpClient, Response
from benchmarks.reliability.load import Tally
from benchmarks.reliability.problems import body, dense_qp, dense_values, line
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row

__all__ = ["measure"]

_KEYS = ("attacker", "victim")
_ROOM_BYTES = 8 * 2**20
"""Bytes that the server keeps of jobs, or of states: less than the attacker produces."""

_BATCH, _TIMES = 128, 16
"""Elements of a request of the attacker, and its requests: together more than _ROOM_BYTES."""

_STORE_BYTES, _DOCUMENTS = 2**20, 40
"""Bytes of the store, and documents of the attacker, which exceed them."""

_JOB_S = 30.0
"""Seconds that a job may take."""

_POLL_S = 0.05
"""Seconds between looks at a job."""


_RESULTS = line(1024, minimize="sum(x)", subject_to=["x == t * c"])
"""A problem with results of 1 MB a batch."""

_STATES = line(400, minimize="sum_squares(x - t * c)", subject_to=["x >= 0"])
"""A problem with states of 1.2 MB a batch: primal, dual and slack."""


def measure(plan: Plan) -> Iterator[Row]:
    """Measure results of jobs, states, and documents."""
    yield _jobs()
    yield _states()
    yield _documents()


def _jobs() -> Row:
    with Server(keys=_KEYS, job_bytes=_ROOM_BYTES) as server:
        small, large = server.register(dense_qp(), "victim"), server.register(_RESULTS, "attacker")
        with server.client("attacker") as attacker, server.client("victim") as victim:
            job = _job(victim, small, body(dense_values(0)))
            promised_s = json.loads(victim.get(job).body)["expires_s"]
            others = [_job(attacker, large, _batch(seed)) for seed in range(_TIMES)]
            kept = sum(attacker.get(f"{other}/result").status == 200 for other in others)
            answer = victim.get(f"{job}/result")
    return Row(
        f"results of jobs, twice the budget: result of another key, kept for {promised_s:.0f} s",
        "available",
        f"{answer.status}; {kept} of {_TIMES} of the attacker are kept",
        answer.status == 200,
    ).with_log(server.log)


def _states() -> Row:
    with Server(keys=_KEYS, state_bytes=_ROOM_BYTES) as server:
        small, large = server.register(dense_qp(), "victim"), server.register(_STATES, "attacker")
        with server.client("attacker") as attacker, server.client("victim") as victim:
            state = _solved(victim, small, body(dense_values(0), **{"return": ["state"]}))["state"]
            for seed in range(_TIMES):
                assert _solved(attacker, large, _batch(seed, **{"return": ["state"]}))["state"] is not None
            answer = victim.post(f"{small}/vjp", body({}, state=state, cotangents={"x": [1.0] * 10}))
    return Row(
        "states, twice the budget: vjp of another key by handle",
        "its state is available",
        f"{answer.status}",
        answer.status == 200,
    ).with_log(server.log)


def _documents() -> Row:
    """Register documents of random numbers, which do not compress."""
    with Server(keys=_KEYS, max_store_bytes=_STORE_BYTES) as server:
        given = Tally()
        with server.client("attacker") as attacker, server.client("victim") as victim:
            for number in range(_DOCUMENTS):
                given.add(attacker.post("/v1/problems", _document(number)))
            answer = victim.post("/v1/problems", _document(_DOCUMENTS))
    return Row(
        "documents, more than the store's quota: another key registers one",
        "201",
        f"{answer.status}; those of the attacker {given}",
        answer.status == 201,
    ).with_log(server.log)


def _batch(seed: int, **others: Any) -> bytes:
    return body({"t": np.random.default_rng(seed).uniform(1.0, 2.0, _BATCH)}, **others)


def _document(number: int) -> bytes:
    """Return a document of 40 kB in the store."""
    return json.dumps(line(4000 + number, minimize="sum_squares(x - t * c)")).encode()


def _solved(client: HttpClient, path: str, content: bytes) -> dict[str, Any]:
    answer = client.post(f"{path}/solve", content)
    assert answer.status == 200, answer.body[:500]
    return dict(json.loads(answer.body))


def _job(client: HttpClient, path: str, content: bytes) -> str:
    """Run a job to its end, and return its path."""
    answer = client.post(f"{path}/solve", content, {"Prefer": "respond-async"})
    assert answer.status == 202, answer.body[:500]
    job, end = f"/v1/jobs/{json.loads(answer.body)['id']}", time.monotonic() + _JOB_S
    while _status(client.get(job)) in ("waiting", "running") and time.monotonic() < end:
        time.sleep(_POLL_S)
    return job


def _status(answer: Response) -> str:
    """Return the status of a job, or of the error."""
    return str(json.loads(answer.body)["status"])
