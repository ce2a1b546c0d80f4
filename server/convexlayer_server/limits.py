"""What one caller may ask for at a time, in a minute and in a day."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from .errors import TooManyError
from .keys import Caller
from .settings import Settings
from .usage import Ledger

__all__ = ["Limits"]

_MINUTE_S = 60.0


@final
class Limits:
    """Lets requests in, or refuses them at once. Every call comes from the event loop.

    The rate is a bucket of a minute's requests that fills evenly; so a burst is served as long as it is full.

    Args:
        settings: ``max_in_flight_per_key``, ``requests_per_minute`` and ``seconds_per_day``; a key may have its own.
        ledger: what was used today.
        clock: seconds, growing.
    """

    def __init__(self, settings: Settings, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._in_flight: dict[str, int] = {}
        self._buckets: dict[str, tuple[float, float]] = {}

    @contextmanager
    def entered(self, caller: Caller, *, computing: bool) -> Iterator[None]:
        """Serve a request of a caller within.

        Args:
            caller: who sends it.
            computing: whether it will use the engine.

        Raises:
            TooManyError: not now.
        """
        if computing:
            self._check_day(caller)
        in_flight = self._in_flight.get(caller.id, 0)
        if in_flight >= self._settings.max_in_flight_per_key:
            raise TooManyError(f"{in_flight} requests of this key are in work, the most at a time", retry_after_s=1)
        self._take_from_bucket(caller)
        self._in_flight[caller.id] = in_flight + 1
        try:
            yield
        finally:
            self._in_flight[caller.id] -= 1
            if not self._in_flight[caller.id]:
                del self._in_flight[caller.id]

    def _check_day(self, caller: Caller) -> None:
        own = caller.key.seconds_per_day if caller.key else None
        most = self._settings.seconds_per_day if own is None else own
        if most is not None and self._ledger.seconds_today(caller.id) >= most:
            raise TooManyError(
                f"the {most:g} seconds that this key may compute a day are used up; the next day begins at 00:00 UTC",
                retry_after_s=self._ledger.seconds_left(),
            )

    def _take_from_bucket(self, caller: Caller) -> None:
        own = caller.key.requests_per_minute if caller.key else None
        most = self._settings.requests_per_minute if own is None else own
        if most is None:
            return
        now = self._clock()
        level, since = self._buckets.get(caller.id, (float(most), now))
        level = min(float(most), level + (now - since) * most / _MINUTE_S)
        if level < 1:
            wait_s = (1 - level) * _MINUTE_S / most
            raise TooManyError(f"this key may send {most} requests a minute", retry_after_s=wait_s)
        self._buckets[caller.id] = level - 1, now
