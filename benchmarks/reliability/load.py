"""Loads: callers that each wait for their answer, or requests at a rate whatever becomes of them.

A load runs in a process of its own, so that it and what is measured beside it do not wait for each other.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import final

from benchmarks.reliability.caller import Answer, Caller

__all__ = ["Load", "Tally", "run", "started"]


@dataclass(frozen=True)
class Load:
    """A load.

    Attributes:
        address: of the server.
        path: where the bodies are posted.
        bodies: one after another, then from the beginning.
        callers: how many wait at a time.
        seconds: how long.
        rate: requests a second that all callers send together, each in its turn, and late where its last answer was
            late; None is as many as are answered.
        headers: of every request, beside the type of its body.
    """

    address: tuple[str, int]
    path: str
    bodies: Sequence[bytes]
    callers: int
    seconds: float
    rate: float | None = None
    headers: dict[str, str] = field(default_factory=dict)


@final
@dataclass
class Tally:
    """What became of a load.

    Attributes:
        seconds: how long it took.
        took: seconds of each request, by status; 0 is a connection that was lost.
        untold: requests refused without Retry-After, by status.
    """

    seconds: float = 0.0
    took: dict[int, list[float]] = field(default_factory=dict)
    untold: Counter[int] = field(default_factory=Counter)

    @property
    def good(self) -> list[float]:
        """Seconds of those that were answered."""
        return self.took.get(200, [])

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.good) / self.seconds

    def counts(self) -> dict[int, int]:
        """How many had each status."""
        return {status: len(took) for status, took in sorted(self.took.items())}

    def add(self, answer: Answer) -> None:
        """Count an answer."""
        self.took.setdefault(answer.status, []).append(answer.seconds)
        if answer.status in (429, 503) and answer.retry_after is None:
            self.untold[answer.status] += 1


def run(load: Load) -> Tally:
    """Do it, in this process."""
    tally, lock = Tally(), threading.Lock()
    start = time.perf_counter()
    end = start + load.seconds
    headers = {"Content-Type": "application/json", **load.headers}

    def call(number: int) -> None:
        with Caller(load.address) as caller:
            while True:
                due = start if load.rate is None else start + number / load.rate
                if max(due, time.perf_counter()) >= end:
                    return
                time.sleep(max(0.0, due - time.perf_counter()))
                answer = caller.post(load.path, load.bodies[number % len(load.bodies)], headers)
                with lock:
                    tally.add(answer)
                number += load.callers

    threads = [threading.Thread(target=call, args=(number,)) for number in range(load.callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tally.seconds = time.perf_counter() - start
    return tally


@final
class _Pool:
    """One process for each load that runs, kept from one load to the next."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, load: Load) -> Future[Tally]:
        """Begin a load."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn"))
        return self._pool.submit(run, load)


_POOL = _Pool()


def started(load: Load) -> Future[Tally]:
    """Begin a load in another process."""
    return _POOL.submit(load)
