"""Workers that cannot be started."""

from __future__ import annotations

import asyncio
from typing import Any

import psutil
import pytest

from convexlayer_server import Settings
from convexlayer_server.compute.worker_pool import WorkerPool


@pytest.mark.parametrize("error", [OSError("no process"), EOFError("no fork server"), psutil.NoSuchProcess(1)])
def test_a_worker_that_cannot_be_started_is_started_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    unused: Any = None
    pool, again = WorkerPool(Settings(workers=1), unused), list[str]()

    def fail(self: WorkerPool, device: str) -> Any:
        raise error

    monkeypatch.setattr(WorkerPool, "_start_process", fail)
    monkeypatch.setattr(WorkerPool, "_restart", lambda self, device: again.append(device))
    pool._count = 1
    asyncio.run(pool._start_worker("cpu"))
    assert again == ["cpu"]
