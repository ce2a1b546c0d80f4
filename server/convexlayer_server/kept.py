"""What is kept for callers for a time, in memory that they share fairly."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar, final

__all__ = ["Kept", "LRUCache"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass
class _Thing(Generic[T]):
    owner: str
    thing: T
    size_bytes: int
    until: float


@final
class Kept(Generic[T]):
    """Things by id, each for a time, within a number of bytes together.

    Where there is no more room, the owner who keeps most loses what it used longest ago. So nobody who keeps no more
    than an equal share, of all the bytes among all that keep anything, loses anything to others.

    Args:
        size_bytes: of all together.
        seconds: for how long each is kept.
    """

    def __init__(self, size_bytes: int, seconds: float) -> None:
        self._most_bytes = size_bytes
        self._seconds = seconds
        self._things: OrderedDict[str, _Thing[T]] = OrderedDict()
        self._held: Counter[str] = Counter()

    @property
    def size_bytes(self) -> int:
        """Of all together."""
        return self._held.total()

    def put(self, key: str, owner: str, thing: T, size_bytes: int) -> None:
        """Keep a thing; the last one of its owner stays whatever its size."""
        self.drop(key)
        self._things[key] = _Thing(owner, thing, size_bytes, time.monotonic() + self._seconds)
        self._held[owner] += size_bytes
        self._forget()
        while self.size_bytes > self._most_bytes:
            greatest = max(self._held, key=self._held.__getitem__)
            oldest, *others = (name for name, kept in self._things.items() if kept.owner == greatest)
            if not others:
                return
            self.drop(oldest)

    def get(self, key: str, owner: str, *, renew: bool = False) -> T | None:
        """The thing of an id and owner, if it is here; its time begins anew where it is renewed."""
        self._forget()
        kept = self._things.get(key)
        if kept is None or kept.owner != owner:
            return None
        if renew:
            kept.until = time.monotonic() + self._seconds
            self._things.move_to_end(key)
        return kept.thing

    def left_s(self, key: str) -> float:
        """For how long a thing will still be kept."""
        kept = self._things.get(key)
        return 0.0 if kept is None else max(0.0, kept.until - time.monotonic())

    def drop(self, key: str) -> None:
        """Keep a thing no longer."""
        kept = self._things.pop(key, None)
        if kept is not None:
            self._held[kept.owner] -= kept.size_bytes
            if not self._held[kept.owner]:
                del self._held[kept.owner]

    def all(self, owner: str) -> list[T]:
        """The things of an owner, those put or renewed longest ago first."""
        self._forget()
        return [kept.thing for kept in self._things.values() if kept.owner == owner]

    def _forget(self) -> None:
        """Drop what is too old: those in front, since all are kept for as long."""
        now = time.monotonic()
        while self._things:
            key, kept = next(iter(self._things.items()))
            if kept.until > now:
                return
            self.drop(key)


@final
class LRUCache(Generic[K, T]):
    """Things by key within a size together and a number; those used longest ago make room.

    Args:
        size: of all together.
        count: how many there may be; None is any number.
        keep_last: keep a thing that is too large on its own, until another comes.
    """

    def __init__(self, size: int, count: int | None = None, *, keep_last: bool = False) -> None:
        self._most = size
        self._count = count
        self._least = 1 if keep_last else 0
        self._things: OrderedDict[K, tuple[T, int]] = OrderedDict()
        self._size = 0

    def __contains__(self, key: K) -> bool:
        return key in self._things

    def get(self, key: K) -> T | None:
        """The thing of a key, used now."""
        if key not in self._things:
            return None
        self._things.move_to_end(key)
        return self._things[key][0]

    def put(self, key: K, thing: T, size: int) -> list[K]:
        """Keep a thing; the keys of those that made room, its own among them where it is too large."""
        self.drop(key)
        self._things[key] = thing, size
        self._size += size
        dropped: list[K] = []
        while len(self._things) > self._least and (
            self._size > self._most or (self._count is not None and len(self._things) > self._count)
        ):
            dropped.append(next(iter(self._things)))
            self.drop(dropped[-1])
        return dropped

    def drop(self, key: K) -> None:
        """Keep a thing no longer."""
        _, size = self._things.pop(key, (None, 0))
        self._size -= size

    def clear(self) -> None:
        """Keep nothing."""
        self._things.clear()
        self._size = 0
