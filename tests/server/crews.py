"""A crew whose workers do what a test tells them, at a time of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np
import pytest

from convexlayer_server import Settings
from convexlayer_server.engine import ComputeRequest, ComputeResult, embedded, quarantine, scheduler, task, turns
from convexlayer_server.engine.crew import Listener
from convexlayer_server.engine.embedded import EmbeddedEngine
from convexlayer_server.engine.work import Done, Ending, Work

from .clock import Clock, at_no_time

__all__ = ["CLOCK", "Hand", "ManualCrew", "Setup", "settled"]

T = TypeVar("T")

CLOCK = Clock()

SUMMARY: dict[str, Any] = {
    "parameters": {"c": {"shape": []}},
    "variables": {"x": {"shape": []}},
    "duals": {},
    "solver": {"name": "batched", "reason": ""},
}


def use_our_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (embedded, quarantine, scheduler, task, turns):
        if hasattr(module, "time"):
            monkeypatch.setattr(module, "time", CLOCK)
    monkeypatch.setattr(scheduler, "Crew", ManualCrew)


def done(work: Coroutine[Any, Any, T]) -> T:
    return at_no_time(work, CLOCK)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Hand:
    """One worker of this crew."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: set[str] = set()
        self.batches: set[str] = set()
        self.work: Work | None = None
        self.ending: Ending | None = None
        self.in_background = False

    @property
    def idle(self) -> bool:
        return self.work is None and self.ending is None

    def start(self, work: Work, *, limit_s: float, size_bytes: int) -> None:
        self.work = work

    def end(self, ending: Ending) -> None:
        self.ending = ending


class ManualCrew:
    """Workers that are all there, and one more that stands by; another comes for each that goes to the background."""

    def __init__(self, settings: Settings, listener: Listener) -> None:
        self.listener = listener
        self.count = max(1, settings.workers)
        asked = settings.background_workers
        self.most_in_background = settings.workers if asked is None else asked
        self.all_workers: list[Any] = []
        self.replaced = 0

    async def open(self) -> None:
        self._fill_up()

    async def close(self) -> None: ...

    @property
    def workers(self) -> list[Any]:
        return [hand for hand in self.all_workers if not hand.in_background][: self.count]

    @property
    def background(self) -> list[Any]:
        return [hand for hand in self.all_workers if hand.in_background]

    @property
    def room(self) -> int:
        return self.most_in_background - sum(hand.work is not None for hand in self.background)

    def recruit(self) -> Any:
        hand = [hand for hand in self.all_workers if not hand.in_background][self.count]
        self.let_go(hand)
        return hand

    def let_go(self, hand: Any) -> None:
        hand.in_background = True
        self._fill_up()

    def gone(self, hand: Any, ending: Ending) -> None:
        self.all_workers.remove(hand)
        self._fill_up()
        self.listener.on_gone(hand, hand.work, ending)

    def _fill_up(self) -> None:
        while len(self.all_workers) - len(self.background) <= self.count:
            self.all_workers.append(Hand(f"w{len(self.all_workers)}"))


class Setup:
    """An engine with such a crew; requests are named for their owner, by the first letter, and their problem.

    ``a1`` is of owner a and a problem of its own, unless it is given one.
    """

    def __init__(self, workers: int = 1, **settings: Any) -> None:
        self.used: dict[str, float] = {}
        self.engine = EmbeddedEngine(Settings(workers=workers, **settings))
        self.scheduler = self.engine._scheduler
        self.crew: Any = self.scheduler.crew
        self.tasks: dict[str, asyncio.Task[ComputeResult]] = {}

    async def open(self) -> Setup:
        def charge(owner: str, seconds: float) -> None:
            self.used[owner] = self.used.get(owner, 0.0) + seconds

        await self.engine.open(charge)
        return self

    async def send(self, *names: str, problem: str | None = None, rows: int = 1, **fields: Any) -> None:
        for name in names:
            problem_id = problem or name
            self.scheduler._remember(problem_id, SUMMARY | {"id": problem_id}, 0.0)
            request = ComputeRequest(
                **{"request_id": name, "owner": name[0], "problem_id": problem_id, "operation": "solve"}
                | {"parameters": {"c": np.zeros(rows)}}
                | fields
            )
            self.tasks[name] = task = asyncio.create_task(self.engine.run(request, b"{}"))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # not all are asked for it
        await settled()

    def at(self, name: str) -> Any:
        """The worker that has a request, or a piece of it, in work."""
        return next(hand for hand in self.crew.all_workers if name in self.names(hand))

    def names(self, hand: Any) -> list[str]:
        """The requests that a worker has in work."""
        if hand.work is None:
            return []
        return [piece.member.request.request_id.partition("/")[0] for piece in self.scheduler._in_work[hand].pieces]

    @property
    def in_front(self) -> list[str]:
        """The requests in work there, sorted."""
        return sorted(name for hand in self.crew.workers for name in self.names(hand))

    @property
    def in_background(self) -> list[str]:
        return sorted(name for hand in self.crew.background for name in self.names(hand))

    def elements(self, name: str) -> int:
        """How many elements of a request are in work."""
        return self.scheduler._in_work[self.at(name)].elements

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await settled()

    async def end(self, name: str, seconds: float = 1e-3) -> None:
        """Let a piece come to its end after some time."""
        hand = self.at(name)
        await self.pass_time(seconds)
        work, hand.work = hand.work, None
        hand.problems.add(work.problem_id)
        rows = max(len(value) for value in work.request.parameters.values())
        self.scheduler.on_done(hand, work, Done(result=result(rows), compute_s=seconds))
        await settled()

    async def kill(self, name: str, ending: Ending) -> None:
        self.crew.gone(self.at(name), ending)
        await settled()


def result(rows: int) -> ComputeResult:
    return ComputeResult(
        arrays={"x": np.zeros(rows)}, batched=True, status=("optimal",) * rows, objective=np.zeros(rows),
        iterations=(1,) * rows, residuals={"gap": np.zeros(rows)}, report=None, solver="s", reason="",
        seconds={"solve": 1e-3},
    )  # fmt: skip
