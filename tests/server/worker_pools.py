"""A local backend whose workers do what the test says, with a manual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np
import pytest

from convexlayer_server import Settings
from convexlayer_server.compute import local_backend, quarantine, scheduler, task, task_queue
from convexlayer_server.compute.local_backend import LocalBackend
from convexlayer_server.compute.protocol import ComputeRequest, ComputeResult
from convexlayer_server.compute.worker_messages import ExitReason, WorkItem, WorkResult
from convexlayer_server.compute.worker_pool import PoolObserver

from .clock import Clock, run_with_clock

__all__ = ["CLOCK", "ManualPool", "ManualWorker", "Setup", "run", "settle", "use_manual_clock"]

T = TypeVar("T")

CLOCK = Clock()

SUMMARY: dict[str, Any] = {
    "parameters": {"c": {"shape": []}},
    "variables": {"x": {"shape": []}},
    "duals": {},
    "solver": {"name": "batched", "reason": ""},
}


def use_manual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (local_backend, quarantine, scheduler, task, task_queue):
        if hasattr(module, "time"):
            monkeypatch.setattr(module, "time", CLOCK)
    monkeypatch.setattr(scheduler, "WorkerPool", ManualPool)


def run(work: Coroutine[Any, Any, T]) -> T:
    return run_with_clock(work, CLOCK)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class ManualWorker:
    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: set[str] = set()
        self.batches: set[str] = set()
        self.work: WorkItem | None = None
        self.terminated_for: ExitReason | None = None
        self.in_background = False

    @property
    def idle(self) -> bool:
        return self.work is None and self.terminated_for is None

    def start(self, work: WorkItem, *, limit_s: float, size_bytes: int) -> None:
        self.work = work

    def terminate(self, reason: ExitReason) -> None:
        self.terminated_for = reason


class ManualPool:
    """Workers that are all ready, and a standby, which is replaced at once when it moves."""

    def __init__(self, settings: Settings, observer: PoolObserver) -> None:
        self.observer = observer
        self.count = max(1, settings.workers or 0)
        requested = settings.background_workers
        self.max_background = self.count if requested is None else requested
        self.all_workers: list[Any] = []
        self.replaced = 0

    async def open(self) -> None:
        self._fill_up()

    async def close(self) -> None: ...

    @property
    def foreground(self) -> list[Any]:
        return [worker for worker in self.all_workers if not worker.in_background][: self.count]

    @property
    def background(self) -> list[Any]:
        return [worker for worker in self.all_workers if worker.in_background]

    @property
    def background_capacity(self) -> int:
        return self.max_background - sum(worker.work is not None for worker in self.background)

    def move_standby_to_background(self) -> Any:
        worker = [worker for worker in self.all_workers if not worker.in_background][self.count]
        self.move_to_background(worker)
        return worker

    def move_to_background(self, worker: Any) -> None:
        worker.in_background = True
        self._fill_up()

    def exit(self, worker: Any, reason: ExitReason) -> None:
        self.all_workers.remove(worker)
        self._fill_up()
        self.observer.on_exit(worker, worker.work, reason)

    def _fill_up(self) -> None:
        while len(self.all_workers) - len(self.background) <= self.count:
            self.all_workers.append(ManualWorker(f"w{len(self.all_workers)}"))


class Setup:
    """A backend with manual workers. The first letter of a request's name is its owner.

    Unless a problem is given, request ``a1`` is for a problem of the same name.
    """

    def __init__(self, workers: int = 1, **settings: Any) -> None:
        self.used: dict[str, float] = {}
        self.backend = LocalBackend(Settings(workers=workers, **settings))
        self.scheduler = self.backend._scheduler
        self.pool: Any = self.scheduler.pool
        self.tasks: dict[str, asyncio.Task[ComputeResult]] = {}

    async def open(self) -> Setup:
        def record_usage(owner: str, seconds: float) -> None:
            self.used[owner] = self.used.get(owner, 0.0) + seconds

        await self.backend.open(record_usage)
        return self

    async def send(self, *names: str, problem: str | None = None, elements: int = 1, **fields: Any) -> None:
        for name in names:
            problem_id = problem or name
            record = scheduler._ProblemRecord(SUMMARY | {"id": problem_id}, 0.0)
            self.scheduler._records.put(problem_id, record, 0)
            request = ComputeRequest(
                **{"request_id": name, "owner": name[0], "problem_id": problem_id, "operation": "solve"}
                | {"parameters": {"c": np.zeros(elements)}}
                | fields
            )
            self.tasks[name] = task = asyncio.create_task(self.backend.run(request, b"{}"))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # mark errors as retrieved
        await settle()

    def worker_of(self, name: str) -> Any:
        """The worker that computes a request, or a chunk of it."""
        return next(worker for worker in self.pool.all_workers if name in self.names(worker))

    def names(self, worker: Any) -> list[str]:
        """The requests that a worker computes."""
        if worker.work is None:
            return []
        chunks = self.scheduler._assignments[worker].chunks
        return [chunk.batched.request.request_id.partition("/")[0] for chunk in chunks]

    @property
    def in_foreground(self) -> list[str]:
        """The requests that foreground workers compute, sorted."""
        return sorted(name for worker in self.pool.foreground for name in self.names(worker))

    @property
    def in_background(self) -> list[str]:
        """The requests that background workers compute, sorted."""
        return sorted(name for worker in self.pool.background for name in self.names(worker))

    def elements(self, name: str) -> int:
        """The number of elements of a request that are being computed."""
        return self.scheduler._assignments[self.worker_of(name)].elements

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await settle()

    async def finish(self, name: str, seconds: float = 1e-3) -> None:
        """Finish a chunk after some time."""
        worker = self.worker_of(name)
        await self.pass_time(seconds)
        work, worker.work = worker.work, None
        worker.problems.add(work.problem_id)
        size = max(len(value) for value in work.request.parameters.values())
        self.scheduler.on_done(worker, work, WorkResult(result=result(size), compute_s=seconds))
        await settle()

    async def kill(self, name: str, reason: ExitReason) -> None:
        self.pool.exit(self.worker_of(name), reason)
        await settle()


def result(size: int) -> ComputeResult:
    return ComputeResult(
        arrays={"x": np.zeros(size)}, batched=True, status=("optimal",) * size, objective=np.zeros(size),
        iterations=(1,) * size, residuals={"gap": np.zeros(size)}, report=None, solver="s", reason="",
        seconds={"solve": 1e-3},
    )  # fmt: skip
