"""What every test shares: fixed seeds, no network beyond this machine."""

from __future__ import annotations

import ipaddress
import os
import random
import socket
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from convexlayer.runtime import kernel_cache

# No deadline, for tests never judge wall time; the same examples in every run, and nothing kept between runs.
hypothesis.settings.register_profile("convexlayer", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("convexlayer")


@pytest.fixture(scope="session", autouse=True)
def _compiled_kernels() -> None:
    """The tests use compiled kernels from the first on; CONVEXLAYER_COMPILE=never runs them without."""
    if os.environ.get(kernel_cache.SETTING) != "never":
        kernel_cache.prepare(wait=True)


@pytest.fixture(scope="session", autouse=True)
def _no_store_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Servers that tests start keep their store here, not in the user's data folder."""
    os.environ["CONVEXLAYER_STORE"] = str(tmp_path_factory.mktemp("store") / "store.sqlite")


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code may draw from the global generator
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            raise AssertionError(f"a test tried to reach {address}; tests stay on this machine")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback
