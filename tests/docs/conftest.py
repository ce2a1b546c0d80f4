"""A server for the examples of the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The address of a server that `convexlayer serve` runs on a free port of this machine."""
    command = [sys.executable, "-m", "convexlayer.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            yield next(found[1] for line in server.stdout if (found := re.search(r"listening on (http://\S+)", line)))
        finally:
            server.terminate()
