"""A real server in a process of its own, for the whole session of tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convexlayer_client import Client

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "python" / "src"


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server")])}
    command = [sys.executable, "-m", "convexlayer.cli", "serve", "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(line.split()[-1] for line in process.stdout if line.startswith("listening on"))
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client
