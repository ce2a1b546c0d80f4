"""Who may wait for the engine.

The engine serves every owner in its turn. Here it is seen to that no more wait than can be served in a while: who comes
when all places are taken gets one of the greediest's, or is refused at once, before a body is read.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, final

from ..errors import TooManyError
from ..fair_queue import FairQueue, is_greediest
from ..metrics import Metrics
from ..settings import Settings
from ..trace import Trace, current_trace
from ..usage import Ledger
from .protocol import Begun, ComputeRequest, ComputeResult, Engine, EngineHealth, Progress

__all__ = ["Admission"]

_T = TypeVar("_T")


@final
class Admission:
    """An engine with so many places to wait.

    Args:
        engine: what computes.
        settings: ``max_waiting`` and ``max_wait_s``.
        ledger: what is told who used how much.
        metrics: what is told how long things took.
    """

    def __init__(self, engine: Engine, settings: Settings, ledger: Ledger, metrics: Metrics) -> None:
        self._engine = engine
        self._settings = settings
        self._ledger = ledger
        self._metrics = metrics
        self._arriving: dict[Trace, str] = {}
        self._waiting: FairQueue[asyncio.Timeout] = FairQueue()

    async def open(self) -> None:
        """Begin."""
        await self._engine.open(lambda owner, seconds: self._ledger.count(owner, seconds=seconds))

    async def register(self, problem_id: str, document: bytes, owner: str = "") -> Mapping[str, Any]:
        """Compile a document; raises as ``Engine.register`` does.

        Raises:
            TooManyError: too many requests wait, or this one did for too long.
        """
        trace = current_trace()
        trace.problem_id, trace.operation = problem_id, "register"
        return await self._in_place(
            owner, "register", lambda begun: self._engine.register(problem_id, document, owner, begun), patient=False
        )

    async def run(self, request: ComputeRequest, document: bytes, progress: Progress | None = None) -> ComputeResult:
        """Compute; raises as ``Engine.run`` does.

        Raises:
            TooManyError: too many requests wait, or this one did for too long; one with ``progress`` may wait longer.
        """
        trace = current_trace()
        trace.problem_id, trace.operation = request.problem_id, request.operation
        result = await self._in_place(
            request.owner,
            request.operation,
            lambda begun: self._engine.run(request, document, progress, begun),
            patient=progress is not None,
        )
        trace.batch = len(result.status)
        self._ledger.count(request.owner, elements=trace.batch)
        self._metrics.elements.labels(request.operation).observe(trace.batch)
        return result

    @contextmanager
    def arriving(self, owner: str) -> Iterator[None]:
        """Read and serve a request within.

        Raises:
            TooManyError: it would not be let in, for too many wait, and no key has more of them than this one.
        """
        if self.waiting + len(self._arriving) >= self._settings.max_waiting and is_greediest(
            owner, self._waiting.lengths() + Counter(self._arriving.values())
        ):
            raise self._too_many()
        trace = current_trace()
        self._arriving[trace] = owner
        try:
            yield
        finally:
            self._arriving.pop(trace, None)

    async def cancel(self, request_id: str) -> bool:
        """Give up a request; whether any of it was still to be done."""
        return await self._engine.cancel(request_id)

    def health(self) -> EngineHealth:
        """How the engine is."""
        return self._engine.health()

    @property
    def waiting(self) -> int:
        """Requests of which nothing has begun."""
        return len(self._waiting)

    async def close(self) -> None:
        """Stop, after what is being computed."""
        await self._engine.close()

    async def _in_place(
        self, owner: str, operation: str, work: Callable[[Begun], Awaitable[_T]], *, patient: bool
    ) -> _T:
        """What comes of work, which holds a place until it begins."""
        trace, arrived = current_trace(), time.monotonic()
        self._arriving.pop(trace, None)
        self._make_room(owner)
        place = asyncio.timeout(None if patient else self._settings.max_wait_s)
        self._waiting.push(owner, place)

        def begun() -> None:
            if self._waiting.remove(owner, place):
                place.reschedule(None)
                trace.queue_s = time.monotonic() - arrived
                self._metrics.queue.labels(operation).observe(trace.queue_s)

        try:
            async with place:
                return await work(begun)
        except TimeoutError as error:
            if not place.expired():
                raise
            raise self._too_many() from error
        finally:
            self._waiting.remove(owner, place)
            if trace.queue_s is not None:
                trace.solve_s = time.monotonic() - arrived - trace.queue_s
                self._metrics.compute.labels(operation).observe(trace.solve_s)

    def _make_room(self, owner: str) -> None:
        """Where too many wait, the last of the key with most of them gives up its place."""
        if self.waiting >= self._settings.max_waiting:
            last = self._waiting.pop_last_for(owner)
            if last is None:
                raise self._too_many()
            last.reschedule(asyncio.get_running_loop().time())

    def _too_many(self) -> TooManyError:
        return TooManyError(
            f"{self.waiting} requests wait for the engine; try again later",
            retry_after_s=max(1.0, self._engine.health().backlog_s),
        )
