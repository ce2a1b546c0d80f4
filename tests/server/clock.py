"""An event loop with a manual clock: time advances at once to the next timer, so tests do not depend on speed."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar, final

__all__ = ["Clock", "run_with_clock"]

T = TypeVar("T")


@final
class Clock:
    """A replacement of the module ``time``."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


class _Selector(selectors.DefaultSelector):
    """Advances the clock instead of waiting for a timer."""

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


def run_with_clock(work: Coroutine[Any, Any, T], clock: Clock) -> T:
    """Run a coroutine on an event loop with a manual clock, and return its result."""
    with asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner:
        return runner.run(work)
