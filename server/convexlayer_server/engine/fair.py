"""An engine behind a queue that is fair to every key.

The engine is handed as many groups of requests at a time as it has workers; the rest wait here, in a line for each key.
When the turn comes to a request, those that wait for the same computation of the same problem go with it, whoever's
they are, for an engine merges them into one batch, which takes little longer than one of them; as long as it does.

What runs is not interrupted. So where one key has requests waiting and another, which was served less, sends one that
is being read, or has just been answered, the last free worker is held back for a moment: a caller that waits for each
answer sends its next request at once, and would else find every worker taken each time (deceptive idleness; Iyer and
Druschel, 2001).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, final

from ..errors import TooManyError
from ..fair_queue import FairQueue
from ..metrics import Metrics
from ..settings import Settings
from ..trace import Trace, current_trace
from ..usage import Ledger
from .protocol import ComputeOptions, ComputeRequest, ComputeResult, Engine, EngineHealth, Progress

__all__ = ["FairEngine"]

_T = TypeVar("_T")
_Computation = tuple[str, str, ComputeOptions | None]
"""Problem, operation and options: requests in which they are equal may be merged."""

_SMOOTHING = 0.2
"""Weight of the newest request in the running means of their cost."""

_KNOWN = 4096
"""Computations whose cost is remembered."""

_MERGED_S = 0.01
_LEAST_MERGED = 2
"""Requests merge up to this long, or this many, for so many cost hardly more than one."""

_READING_S = 0.02
"""For how long a worker is held back while a body is read, at most."""

_PATIENCE_S = 0.01
"""How long a worker is held back, at most; no longer than the key's last request took, so that little is lost."""


@dataclass(eq=False)
class _Group:
    """Requests that were handed over together, until the last has ended."""

    size: int
    left: int
    started: float


@dataclass(eq=False)
class _Waiting:
    """A request that waits for its turn, which is its group."""

    owner: str
    request_id: str
    computation: _Computation
    cost: float
    turn: asyncio.Future[_Group]


@final
class FairEngine:
    """Hands requests to another engine, each key in its turn.

    Args:
        engine: what computes.
        settings: ``max_waiting``, ``max_wait_s``, ``max_running``, ``batching`` and ``merged_rows``.
        ledger: what is told who used how much.
        metrics: what is told how long things took.
    """

    def __init__(self, engine: Engine, settings: Settings, ledger: Ledger, metrics: Metrics) -> None:
        self._engine = engine
        self._settings = settings
        self._ledger = ledger
        self._metrics = metrics
        self._queue: FairQueue[_Waiting] = FairQueue()
        self._by_id: dict[str, _Waiting] = {}
        self._running: Counter[str] = Counter()
        self._groups = 0
        self._held_until: float | None = None
        self._arriving: dict[Trace, tuple[str, float]] = {}
        self._expected: dict[str, float] = {}
        self._each_s: OrderedDict[_Computation, float] = OrderedDict()
        self._mean_s = 0.002  # until anything is known

    async def open(self) -> None:
        """Begin."""
        await self._engine.open()

    async def register(self, problem_id: str, document: Mapping[str, Any], owner: str = "") -> Mapping[str, Any]:
        """Compile a document in its owner's turn; raises as ``Engine.register`` does.

        Raises:
            TooManyError: too many requests wait.
        """
        trace = current_trace()
        trace.problem_id, trace.operation = problem_id, "register"
        computation = (problem_id, "register", None)
        return await self._in_turn(
            owner, "", computation, lambda: self._engine.register(problem_id, document), patient=False
        )

    async def run(
        self, request: ComputeRequest, document: Mapping[str, Any], progress: Progress | None = None
    ) -> ComputeResult:
        """Compute in the owner's turn; raises as ``Engine.run`` does.

        Raises:
            TooManyError: too many requests wait, or this one did for too long; one with ``progress`` may wait longer.
        """
        trace = current_trace()
        trace.problem_id, trace.operation = request.problem_id, request.operation
        computation = (request.problem_id, request.operation, request.options)
        result = await self._in_turn(
            request.owner,
            request.request_id,
            computation,
            lambda: self._engine.run(request, document, progress),
            patient=progress is not None,
        )
        trace.batch = len(result.status)
        self._ledger.count(request.owner, elements=trace.batch)
        self._metrics.elements.labels(request.operation).observe(trace.batch)
        waited_s = (trace.queue_s or 0.0) + result.seconds.get("queue", 0.0)  # here, and in the engine
        return replace(result, seconds={**result.seconds, "queue": waited_s})

    @contextmanager
    def arriving(self, owner: str) -> Iterator[None]:
        """Read and serve a request within.

        Raises:
            TooManyError: it would not be let in, for too many wait, and no key has more of them than this one.
        """
        trace = current_trace()
        if len(self._queue) + len(self._arriving) >= self._settings.max_waiting:
            self._check(owner, self._queue.lengths() + Counter(other for other, _ in self._arriving.values()))
        self._arriving[trace] = owner, time.monotonic() + _READING_S
        try:
            yield
        finally:
            self._arriving.pop(trace, None)

    async def cancel(self, request_id: str) -> bool:
        """Give up a request; whether any of it was still to be done."""
        waiting = self._by_id.get(request_id)
        if waiting is not None and self._queue.remove(waiting.owner, waiting):
            waiting.turn.cancel()
            return True
        return await self._engine.cancel(request_id)

    def health(self) -> EngineHealth:
        """How the engine is."""
        return self._engine.health()

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    async def close(self) -> None:
        """Stop, after what is being computed."""
        await self._engine.close()

    async def _in_turn(
        self,
        owner: str,
        request_id: str,
        computation: _Computation,
        work: Callable[[], Awaitable[_T]],
        *,
        patient: bool,
    ) -> _T:
        arrived = time.monotonic()
        group, cost = await self._turn(owner, request_id, computation, patient=patient)
        self._running[owner] += 1
        trace = current_trace()
        _, operation, _ = computation
        trace.queue_s = time.monotonic() - arrived
        self._metrics.queue.labels(operation).observe(trace.queue_s)
        try:
            return await work()
        finally:
            trace.solve_s = time.monotonic() - group.started
            share_s = trace.solve_s / group.size
            self._queue.charge(owner, share_s - cost)
            self._learn(computation, share_s)
            self._ledger.count(owner, seconds=share_s)
            self._metrics.compute.labels(operation).observe(trace.solve_s)
            self._running[owner] -= 1
            if not self._running[owner]:
                del self._running[owner]
                self._expected[owner] = time.monotonic() + min(trace.solve_s, _PATIENCE_S)
            self._leave(group)

    async def _turn(
        self, owner: str, request_id: str, computation: _Computation, *, patient: bool
    ) -> tuple[_Group, float]:
        """Wait for the turn; the group and what was charged."""
        self._arriving.pop(current_trace(), None)
        self._make_room(owner)
        cost = self._estimate(computation)
        waiting = _Waiting(owner, request_id, computation, cost, asyncio.get_running_loop().create_future())
        self._expected.pop(owner, None)
        self._queue.push(owner, waiting)
        if request_id:
            self._by_id[request_id] = waiting
        self._dispatch()
        try:
            async with asyncio.timeout(None if patient else self._settings.max_wait_s):
                return await waiting.turn, waiting.cost
        except (TimeoutError, asyncio.CancelledError) as error:
            if not self._queue.remove(owner, waiting) and waiting.turn.done() and not waiting.turn.cancelled():
                self._leave(waiting.turn.result())  # its turn came at the same moment
            if isinstance(error, TimeoutError):
                raise self._too_many() from error
            raise
        finally:
            self._by_id.pop(request_id, None)

    def _check(self, owner: str, places: Counter[str]) -> None:
        """See that a key does not ask for one more place than the greediest has, now that all are taken."""
        if places[owner] + 1 >= max(places.values()):
            raise self._too_many()

    def _make_room(self, owner: str) -> None:
        """Where too many wait, the last of the key with most of them gives up its place."""
        if len(self._queue) >= self._settings.max_waiting:
            self._check(owner, self._queue.lengths())
            last = self._queue.pop_last(self._queue.longest())
            if not last.turn.done():
                last.turn.set_exception(self._too_many())

    def _too_many(self) -> TooManyError:
        wait_s = len(self._queue) * self._mean_s / self._slots()
        return TooManyError(
            f"{len(self._queue)} requests wait for the engine; try again later", retry_after_s=max(1.0, wait_s)
        )

    def _slots(self) -> int:
        return self._settings.max_running or max(1, self._engine.health().workers)

    def _dispatch(self) -> None:
        """Let as many go as the engine has room for."""
        slots = self._slots() if len(self._queue) else 0
        while len(self._queue) and self._groups < slots:
            pause_s = self._held_back_s() if self._groups == slots - 1 else 0.0
            if pause_s > 0:
                asyncio.get_running_loop().call_later(pause_s, self._dispatch)
                return
            group = [
                waiting for waiting in self._next() if not waiting.turn.done()
            ]  # done: cancelled in this very turn
            if group:
                self._groups += 1
                self._held_until = None
                handed = _Group(len(group), len(group), time.monotonic())
                for waiting in group:
                    waiting.turn.set_result(handed)

    def _next(self) -> list[_Waiting]:
        """The request whose turn it is, and those that go with it."""
        cost = self._estimate(self._queue.first().computation)
        first = self._queue.pop(cost)
        group = [first]
        if self._settings.batching:
            most = min(self._settings.merged_rows, max(_LEAST_MERGED, int(_MERGED_S / max(cost, 1e-6))))
            group += self._queue.pop_where(partial(_is_alike, first), cost, most - 1)
        for waiting in group:
            waiting.cost = cost
        return group

    def _held_back_s(self) -> float:
        """For how long the last worker is kept for a key that was served less than the one whose turn it is."""
        now = time.monotonic()
        self._expected = {owner: until for owner, until in self._expected.items() if until > now}
        served = self._queue.served(self._queue.first().owner)
        coming = [*self._expected.items(), *self._arriving.values()]
        until = max((until for owner, until in coming if self._queue.served(owner) < served), default=0.0)
        if until > now and self._held_until is None:
            self._held_until = now + _READING_S  # whoever else is coming until then
        return min(until, self._held_until or now) - now

    def _estimate(self, computation: _Computation) -> float:
        """Seconds that one request takes of a worker, merged as they were of late."""
        return self._each_s.get(computation, self._mean_s)

    def _learn(self, computation: _Computation, share_s: float) -> None:
        self._mean_s += _SMOOTHING * (share_s - self._mean_s)
        self._each_s[computation] = (1 - _SMOOTHING) * self._estimate(computation) + _SMOOTHING * share_s
        self._each_s.move_to_end(computation)
        if len(self._each_s) > _KNOWN:
            self._each_s.popitem(last=False)

    def _leave(self, group: _Group) -> None:
        group.left -= 1
        if not group.left:
            self._groups -= 1
            self._dispatch()


def _is_alike(one: _Waiting, other: _Waiting) -> bool:
    return one.computation == other.computation
