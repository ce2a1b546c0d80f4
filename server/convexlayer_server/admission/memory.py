"""The memory budget: bytes that this process holds for the requests of each key, until their responses are sent.

Each request has a reservation for its body, arrays, result and response, which ends with the request. A request that
becomes a job transfers its reservation to the job. States, results of jobs and recent problems have budgets elsewhere.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
from typing import Literal, Self, final

from ..errors import RETRY_S, TooManyError
from ..settings import Settings

__all__ = ["MemoryBudget", "Reservation", "release_free_memory"]

Part = Literal["body", "arrays", "result", "response"]

_MIB = 2**20
"""Bytes of a mebibyte."""

_MIN_RELEASE_BYTES = 64 * _MIB
"""Freed bytes from which releasing memory to the system is worth its 0.1 s (measured) of a thread."""


@final
class MemoryBudget:
    """The bytes held for each key; for use on the event loop.

    A key may always hold its fair share: ``max_held_bytes`` divided by the number of keys that hold anything. It may
    hold more while the total is below ``max_held_bytes``. So no key's share depends on what others hold, and k greedy
    keys hold at most 1 + 1/2 + ... + 1/k times ``max_held_bytes``.

    Args:
        settings: ``max_held_bytes``.

    Attributes:
        total: bytes held for all keys.
    """

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.max_held_bytes
        self._by_owner: dict[str, int] = {}
        self.total = 0
        self._peak = 0

    def held_by(self, owner: str) -> int:
        """Return the bytes held for a key."""
        return self._by_owner.get(owner, 0)

    def open_reservation(self, owner: str) -> Reservation:
        """Return an empty reservation for a request of a key."""
        return Reservation(self, owner)

    def check(self, owner: str, more: int) -> None:
        """Check that a key may hold more bytes.

        Raises:
            TooManyError: the bytes exceed the budget.
        """
        held = self.held_by(owner)
        share = self._limit // (len(self._by_owner) + (owner not in self._by_owner))
        if self.total + more > self._limit and held + more > share:
            raise TooManyError(
                f"the server holds {held / _MIB:.1f} MiB for requests of this key, and {self.total / _MIB:.1f} MiB for "
                f"all keys; {more / _MIB:.1f} MiB more exceed its budget; send less at a time, and read the responses",
                retry_after_s=RETRY_S,
            )

    def add(self, owner: str, more: int) -> None:
        """Add bytes to what is held for a key; subtract them if negative."""
        if not more:
            return
        self.total += more
        self._peak = max(self._peak, self.total)
        held = self.held_by(owner) + more
        if held:
            self._by_owner[owner] = held
        else:
            self._by_owner.pop(owner, None)

    def has_shrunk(self) -> bool:
        """Whether the total has fallen far below its peak since the last call that returned true."""
        shrunk = self._peak - self.total >= _MIN_RELEASE_BYTES
        if shrunk:
            self._peak = self.total
        return shrunk


def release_free_memory() -> None:
    """Release freed memory to the system; otherwise glibc's allocator keeps it for later allocations."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@final
class Reservation:
    """The bytes held for one request; a context manager that ends with nothing held.

    Args:
        budget: the budget.
        owner: ID of the key.
    """

    def __init__(self, budget: MemoryBudget, owner: str) -> None:
        self._budget = budget
        self._owner = owner
        self._parts: dict[Part, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def reserve(self, part: Part, size_bytes: int) -> None:
        """Set the bytes of a part, if the budget allows it.

        Raises:
            TooManyError: the bytes exceed the budget.
        """
        more = _with_overhead(size_bytes) - self._parts.get(part, 0)
        if more > 0:
            self._budget.check(self._owner, more)
        self.set(part, size_bytes)

    def set(self, part: Part, size_bytes: int) -> None:
        """Set the bytes of a part that is in memory already, whatever the budget."""
        held = _with_overhead(size_bytes)
        self._budget.add(self._owner, held - self._parts.get(part, 0))
        self._parts[part] = held

    def transfer_to(self, task: asyncio.Task[None]) -> None:
        """Transfer all bytes from the request to a task: they are held until the task is done."""
        transferred = Reservation(self._budget, self._owner)
        transferred._parts, self._parts = self._parts, {}
        task.add_done_callback(lambda _: transferred.close())

    def close(self) -> None:
        """Hold nothing."""
        self._budget.add(self._owner, -sum(self._parts.values()))
        self._parts = {}


def _with_overhead(size_bytes: int) -> int:
    """Add the overhead of buffers and of the allocator: a quarter, as measured."""
    return size_bytes + size_bytes // 4
