"""Servers in separate processes: one shared by the test session, and further ones for tests that stop theirs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from convexlayer_client import Client, JvpResult, SolveResult, VjpResult
from tests.client.example import DOCUMENT
from tests.client.splitting import COTANGENTS, TANGENTS, THETA

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "python" / "src"


@contextmanager
def serving(*options: str, port: int = 0, **settings: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a server and yield its URL and process; ``settings`` become variables with the prefix CONVEXLAYER_."""
    named = {f"CONVEXLAYER_{name.upper()}": value for name, value in settings.items()}
    environment = os.environ | named | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server")])}
    command = [sys.executable, "-m", "convexlayer.cli", "serve", "--host", "127.0.0.1", "--port", str(port), *options]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(line.split()[-1] for line in process.stdout if line.startswith("listening on")), process
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    with serving("--workers", "0") as (address, _):
        yield address


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def unsplit(client: Client) -> tuple[SolveResult, VjpResult, JvpResult]:
    """Results of the batch of ``splitting`` in one request."""
    problem = client.register(DOCUMENT)
    return (
        client.solve(problem.id, THETA, duals=True),
        client.vjp(problem.id, COTANGENTS, THETA),
        client.jvp(problem.id, TANGENTS, THETA, duals=True),
    )
