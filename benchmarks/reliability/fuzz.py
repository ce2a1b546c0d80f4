"""Fuzzing: many requests, nearly valid or invalid, of our own and of schemathesis."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, final

import httpx

from benchmarks.reliability.fuzz_cases import DOCUMENT, LIMITS, VALUES, Generator, check
from benchmarks.reliability.schema import send_cases
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row

__all__ = ["measure"]

_SENDERS = 4
"""Concurrent senders of cases."""

_SCHEMA_SHARE = 0.2
"""Share of the cases that schemathesis generates from the OpenAPI document."""

_OPERATIONS = 16
"""Operations of the OpenAPI document times kinds of requests (measured)."""

_SENT_SHARE = 0.95
"""Requirement: share of the cases that are sent; schemathesis generates fewer for some operations."""

_TIMEOUT_S = 120.0
"""Seconds after which a request without a response counts as a failure."""


@final
class _Sender:
    """Sends requests, and records statuses and failures."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._http = httpx.Client(base_url=f"http://{address[0]}:{address[1]}", timeout=_TIMEOUT_S)
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []

    def send(self, method: str, path: str, **options: Any) -> None:
        """Send a request; status 0 is a request without a response."""
        try:
            response = self._http.request(method, path, **options)
            self.statuses[response.status_code] += 1
            check(response, (method, path, str(options)[:500]))
        except httpx.HTTPError as error:
            self.statuses[0] += 1
            self.failures.append(f"{method} {path}: {error!r}")
        except AssertionError as error:
            self.failures.append(str(error))


def measure(plan: Plan) -> list[Row]:
    """Send our own cases (truncated, overlapping, huge, deep, with NaN), and those of schemathesis."""
    own = int(plan.cases * (1.0 - _SCHEMA_SHARE)) // _SENDERS
    with Server(**LIMITS) as server:
        path = server.register(DOCUMENT)
        senders = [_Sender(server.address) for _ in range(_SENDERS + 1)]

        def run(seed: int) -> None:
            for case in Generator(seed, path).cases(own):
                senders[seed].send(case.method, case.path, content=case.content, headers=case.headers)

        with ThreadPoolExecutor(_SENDERS) as pool:
            list(pool.map(run, range(_SENDERS)))
        with server.client() as client:
            document = json.loads(client.get("/openapi.json").body)
            examples = max(1, round(plan.cases * _SCHEMA_SHARE / _OPERATIONS))
        send_cases(document, examples, seed=0, send=senders[-1].send)
        with server.client() as client:
            solved = client.post(f"{path}/solve", json.dumps({"parameters": VALUES}).encode())
            health = json.loads(client.get("/readyz").body)
    statuses = sum((sender.statuses for sender in senders), Counter[int]())
    failures: list[str] = [failure for sender in senders for failure in sender.failures]
    first = failures[:3]
    return [
        Row(
            "fuzz: bodies truncated, overlapping, huge, deep, with NaN; schemathesis on the OpenAPI document",
            f"{plan.cases} cases, no 500, no dead server",
            f"{sum(statuses.values())} cases, {len(failures)} failures, statuses "
            f"{', '.join(f'{status}: {count}' for status, count in sorted(statuses.items()))}; afterwards "
            f"{health['workers']} workers, a solve has status {solved.status}{''.join(f'; {text}' for text in first)}",
            not failures and solved.status == 200 and sum(statuses.values()) >= _SENT_SHARE * plan.cases,
        )
    ]
