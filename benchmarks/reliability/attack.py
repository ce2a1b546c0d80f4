"""Attacks: what runs beside a measurement, in a process of its own, until that is over."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import Any, Generic, TypeVar, final

__all__ = ["Attack"]

_LONGEST_S = 300.0
"""After so long an attack ends by itself, whatever became of the process that began it."""

_SPAWN = multiprocessing.get_context("spawn")

T = TypeVar("T")


@final
class Attack(Generic[T]):
    """A context manager, which an attack begins with and ends with.

    Args:
        run: what to do, such as ``load.run``; called with ``what`` and a function that says whether it is over.
        what: what to do it with.

    Attributes:
        outcome: what ``run`` returned, known at the end.
    """

    outcome: T

    def __init__(self, run: Callable[[Any, Callable[[], bool]], T], what: object) -> None:
        self._over = _SPAWN.Event()
        self._told, self._tells = _SPAWN.Pipe(duplex=False)
        self._process = _SPAWN.Process(target=_perform, args=(run, what, self._over, self._tells), daemon=True)

    def __enter__(self) -> Attack[T]:
        self._process.start()
        self._tells.close()  # so that the end of the process is noticed here
        self._told.recv()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self.outcome = self._told.recv()
        self._process.join()


def _perform(run: Callable[[Any, Callable[[], bool]], object], what: object, over: Event, tells: Pipe) -> None:
    end = time.monotonic() + _LONGEST_S
    tells.send("begun")
    tells.send(run(what, lambda: over.is_set() or time.monotonic() > end))
