"""The engine of one machine: worker processes, and what is kept for them here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from convexlayer.status import Status

from ..errors import InvalidError, UnavailableError
from ..settings import Settings
from .parts import Cutter
from .protocol import Begun, Charge, ComputeRequest, ComputeResult, EngineHealth, PortableState, Progress
from .scheduler import Scheduler
from .states import SolvedState, States, digest
from .task import Task

__all__ = ["EmbeddedEngine"]

_POLL_S = 0.02


def _nobody(owner: str, seconds: float) -> None:
    """Nobody counts what is used."""


def _nothing() -> None:
    """Nobody asks when it begins."""


@final
class EmbeddedEngine:
    """Computes in worker processes of this machine.

    Args:
        settings: ``workers``, ``device``, the limits of workers, ``batching``, and those of states.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._charge: Charge = _nobody
        self._scheduler = Scheduler(settings, lambda owner, seconds: self._charge(owner, seconds))
        self._states = States(settings)
        self._tasks: dict[str, Task] = {}
        self._open = False

    async def open(self, charge: Charge = _nobody) -> None:
        """Start the workers; a thread is waited for, since it takes no time."""
        self._charge = charge
        await self._scheduler.crew.open()
        self._open = True
        while self._settings.workers == 0 and not self._scheduler.crew.workers:
            await asyncio.sleep(0)

    async def register(
        self, problem_id: str, document: bytes, owner: str = "", begun: Begun = _nothing
    ) -> Mapping[str, Any]:
        """Compile a document, unless a worker has it compiled."""
        self._check_open()
        known = self._scheduler.summary(problem_id)
        if known is not None and problem_id in self._scheduler.problems:
            return known
        return await self._compiled(problem_id, document, owner, begun)

    async def run(
        self,
        request: ComputeRequest,
        document: bytes,
        progress: Progress | None = None,
        begun: Begun = _nothing,
    ) -> ComputeResult:
        """Compute, piece by piece where the batch is large."""
        self._check_open()
        kept = None
        if isinstance(request.state, str):
            kept = self._states.get(request.state, request.owner, request.problem_id)
            request = replace(request, parameters=kept.parameters, options=kept.options)
        summary = self._scheduler.summary(request.problem_id)
        if summary is None:
            summary = await self._compiled(request.problem_id, document, request.owner, begun)
        cutter = Cutter.of(request, summary)
        if isinstance(request.state, PortableState):
            await _check_portable(request, request.state)
        if progress is not None:
            progress(0, cutter.batch)
        outcomes = await self._done(
            request.request_id,
            Task(
                owner=request.owner,
                problem_id=request.problem_id,
                document=document,
                future=asyncio.get_running_loop().create_future(),
                cutter=cutter,
                kept=kept,
                progress=progress,
                on_begun=begun,
            ),
        )
        results = [outcome.result for outcome in outcomes]
        result = results[0] if len(results) == 1 else await asyncio.to_thread(cutter.joined, results)
        if not result.batched and str(Status.INVALID) in result.status:
            raise InvalidError.at("/parameters", result.details.get(0, "the values cannot be used"))
        if kept is not None:
            return replace(result, solver=kept.result.solver, reason=kept.result.reason)
        if result.portable is None:
            return result
        return await self._with_state(request, result, tuple((outcome.rows, outcome.key) for outcome in outcomes))

    async def cancel(self, request_id: str) -> bool:
        """Give up what of a request is still to be done; a piece that is in work runs on for a moment."""
        task = self._tasks.get(request_id)
        return task is not None and self._scheduler.withdraw(task)

    def health(self) -> EngineHealth:
        """How the engine is."""
        crew = self._scheduler.crew
        return EngineHealth(
            ready=self._open and bool(crew.workers),
            compiled=len(self._scheduler.problems),
            running=self._scheduler.unfinished,
            workers=len(crew.workers),
            replaced=crew.replaced,
            abilities=crew.abilities,
            backlog_s=self._scheduler.backlog_s(),
        )

    async def close(self) -> None:
        """Let what is in work and what waits come to its end for ``drain_s``, then end the workers."""
        self._open = False
        end = time.monotonic() + self._settings.drain_s
        while self._scheduler.awaited and time.monotonic() < end:
            await asyncio.sleep(_POLL_S)
        self._scheduler.give_up()
        await self._scheduler.crew.close()

    def _check_open(self) -> None:
        if not self._open:
            raise UnavailableError("the server is shutting down", retry_after_s=1.0)

    async def _compiled(self, problem_id: str, document: bytes, owner: str, begun: Begun) -> Mapping[str, Any]:
        future = asyncio.get_running_loop().create_future()
        task = Task(owner=owner, problem_id=problem_id, document=document, future=future, on_begun=begun)
        summary: Mapping[str, Any] = await self._done("", task)
        return summary

    async def _done(self, request_id: str, task: Task) -> Any:
        """What became of a task, which is given up where nobody waits for it any more."""
        if request_id:
            self._tasks[request_id] = task
        try:
            self._scheduler.submit(task)
            return await task.future
        finally:
            self._scheduler.withdraw(task)
            self._tasks.pop(request_id, None)

    async def _with_state(
        self, request: ComputeRequest, result: ComputeResult, pieces: tuple[tuple[slice, str], ...]
    ) -> ComputeResult:
        """With a handle where that is asked for, and with the points where they are."""
        points = result.portable
        assert points is not None, "they are asked for with either"
        handle = None
        if request.keep:
            state = SolvedState(
                owner=request.owner,
                problem_id=request.problem_id,
                parameters=request.parameters,
                options=request.options,
                result=replace(result, arrays={}, portable=None),
                points=points,
                pieces=pieces,
                seconds_each=result.seconds["solve"] / len(result.status),
            )
            handle = self._states.put(state)
        if request.portable:
            found = await asyncio.to_thread(digest, request.problem_id, request.parameters, points)
            return replace(result, state=handle, portable=replace(points, digest=found))
        return replace(result, state=handle, portable=None)


async def _check_portable(request: ComputeRequest, state: PortableState) -> None:
    found = await asyncio.to_thread(digest, request.problem_id, request.parameters, state)
    if found != state.digest:
        raise InvalidError.at(
            "/state", "belongs to another problem or to other parameters, or was changed; send the parameters alone"
        )
