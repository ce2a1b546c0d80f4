"""A server for the examples of the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The address of a server that `convexlayer serve` runs on a free port of this machine."""
    command = [sys.executable, "-m", "convexlayer.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            url = next(found[1] for line in server.stdout if (found := re.search(r"listening on (http://\S+)", line)))
            while httpx.get(f"{url}/readyz", timeout=600).status_code != 200:
                time.sleep(0.1)
            yield url
        finally:
            server.terminate()
