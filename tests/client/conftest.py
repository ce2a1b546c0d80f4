"""A server on a thread of this process, which already has the imports of one; shared by the tests of a module."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from convexlayer_client import Client, JvpResult, SolveResult, VjpResult
from tests.client.example import DOCUMENT
from tests.client.splitting import COTANGENTS, TANGENTS, THETA
from tests.server.running import running

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "python" / "src"


@pytest.fixture(scope="module")  # not longer: other modules replace the clock and sleep, which the server would feel
def url() -> Iterator[str]:
    with running() as server:
        yield server.url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Find a free port, for a server that is restarted at the same address."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture(scope="module")
def unsplit(client: Client) -> tuple[SolveResult, VjpResult, JvpResult]:
    """Results of the batch of ``splitting`` in one request."""
    problem = client.register(DOCUMENT)
    return (
        client.solve(problem.id, THETA, duals=True),
        client.vjp(problem.id, COTANGENTS, THETA),
        client.jvp(problem.id, TANGENTS, THETA, duals=True),
    )
