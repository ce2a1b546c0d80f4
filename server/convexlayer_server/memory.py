"""What this process holds for each key: bodies as they come, their arrays, results and answers until they are sent.

Every request has its own account, which is closed with it, whatever becomes of it; one that becomes a job hands its
account on to the job's work. What is not of a request (states, results of jobs, recent problems) has budgets elsewhere.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
from typing import Literal, Self, final

from .errors import TooManyError
from .settings import Settings

__all__ = ["HeldBytes", "HeldMemory", "Part", "return_to_system"]

Part = Literal["body", "arrays", "result", "answer"]

_MIB = 2**20
_RETRY_S = 1.0

_MUCH_BYTES = 64 * _MIB
"""What is worth the time of a return to the system: a tenth of a second of another thread."""


@final
class HeldMemory:
    """All that is held, by key. Every call comes from the event loop.

    A key may always hold its fair share, which is ``max_held_bytes`` divided by the number of keys that hold anything;
    and more while all together hold less than that. So nobody's share depends on what others hold, and k keys that
    each take all that they can hold at most 1 + 1/2 + ... + 1/k times as much.

    Args:
        settings: ``max_held_bytes``.

    Attributes:
        total: bytes held for all keys.
    """

    def __init__(self, settings: Settings) -> None:
        self._most = settings.max_held_bytes
        self._by_owner: dict[str, int] = {}
        self.total = 0
        self._peak = 0

    def of(self, owner: str) -> int:
        """Bytes held for a key."""
        return self._by_owner.get(owner, 0)

    def opened(self, owner: str) -> HeldBytes:
        """The account of a request of a key, with nothing on it."""
        return HeldBytes(self, owner)

    def check(self, owner: str, more: int) -> None:
        """See that there is room.

        Raises:
            TooManyError: there is none.
        """
        held = self.of(owner)
        share = self._most // (len(self._by_owner) + (owner not in self._by_owner))
        if self.total + more > self._most and held + more > share:
            raise TooManyError(
                f"{held / _MIB:.1f} MiB are held for this key until its answers are sent, and {self.total / _MIB:.1f} "
                f"for all; there is no room for {more / _MIB:.1f} more; send less at a time, and read the answers",
                retry_after_s=_RETRY_S,
            )

    def add(self, owner: str, more: int) -> None:
        """Count in what is held from now on, or, where negative, no longer."""
        if not more:
            return
        self.total += more
        self._peak = max(self._peak, self.total)
        held = self.of(owner) + more
        if held:
            self._by_owner[owner] = held
        else:
            self._by_owner.pop(owner, None)

    def shrank(self) -> bool:
        """Whether much less is held than was at a time since it last did."""
        shrank = self._peak - self.total >= _MUCH_BYTES
        if shrank:
            self._peak = self.total
        return shrank


def return_to_system() -> None:
    """Give memory that was freed back to the system; the allocator of glibc keeps it else, for what comes next."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@final
class HeldBytes:
    """What is held for one request: a context manager, at whose end nothing is.

    Args:
        memory: of which it is a part.
        owner: the key.
    """

    def __init__(self, memory: HeldMemory, owner: str) -> None:
        self._memory = memory
        self._owner = owner
        self._parts: dict[Part, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def reserve(self, part: Part, size_bytes: int) -> None:
        """Hold so much as a part, in place of what it was.

        Raises:
            TooManyError: there is no room for so much more.
        """
        more = _with_slack(size_bytes) - self._parts.get(part, 0)
        if more > 0:
            self._memory.check(self._owner, more)
        self.note(part, size_bytes)

    def note(self, part: Part, size_bytes: int) -> None:
        """Hold so much as a part, since it is there already."""
        held = _with_slack(size_bytes)
        self._memory.add(self._owner, held - self._parts.get(part, 0))
        self._parts[part] = held

    def until(self, task: asyncio.Task[None]) -> None:
        """Hand what is held on to a task: it is held until that is done, and no longer for the request."""
        handed = HeldBytes(self._memory, self._owner)
        handed._parts, self._parts = self._parts, {}
        task.add_done_callback(lambda _: handed.close())

    def close(self) -> None:
        """Hold nothing."""
        self._memory.add(self._owner, -sum(self._parts.values()))
        self._parts = {}


def _with_slack(size_bytes: int) -> int:
    """With what buffers and the allocator take beside: a quarter, as measured."""
    return size_bytes + size_bytes // 4
