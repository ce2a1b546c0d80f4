"""Limits of one key: concurrent requests, requests a minute, and compute seconds a day."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from ..errors import RETRY_S, TooManyError
from ..settings import Settings
from .keys import Principal
from .usage import UsageLedger

__all__ = ["Limits"]

_MINUTE_S = 60.0
"""Seconds of a minute, the unit of rate limits."""


@final
class Limits:
    """Admits requests, or refuses them at once; for use on the event loop.

    The request rate is limited by a token bucket that holds the requests of one minute.

    Args:
        settings: ``max_in_flight_per_key``, ``requests_per_minute`` and ``seconds_per_day``; a key may override them.
        ledger: usage of today.
        clock: monotonic time in seconds.
    """

    def __init__(self, settings: Settings, ledger: UsageLedger, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._in_flight: dict[str, int] = {}
        self._buckets: dict[str, tuple[float, float]] = {}

    @contextmanager
    def admit(self, principal: Principal, *, computing: bool) -> Iterator[None]:
        """Serve a request within this context.

        Args:
            principal: the authenticated client.
            computing: whether it uses the compute backend.

        Raises:
            TooManyError: the request exceeds a limit.
        """
        if computing:
            self._check_day(principal)
        in_flight = self._in_flight.get(principal.id, 0)
        if in_flight >= self._settings.max_in_flight_per_key:
            raise TooManyError(f"{in_flight} requests of this key are running, the limit", retry_after_s=RETRY_S)
        self._take_token(principal)
        self._in_flight[principal.id] = in_flight + 1
        try:
            yield
        finally:
            self._in_flight[principal.id] -= 1
            if not self._in_flight[principal.id]:
                del self._in_flight[principal.id]

    def _check_day(self, principal: Principal) -> None:
        own = principal.key.seconds_per_day if principal.key else None
        limit = self._settings.seconds_per_day if own is None else own
        if limit is not None and self._ledger.seconds_today(principal.id) >= limit:
            raise TooManyError(
                f"this key has used its {limit:g} compute seconds of today; the next day begins at 00:00 UTC",
                retry_after_s=self._ledger.seconds_left(),
            )

    def _take_token(self, principal: Principal) -> None:
        own = principal.key.requests_per_minute if principal.key else None
        limit = self._settings.requests_per_minute if own is None else own
        if limit is None:
            return
        now = self._clock()
        level, updated = self._buckets.get(principal.id, (float(limit), now))
        level = min(float(limit), level + (now - updated) * limit / _MINUTE_S)
        if level < 1:
            wait_s = (1 - level) * _MINUTE_S / limit
            raise TooManyError(f"this key may send {limit} requests a minute", retry_after_s=wait_s)
        self._buckets[principal.id] = level - 1, now
