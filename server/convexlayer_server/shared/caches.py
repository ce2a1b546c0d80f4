"""Caches with bounds on size: one that evicts fairly among owners, and one by least recent use."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar, final

__all__ = ["FairShareCache", "LRUCache"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass
class _Entry(Generic[T]):
    owner: str
    value: T
    size_bytes: int
    expires: float


@final
class FairShareCache(Generic[T]):
    """Values by key, each for a limited time, within a total number of bytes that owners share fairly.

    When it is full, the owner with the most bytes loses its least recently used value. So an owner that stays within
    an equal share of the total never loses a value to another owner.

    Args:
        max_bytes: bytes of all values.
        lifetime_s: seconds for which each value is kept.
    """

    def __init__(self, max_bytes: int, lifetime_s: float) -> None:
        self._max_bytes = max_bytes
        self._lifetime_s = lifetime_s
        self._entries: OrderedDict[str, _Entry[T]] = OrderedDict()
        self._by_owner: dict[str, OrderedDict[str, _Entry[T]]] = {}  # the same entries, in the same order
        self._bytes_by_owner: Counter[str] = Counter()

    @property
    def size_bytes(self) -> int:
        """Bytes of all values."""
        return self._bytes_by_owner.total()

    def put(self, key: str, owner: str, value: T, size_bytes: int) -> None:
        """Store a value; the only value of an owner stays, whatever its size."""
        self.drop(key)
        entry = _Entry(owner, value, size_bytes, time.monotonic() + self._lifetime_s)
        self._entries[key] = self._by_owner.setdefault(owner, OrderedDict())[key] = entry
        self._bytes_by_owner[owner] += size_bytes
        self._drop_expired()
        while self.size_bytes > self._max_bytes:
            largest = self._by_owner[max(self._bytes_by_owner, key=self._bytes_by_owner.__getitem__)]
            if len(largest) == 1:
                return
            self.drop(next(iter(largest)))

    def get(self, key: str, owner: str, *, renew: bool = False) -> T | None:
        """Return the value of a key and owner, or None; with ``renew``, restart its lifetime."""
        self._drop_expired()
        entry = self._entries.get(key)
        if entry is None or entry.owner != owner:
            return None
        if renew:
            entry.expires = time.monotonic() + self._lifetime_s
            self._entries.move_to_end(key)
            self._by_owner[owner].move_to_end(key)
        return entry.value

    def left_s(self, key: str) -> float:
        """Return the seconds until a value expires; 0 if it is not here."""
        entry = self._entries.get(key)
        return 0.0 if entry is None else max(0.0, entry.expires - time.monotonic())

    def drop(self, key: str) -> None:
        """Drop a value, if it is here."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes_by_owner[entry.owner] -= entry.size_bytes
            del self._by_owner[entry.owner][key]
            if not self._by_owner[entry.owner]:
                del self._by_owner[entry.owner], self._bytes_by_owner[entry.owner]

    def all(self, owner: str) -> list[T]:
        """Return the values of an owner, least recently stored or renewed first."""
        self._drop_expired()
        return [entry.value for entry in self._by_owner.get(owner, {}).values()]

    def _drop_expired(self) -> None:
        """Drop expired values; all lifetimes are equal, so they are the first ones."""
        now = time.monotonic()
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if entry.expires > now:
                return
            self.drop(key)


@final
class LRUCache(Generic[K, T]):
    """Values by key within a total size and a number; the least recently used ones are evicted.

    Args:
        max_size: size of all values, in the caller's unit.
        max_count: number of values; None is unlimited.
        keep_last: keep a single value that exceeds ``max_size``, until the next one comes.
    """

    def __init__(self, max_size: int, max_count: int | None = None, *, keep_last: bool = False) -> None:
        self._max_size = max_size
        self._max_count = max_count
        self._min_count = 1 if keep_last else 0
        self._entries: OrderedDict[K, tuple[T, int]] = OrderedDict()
        self._size = 0

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K) -> T | None:
        """Return the value of a key, or None, and mark it as used."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: K, value: T, size: int) -> list[K]:
        """Store a value; return the evicted keys, among them its own if it is too large."""
        self.drop(key)
        self._entries[key] = value, size
        self._size += size
        evicted: list[K] = []
        while len(self._entries) > self._min_count and (
            self._size > self._max_size or (self._max_count is not None and len(self._entries) > self._max_count)
        ):
            evicted.append(next(iter(self._entries)))
            self.drop(evicted[-1])
        return evicted

    def drop(self, key: K) -> None:
        """Drop a value, if it is here."""
        _, size = self._entries.pop(key, (None, 0))
        self._size -= size

    def clear(self) -> None:
        """Drop all values."""
        self._entries.clear()
        self._size = 0
