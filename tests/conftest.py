"""Configuration of all tests: compiled kernels, few threads, fixed seeds, no network beyond the loopback interface."""

from __future__ import annotations

import gc
import ipaddress
import os
import random
import socket
from typing import Any

import hypothesis
import hypothesis.strategies
import pytest

from convexlayer.runtime import kernel_cache, threads

THREADS = 2
"""Threads of the library's pool, on every machine: enough to share work, few enough for parallel test processes."""

# One thread in BLAS and torch, also in processes that tests start; both read this when they are imported, by a test.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
threads.WORKERS = THREADS  # before other modules import it

# No deadline, because tests never assert on wall time; the same examples in every run, and no example database.
hypothesis.settings.register_profile("convexlayer", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("convexlayer")


@pytest.fixture(scope="session", autouse=True)
def _compiled_kernels() -> None:
    """Compile the kernels before the first test; CONVEXLAYER_COMPILE=never runs the tests without kernels."""
    if os.environ.get(kernel_cache.SETTING) != "never":
        kernel_cache.prepare(wait=True)


@pytest.fixture(scope="session", autouse=True)
def _frozen_modules() -> None:
    """Exempt what importing has made, millions of objects, from garbage collection, which benchmarks ask for often."""
    # Hypothesis looks for the referrers of NumPy's and Python's generators when it first runs, and freezing hides them.
    hypothesis.given(hypothesis.strategies.none())(lambda _: None)()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _temporary_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Put the store of test servers in a temporary folder instead of the user's data folder."""
    os.environ["CONVEXLAYER_STORE"] = str(tmp_path_factory.mktemp("store") / "store.sqlite")


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code may draw from the global generator
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            raise AssertionError(f"a test tried to connect to {address}; only loopback addresses are allowed")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback
