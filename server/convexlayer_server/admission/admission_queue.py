"""The queue in front of the compute backend, which bounds the number of waiting requests.

The backend schedules owners fairly. This queue refuses requests that it could not serve soon: a request that arrives
when the queue is full evicts one of the owner with the most waiting requests, or is refused at once, before its body is
read.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, final

from ..compute.protocol import ComputeBackend, ComputeHealth, ComputeRequest, ComputeResult, OnProgress, OnStart
from ..errors import RETRY_S, TooManyError
from ..observability.metrics import Metrics
from ..observability.tracing import RequestContext, current_context
from ..settings import Settings
from ..shared.fair_queue import FairQueue, would_be_longest
from .usage import UsageLedger

__all__ = ["AdmissionQueue"]

_T = TypeVar("_T")


@final
class AdmissionQueue:
    """A compute backend with a bounded number of waiting requests.

    Args:
        backend: the compute backend.
        settings: ``max_waiting`` and ``max_wait_s``.
        ledger: receives the usage of each owner.
        metrics: receives durations and batch sizes.
    """

    def __init__(self, backend: ComputeBackend, settings: Settings, ledger: UsageLedger, metrics: Metrics) -> None:
        self._backend = backend
        self._settings = settings
        self._ledger = ledger
        self._metrics = metrics
        self._arriving: dict[RequestContext, str] = {}
        self._waiting: FairQueue[asyncio.Timeout] = FairQueue()

    async def open(self) -> None:
        """Open the backend."""
        await self._backend.open(lambda owner, seconds: self._ledger.count(owner, seconds=seconds))

    async def register(self, problem_id: str, document: bytes, owner: str = "") -> Mapping[str, Any]:
        """Canonicalise a document; raises as ``ComputeBackend.register`` does.

        Raises:
            TooManyError: too many requests wait, or this one waited too long.
        """
        context = current_context()
        context.problem_id, context.operation = problem_id, "register"
        return await self._wait_in_queue(
            owner,
            "register",
            lambda on_start: self._backend.register(problem_id, document, owner, on_start),
            limited=True,
        )

    async def run(
        self, request: ComputeRequest, document: bytes, on_progress: OnProgress | None = None
    ) -> ComputeResult:
        """Compute a request; raises as ``ComputeBackend.run`` does.

        Raises:
            TooManyError: too many requests wait; or this one waited too long, which with ``on_progress`` it may.
        """
        context = current_context()
        context.problem_id, context.operation = request.problem_id, request.operation
        result = await self._wait_in_queue(
            request.owner,
            request.operation,
            lambda on_start: self._backend.run(request, document, on_progress, on_start),
            limited=on_progress is None,
        )
        context.batch = len(result.status)
        self._ledger.count(request.owner, elements=context.batch)
        self._metrics.elements.labels(request.operation).observe(context.batch)
        return replace(result, seconds={**result.seconds, "queue": context.queue_s or 0.0})

    @contextmanager
    def admit(self, owner: str) -> Iterator[None]:
        """Receive and serve a request within this context.

        Raises:
            TooManyError: the queue is full, and no owner has more waiting requests than this one.
        """
        if self.waiting + len(self._arriving) >= self._settings.max_waiting and would_be_longest(
            owner, self._waiting.lengths() + Counter(self._arriving.values())
        ):
            raise self._too_many()
        context = current_context()
        self._arriving[context] = owner
        try:
            yield
        finally:
            self._arriving.pop(context, None)

    async def cancel(self, request_id: str) -> bool:
        """Cancel a request; return whether any of it was still to be computed."""
        return await self._backend.cancel(request_id)

    def health(self) -> ComputeHealth:
        """Return the health of the backend."""
        return self._backend.health()

    @property
    def waiting(self) -> int:
        """Number of requests that no worker has started."""
        return len(self._waiting)

    async def close(self) -> None:
        """Close the backend after the running requests."""
        await self._backend.close()

    async def _wait_in_queue(
        self, owner: str, operation: str, work: Callable[[OnStart], Awaitable[_T]], *, limited: bool
    ) -> _T:
        """Return the result of ``work``, which has a place in the queue until it starts.

        Args:
            owner: ID of the key.
            operation: label for the metrics.
            work: the work; it calls its argument when it starts.
            limited: whether ``max_wait_s`` applies.
        """
        context, arrived = current_context(), time.monotonic()
        context.queue_s = context.solve_s = None  # the same request may have waited before, to register its problem
        self._arriving.pop(context, None)
        self._make_room(owner)
        place = asyncio.timeout(self._settings.max_wait_s if limited else None)
        self._waiting.push(owner, place)

        def on_start() -> None:
            if self._waiting.remove(owner, place) and not place.expired():
                place.reschedule(None)
                context.queue_s = time.monotonic() - arrived
                self._metrics.queue.labels(operation).observe(context.queue_s)

        try:
            async with place:
                return await work(on_start)
        except TimeoutError as error:
            if not place.expired():
                raise
            raise self._too_many() from error
        finally:
            self._waiting.remove(owner, place)
            if context.queue_s is not None:
                context.solve_s = time.monotonic() - arrived - context.queue_s
                self._metrics.compute.labels(operation).observe(context.solve_s)

    def _make_room(self, owner: str) -> None:
        """If the queue is full, evict the last request of the owner with the most."""
        if self.waiting >= self._settings.max_waiting:
            evicted = self._waiting.evict_for(owner)
            if evicted is None:
                raise self._too_many()
            if not evicted.expired():  # else its request is about to leave the queue anyway
                evicted.reschedule(asyncio.get_running_loop().time())

    def _too_many(self) -> TooManyError:
        return TooManyError(
            f"{self.waiting} requests wait to be computed; try again later",
            retry_after_s=max(RETRY_S, self._backend.health().backlog_s),
        )
