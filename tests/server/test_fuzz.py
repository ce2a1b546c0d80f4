"""Fuzzing: thousands of nearly valid requests; none may cause a 5xx or a response outside the wire format."""

from __future__ import annotations

import pytest

from benchmarks.reliability.fuzz_cases import DOCUMENT, LIMITS, VALUES, Generator, check
from benchmarks.reliability.schema import send_cases
from convexlayer_server import Settings, create_app

from .conftest import AppClient

REQUESTS = 500  # for each seed
SEEDS = range(5)
EXAMPLES = 6  # for each operation, both valid and invalid ones
SETTINGS = Settings(workers=0, **LIMITS)


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")  # sums of extreme numbers in CVXPY
@pytest.mark.parametrize("seed", SEEDS)
def test_no_request_breaks_the_server(seed: int) -> None:
    client = AppClient(create_app(SETTINGS))
    try:
        path = client.register(DOCUMENT)
        statuses = set()
        for case in Generator(seed, path).cases(REQUESTS):
            response = client.request(case.method, case.path, content=case.content, headers=case.headers)
            check(response, (case.method, case.path, case.content[:3000]))
            statuses.add(response.status_code)
        assert {200, 201, 400, 404, 405, 415, 422} <= statuses
        assert client.post(f"{path}/solve", {"parameters": VALUES}).status_code == 200
    finally:
        client.close()


@pytest.mark.filterwarnings("ignore")  # of the packages that generate requests
def test_no_request_of_the_openapi_document_breaks_the_server() -> None:
    client = AppClient(create_app(SETTINGS))
    statuses = set()

    def send(method: str, path: str, **options: object) -> None:
        response = client.request(method, path, **options)
        check(response, (method, path, options))
        statuses.add(response.status_code)

    try:
        sent = send_cases(client.get("/openapi.json").json(), EXAMPLES, seed=0, send=send)
        assert sent > 100
        assert {200, 404, 422} <= statuses
    finally:
        client.close()
