"""Time that passes only while nobody has anything to do, and then at once: what a test sees is no matter of speed."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar, final

__all__ = ["Clock", "at_no_time"]

T = TypeVar("T")


@final
class Clock:
    """Seconds, as ``time.monotonic`` tells them."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


class _Selector(selectors.DefaultSelector):
    """Waits for no timer: the clock is put forward instead."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None:
            self._clock.seconds += max(timeout, 0.0)
            timeout = 0.0
        return super().select(timeout)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self._clock.seconds


def at_no_time(work: Coroutine[Any, Any, T], clock: Clock) -> T:
    """What some work gives on an event loop of this clock."""
    with asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner:
        return runner.run(work)
