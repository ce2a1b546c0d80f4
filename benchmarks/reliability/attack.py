"""Attacks: loads that run in another process during a measurement."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import Any, Generic, TypeVar, final

__all__ = ["RAMP_UP_S", "Attack"]

RAMP_UP_S = 2.0
"""Seconds from the start of an attack until its effect is measured."""

_MAX_DURATION_S = 300.0
"""Seconds after which an attack ends by itself, in case the measuring process died."""

_SPAWN = multiprocessing.get_context("spawn")

T = TypeVar("T")


@final
class Attack(Generic[T]):
    """A context manager that starts and stops an attack.

    Args:
        run: the attack, such as ``load.run``; called with ``what`` and a function that returns whether to stop.
        what: its first argument.

    Attributes:
        outcome: result of ``run``, after the attack.
    """

    outcome: T

    def __init__(self, run: Callable[[Any, Callable[[], bool]], T], what: object) -> None:
        self._over = _SPAWN.Event()
        self._receiver, self._sender = _SPAWN.Pipe(duplex=False)
        self._process = _SPAWN.Process(target=_perform, args=(run, what, self._over, self._sender), daemon=True)

    def __enter__(self) -> Attack[T]:
        self._process.start()
        self._sender.close()  # so that recv fails if the process dies
        self._receiver.recv()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self.outcome = self._receiver.recv()
        self._process.join()


def _perform(run: Callable[[Any, Callable[[], bool]], object], what: object, over: Event, sender: Pipe) -> None:
    end = time.monotonic() + _MAX_DURATION_S
    sender.send("started")
    sender.send(run(what, lambda: over.is_set() or time.monotonic() > end))
