"""Usage of each key: counted in memory, and written to the store in the background."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import final

from ..store import Store, Usage

__all__ = ["UsageLedger"]


def _now() -> datetime:
    return datetime.now(UTC)


@final
class UsageLedger:
    """Usage by key and day (UTC); for use on the event loop, but for ``load``, ``write`` and ``since``, which block.

    Args:
        store: the store.
        now: the clock.
    """

    def __init__(self, store: Store, now: Callable[[], datetime] = _now) -> None:
        self._store = store
        self._now = now
        self._seconds_today: dict[str, float] = {}
        self._day = ""
        self._unwritten: defaultdict[tuple[str, str], Usage] = defaultdict(Usage)

    def load(self) -> None:
        """Read the usage of today from the store."""
        self._day = self._now().date().isoformat()
        self._seconds_today = {key_id: usage.seconds for (key_id, _), usage in self._store.usage(self._day).items()}

    def count(self, key_id: str, *, requests: int = 0, elements: int = 0, seconds: float = 0.0) -> None:
        """Add to the usage of a key."""
        self._update_day()
        self._unwritten[key_id, self._day].add(Usage(requests=requests, elements=elements, seconds=seconds))
        self._seconds_today[key_id] = self._seconds_today.get(key_id, 0.0) + seconds

    def seconds_today(self, key_id: str) -> float:
        """Return the compute seconds that a key has used today."""
        self._update_day()
        return self._seconds_today.get(key_id, 0.0)

    def seconds_left(self) -> float:
        """Return the seconds until tomorrow."""
        now = self._now()
        tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return (tomorrow - now).total_seconds()

    def take_unwritten(self) -> Mapping[tuple[str, str], Usage]:
        """Return the usage since the last call, to be written."""
        taken, self._unwritten = self._unwritten, defaultdict(Usage)
        return taken

    def write(self, taken: Mapping[tuple[str, str], Usage]) -> None:
        """Write usage to the store."""
        if taken:
            self._store.add_usage(taken)

    def return_unwritten(self, taken: Mapping[tuple[str, str], Usage]) -> None:
        """Take back usage that could not be written."""
        for place, usage in taken.items():
            self._unwritten[place].add(usage)

    def since(self, key_id: str, days: int) -> dict[str, Usage]:
        """Return the written usage of a key on each of the last days."""
        first = (self._now() - timedelta(days=days - 1)).date().isoformat()
        return {day: usage for (_, day), usage in self._store.usage(first, key_id).items()}

    def _update_day(self) -> None:
        """Begin a new day. A clock that is set back begins none, so it gives no second quota."""
        day = self._now().date().isoformat()
        if day > self._day:
            self._day, self._seconds_today = day, {}
