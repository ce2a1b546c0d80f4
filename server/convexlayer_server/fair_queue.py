"""Who is served next, so that nobody pays for another's flood.

Start-time fair queueing (Goyal, Vin and Cheng, 1996) with one flow a key: each flow has a virtual time, the service
that it was given; the flow with the least goes next, and one that was idle begins where the present one is, so that
nothing is saved up. A request is charged an estimate when it goes, and the difference when it has ended.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Generic, TypeVar, final

__all__ = ["FairQueue"]

T = TypeVar("T")


@final
class FairQueue(Generic[T]):
    """Items waiting in one line for each flow."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[T]] = {}
        self._served: dict[str, float] = {}
        self._now = 0.0
        self._waiting = 0

    def __len__(self) -> int:
        """Items that wait."""
        return self._waiting

    def lengths(self) -> Counter[str]:
        """Items that wait, by flow."""
        return Counter({flow: len(line) for flow, line in self._lines.items()})

    def longest(self) -> str:
        """The flow with most items; empty where none waits."""
        return max(self._lines, key=lambda flow: len(self._lines[flow]), default="")

    def push(self, flow: str, item: T) -> None:
        """Let an item wait at the end of its flow's line."""
        if flow not in self._lines:
            self._lines[flow] = deque()
            self._served[flow] = max(self._served.get(flow, 0.0), self._now)
        self._lines[flow].append(item)
        self._waiting += 1

    def pop(self, cost: float) -> T:
        """The next item of the flow that was served least, which is charged the cost.

        Raises:
            IndexError: nothing waits.
        """
        flow = self._next_flow()
        self._now = max(self._now, self._served[flow])
        return self._take(flow, 0, cost)

    def first(self) -> T:
        """What ``pop`` would give.

        Raises:
            IndexError: nothing waits.
        """
        return self._lines[self._next_flow()][0]

    def served(self, flow: str) -> float:
        """The virtual time of a flow, or where it would begin if it has nothing waiting."""
        return max(self._served.get(flow, 0.0), self._now)

    def pop_where(self, joins: Callable[[T], bool], cost: float, most: int) -> list[T]:
        """Items that meet a condition, whoever's they are: line by line from the front, each charged the cost."""
        taken: list[T] = []
        for flow in sorted(self._lines, key=lambda name: self._served[name]):
            line, position = self._lines[flow], 0
            while position < len(line) and len(taken) < most:
                if joins(line[position]):
                    taken.append(self._take(flow, position, cost))
                else:
                    position += 1
        return taken

    def pop_last(self, flow: str) -> T:
        """The last item of a flow, which gives up."""
        return self._take(flow, len(self._lines[flow]) - 1, 0.0)

    def remove(self, flow: str, item: T) -> bool:
        """Take an item out of its line; whether it was there."""
        line = self._lines.get(flow, deque())
        position = next((place for place, waiting in enumerate(line) if waiting is item), None)
        if position is not None:
            self._take(flow, position, 0.0)
        return position is not None

    def charge(self, flow: str, cost: float) -> None:
        """Correct what a flow was charged."""
        self._served[flow] = self._served.get(flow, self._now) + cost

    def _next_flow(self) -> str:
        if not self._lines:
            raise IndexError("nothing waits")
        return min(self._lines, key=lambda name: self._served[name])

    def _take(self, flow: str, position: int, cost: float) -> T:
        line = self._lines[flow]
        item = line[position]
        del line[position]
        self._served[flow] += cost
        self._waiting -= 1
        if not line:
            del self._lines[flow]
        return item
