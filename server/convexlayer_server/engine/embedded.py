"""The engine of one machine: worker processes, and what is kept for them here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from convexlayer.solution import Status

from ..errors import InvalidError, UnavailableError
from ..settings import Settings
from .merging import Member
from .parts import Cutter
from .protocol import ComputeRequest, ComputeResult, EngineHealth, PortableState, Progress
from .scheduler import Scheduler, Task
from .states import SolvedState, States, digest

__all__ = ["EmbeddedEngine"]

_PART_S = 0.2
"""What one part of a request should take: so long others wait for it, and so fine is its progress."""

_POLL_S = 0.02


@final
class EmbeddedEngine:
    """Computes in worker processes of this machine.

    Args:
        settings: ``workers``, ``device``, the limits of workers, ``batching``, and those of states.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._scheduler = Scheduler(settings)
        self._states = States(settings)
        self._calls: dict[str, list[Task]] = {}
        self._open = False

    async def open(self) -> None:
        """Start the workers; a thread is waited for, since it takes no time."""
        await self._scheduler.crew.open()
        self._open = True
        while not self._settings.workers and not self._scheduler.crew.workers:
            await asyncio.sleep(0)

    async def register(self, problem_id: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Compile a document, unless a worker has it compiled."""
        self._check_open()
        known = self._scheduler.summary(problem_id)
        if known is not None and problem_id in self._scheduler.problems:
            return known
        return await self._compiled(problem_id, document)

    async def run(
        self, request: ComputeRequest, document: Mapping[str, Any], progress: Progress | None = None
    ) -> ComputeResult:
        """Compute, in parts where the batch is large."""
        self._check_open()
        kept = None
        if isinstance(request.state, str):
            kept = self._states.get(request.state, request.owner, request.problem_id)
            request = replace(request, parameters=kept.parameters, options=kept.options)
        summary = self._scheduler.summary(request.problem_id) or await self._compiled(request.problem_id, document)
        cutter = Cutter.of(request, summary)
        if isinstance(request.state, PortableState):
            await _check_portable(request, request.state)
        pieces = self._pieces(cutter, kept)
        tasks = [self._task(cutter, document, kept, *piece) for piece in pieces]
        self._calls[request.request_id] = tasks
        try:
            results = await self._performed(tasks, cutter.batch, progress)
        finally:
            del self._calls[request.request_id]
        result = results[0] if len(results) == 1 else await asyncio.to_thread(cutter.joined, results)
        if not result.batched and str(Status.INVALID) in result.status:
            raise InvalidError.at("/parameters", result.details.get(0, "the values cannot be used"))
        if kept is not None:
            return replace(result, solver=kept.result.solver, reason=kept.result.reason)
        if result.portable is None:
            return result
        return await self._with_state(request, result, pieces)

    async def cancel(self, request_id: str) -> bool:
        """Give up what of a request is still to be done; a part that is in work runs on for a moment."""
        unfinished = [self._scheduler.withdraw(task) for task in self._calls.get(request_id, ())]
        return any(unfinished)

    def health(self) -> EngineHealth:
        """How the engine is."""
        crew = self._scheduler.crew
        return EngineHealth(
            ready=self._open and bool(crew.workers),
            compiled=len(self._scheduler.problems),
            running=self._scheduler.unfinished,
            workers=len(crew.workers),
            replaced=crew.replaced,
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

    async def _compiled(self, problem_id: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
        future: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        task = Task(problem_id=problem_id, document=document, future=future)
        self._scheduler.submit([task])
        try:
            return await future
        finally:
            self._scheduler.withdraw(task)

    def _pieces(self, cutter: Cutter, kept: SolvedState | None) -> tuple[tuple[slice, str], ...]:
        """Ranges of rows, each with the id under which a worker keeps, or is to keep, its solved batch.

        A state is cut as its solve was, so that what workers keep of it is of use; unless its one element stands for
        all elements of the directions.
        """
        if kept is not None and len(kept.points.status) == cutter.batch:
            return kept.pieces
        request = cutter.request
        each_s = self._scheduler.each_s(request.problem_id, request.operation)
        most = self._settings.merged_rows if each_s is None else max(1, min(int(_PART_S / each_s), 1024))
        return tuple((rows, f"{request.request_id}/{rows.start}") for rows in cutter.rows(most))

    def _task(
        self, cutter: Cutter, document: Mapping[str, Any], kept: SolvedState | None, rows: slice, key: str
    ) -> Task:
        request = cutter.request
        points = request.state if kept is None else kept.points
        state = None
        if isinstance(points, PortableState):
            own = len(points.status) == cutter.batch
            state = PortableState(
                digest=key if own and kept is not None else "",
                x=points.x[rows] if own else points.x,
                y=points.y[rows] if own else points.y,
                s=points.s[rows] if own else points.s,
                status=points.status[rows] if own else points.status,
            )
        return Task(
            problem_id=request.problem_id,
            document=document,
            future=asyncio.get_running_loop().create_future(),
            member=Member(cutter.part(rows, key, state), rows.stop - rows.start, cutter.batched),
            home="" if state is None else state.digest,
            each_s=0.0 if kept is None else kept.seconds_each,
        )

    async def _performed(self, tasks: list[Task], batch: int, progress: Progress | None) -> list[ComputeResult]:
        """What became of all of them; where one fails, the others are given up."""
        done = 0

        def count(task: Task) -> None:
            nonlocal done
            done += task.rows
            if progress is not None:
                progress(done, batch)

        if progress is not None:
            progress(0, batch)
        for task in tasks:
            task.future.add_done_callback(lambda _, task=task: count(task))  # type: ignore[misc]
        try:
            self._scheduler.submit(tasks)
            return await asyncio.gather(*(task.future for task in tasks))
        finally:
            for task in tasks:
                self._scheduler.withdraw(task)

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
