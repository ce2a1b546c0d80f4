"""The compute backend of one machine: worker processes, and the states of handles in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from convexlayer.status import Status

from ..errors import InvalidError, shutting_down
from ..settings import Settings
from .batching import BatchedRequest
from .protocol import (
    ComputeHealth,
    ComputeRequest,
    ComputeResult,
    OnProgress,
    OnStart,
    PortableState,
    RecordUsage,
)
from .scheduler import Scheduler
from .states import SolvedState, StateCache, state_digest
from .task import ChunkResult, Task

__all__ = ["LocalBackend"]

_CLOSE_POLL_S = 0.02
"""Interval in seconds at which ``close`` checks whether requests are still running."""


def _ignore_usage(owner: str, seconds: float) -> None:
    """Ignore usage."""


def _ignore_start() -> None:
    """Ignore the start."""


@final
class LocalBackend:
    """Computes in worker processes of this machine.

    Args:
        settings: ``workers``, ``device``, the limits of workers, ``batching``, and the limits of states.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._record_usage: RecordUsage = _ignore_usage
        self._scheduler = Scheduler(settings, lambda owner, seconds: self._record_usage(owner, seconds))
        self._states = StateCache(settings)
        self._tasks: dict[str, Task] = {}
        self._open = False

    async def open(self, record_usage: RecordUsage = _ignore_usage) -> None:
        """Start the workers. Wait only for a worker thread, which starts at once."""
        self._record_usage = record_usage
        await self._scheduler.pool.open()
        self._open = True
        while self._settings.workers == 0 and not self._scheduler.pool.foreground:
            await asyncio.sleep(0)

    async def register(
        self, problem_id: str, document: bytes, owner: str = "", on_start: OnStart = _ignore_start
    ) -> Mapping[str, Any]:
        """Canonicalise a document, unless a worker holds it already."""
        self._check_open()
        summary = self._scheduler.summary(problem_id)
        if summary is not None and problem_id in self._scheduler.problems:
            return summary
        return await self._canonicalise(problem_id, document, owner, on_start)

    async def run(
        self,
        request: ComputeRequest,
        document: bytes,
        on_progress: OnProgress | None = None,
        on_start: OnStart = _ignore_start,
    ) -> ComputeResult:
        """Compute a request, in chunks if its batch is large."""
        self._check_open()
        solved = None
        if isinstance(request.state, str):
            solved = self._states.get(request.state, request.owner, request.problem_id)
            request = replace(request, parameters=solved.parameters, options=solved.options)
        summary = self._scheduler.summary(request.problem_id)
        if summary is None:
            summary = await self._canonicalise(request.problem_id, document, request.owner, on_start)
        batched = BatchedRequest.of(request, summary)
        if isinstance(request.state, PortableState):
            await _check_digest(request, request.state)
        if on_progress is not None:
            on_progress(0, batched.elements)
        chunks: list[ChunkResult] = await self._complete(
            request.request_id,
            Task(
                owner=request.owner,
                problem_id=request.problem_id,
                document=document,
                future=asyncio.get_running_loop().create_future(),
                batched=batched,
                solved=solved,
                on_progress=on_progress,
                on_start=on_start,
            ),
        )
        results = [result for _, _, result in chunks]
        result = results[0] if len(results) == 1 else await asyncio.to_thread(batched.join, results)
        if not result.batched and str(Status.INVALID) in result.status:
            raise InvalidError.at("/parameters", result.details.get(0, "the values are invalid"))
        if solved is not None:
            return replace(result, solver=solved.result.solver, reason=solved.result.reason)
        if result.portable is None:
            return result
        return await self._with_state(request, result, tuple((elements, key) for elements, key, _ in chunks))

    async def cancel(self, request_id: str) -> bool:
        """Cancel the rest of a request; a chunk that is being computed runs on for a moment."""
        task = self._tasks.get(request_id)
        return task is not None and self._scheduler.cancel(task)

    def health(self) -> ComputeHealth:
        """Return the current health."""
        pool = self._scheduler.pool
        return ComputeHealth(
            ready=self._open and bool(pool.foreground),
            cached_problems=len(self._scheduler.problems),
            running=self._scheduler.unfinished,
            workers=len(pool.foreground),
            replaced=pool.replaced,
            capabilities=pool.capabilities,
            backlog_s=self._scheduler.backlog_s(),
        )

    async def close(self) -> None:
        """Let running and queued requests finish for up to ``drain_s``, then terminate the workers."""
        self._open = False
        end = time.monotonic() + self._settings.drain_s
        while self._scheduler.awaited and time.monotonic() < end:
            await asyncio.sleep(_CLOSE_POLL_S)
        self._scheduler.fail_pending()
        await self._scheduler.pool.close()

    def _check_open(self) -> None:
        if not self._open:
            raise shutting_down()

    async def _canonicalise(self, problem_id: str, document: bytes, owner: str, on_start: OnStart) -> Mapping[str, Any]:
        future = asyncio.get_running_loop().create_future()
        task = Task(owner=owner, problem_id=problem_id, document=document, future=future, on_start=on_start)
        summary: Mapping[str, Any] = await self._complete("", task)
        return summary

    async def _complete(self, request_id: str, task: Task) -> Any:
        """Submit a task and wait for its result; cancel it if this coroutine is cancelled."""
        if request_id:
            self._tasks[request_id] = task
        try:
            self._scheduler.submit(task)
            return await task.future
        finally:
            self._scheduler.cancel(task)
            self._tasks.pop(request_id, None)

    async def _with_state(
        self, request: ComputeRequest, result: ComputeResult, chunks: tuple[tuple[slice, str], ...]
    ) -> ComputeResult:
        """Add the requested forms of the state to a result: a handle, a digest."""
        points = result.portable
        assert points is not None, "both forms need the solutions"
        handle = None
        if request.keep:
            state = SolvedState(
                owner=request.owner,
                problem_id=request.problem_id,
                parameters=request.parameters,
                options=request.options,
                result=replace(result, arrays={}, portable=None),
                points=points,
                chunks=chunks,
                seconds_each=result.seconds["solve"] / len(result.status),
            )
            handle = self._states.put(state)
        if request.portable:
            digest = await asyncio.to_thread(state_digest, request.problem_id, request.parameters, points)
            return replace(result, state=handle, portable=replace(points, digest=digest))
        return replace(result, state=handle, portable=None)


async def _check_digest(request: ComputeRequest, state: PortableState) -> None:
    digest = await asyncio.to_thread(state_digest, request.problem_id, request.parameters, state)
    if digest != state.digest:
        raise InvalidError.at(
            "/state", "belongs to another problem or other parameters, or was changed; send the parameters alone"
        )
