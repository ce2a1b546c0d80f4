"""What each key uses: counted in memory, written to the store in the background."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import final

from .store import Store, Usage

__all__ = ["Ledger"]


def _now() -> datetime:
    return datetime.now(UTC)


@final
class Ledger:
    """Usage by key and day (UTC). All but ``load`` and ``write`` come from the event loop; these two block.

    Args:
        store: where it is kept.
        now: the clock.
    """

    def __init__(self, store: Store, now: Callable[[], datetime] = _now) -> None:
        self._store = store
        self._now = now
        self._today: dict[str, float] = {}
        self._day = ""
        self._pending: defaultdict[tuple[str, str], Usage] = defaultdict(Usage)

    def load(self) -> None:
        """Read what was used today already."""
        self._day = self._now().date().isoformat()
        self._today = {key_id: usage.seconds for (key_id, _), usage in self._store.usage(self._day).items()}

    def count(self, key_id: str, *, requests: int = 0, elements: int = 0, seconds: float = 0.0) -> None:
        """Count in what a key used just now."""
        self._turn()
        self._pending[key_id, self._day].add(Usage(requests=requests, elements=elements, seconds=seconds))
        self._today[key_id] = self._today.get(key_id, 0.0) + seconds

    def seconds_today(self, key_id: str) -> float:
        """Seconds of the engine that a key used today."""
        self._turn()
        return self._today.get(key_id, 0.0)

    def seconds_left(self) -> float:
        """Seconds until tomorrow."""
        now = self._now()
        tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return (tomorrow - now).total_seconds()

    def take(self) -> Mapping[tuple[str, str], Usage]:
        """What was counted since the last call, for ``write``."""
        taken, self._pending = self._pending, defaultdict(Usage)
        return taken

    def write(self, taken: Mapping[tuple[str, str], Usage]) -> None:
        """Write to the store."""
        if taken:
            self._store.add_usage(taken)

    def give_back(self, taken: Mapping[tuple[str, str], Usage]) -> None:
        """Count again what could not be written."""
        for place, usage in taken.items():
            self._pending[place].add(usage)

    def since(self, key_id: str, days: int) -> dict[str, Usage]:
        """What a key used on each of the last days, as far as it is written; blocks."""
        first = (self._now() - timedelta(days=days - 1)).date().isoformat()
        return {day: usage for (_, day), usage in self._store.usage(first, key_id).items()}

    def _turn(self) -> None:
        """Begin a new day where there is one."""
        day = self._now().date().isoformat()
        if day > self._day:  # a clock that is set back gives nobody a second quota
            self._day, self._today = day, {}
