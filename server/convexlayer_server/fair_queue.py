"""Who is served next, so that nobody pays for another's flood.

Start-time fair queueing (Goyal, Vin and Cheng, 1996) with one flow a key: each flow has a virtual time, the service
that it was given; the flow with the least goes next, and one that was idle begins where the present one is, so that
nothing is saved up. What is served is charged an estimate when it goes, and the difference when it has ended.

Within a flow the items stand in lines, which take turns: so what a key asks for quickly does not wait behind all that
it asked for at length.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterator, KeysView
from dataclasses import dataclass
from typing import Generic, TypeVar, final

__all__ = ["FairQueue", "Turn", "is_greediest"]

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Turn(Generic[T]):
    """What could be served next of one line.

    Attributes:
        flow: whose it is.
        line: where it stands.
        item: the first there.
    """

    flow: str
    line: Hashable
    item: T


@final
class FairQueue(Generic[T]):
    """Items that wait, each in a line of its flow; what a flow was charged is remembered, so flows should be few."""

    def __init__(self) -> None:
        self._flows: dict[str, OrderedDict[Hashable, deque[T]]] = {}
        self._served: dict[str, float] = {}
        self._now = 0.0
        self._waiting = 0

    def __len__(self) -> int:
        """Items that wait."""
        return self._waiting

    def __iter__(self) -> Iterator[T]:
        """Items that wait."""
        return (item for lines in self._flows.values() for items in lines.values() for item in items)

    def flows(self) -> KeysView[str]:
        """Those that have any item waiting."""
        return self._flows.keys()

    def lengths(self) -> Counter[str]:
        """Items that wait, by flow."""
        return Counter({flow: sum(map(len, lines.values())) for flow, lines in self._flows.items()})

    def push(self, flow: str, item: T, line: Hashable = None, *, first: bool = False) -> None:
        """Let an item wait at the end of a line, or at its front."""
        if flow not in self._flows:
            self._flows[flow] = OrderedDict()
            self._served[flow] = self.served(flow)
        waiting = self._flows[flow].setdefault(line, deque())
        (waiting.appendleft if first else waiting.append)(item)
        self._waiting += 1

    def turns(self) -> Iterator[Turn[T]]:
        """The first items of all lines, in the order in which they would be served; to be used before any change."""
        for flow in sorted(self._flows, key=self._served.__getitem__):
            for line, items in self._flows[flow].items():
                yield Turn(flow, line, items[0])

    def alike(self, line: Hashable) -> list[Turn[T]]:
        """All items of the lines of one name, flow by flow in the order in which they would be served."""
        flows = sorted((flow for flow, lines in self._flows.items() if line in lines), key=self._served.__getitem__)
        return [Turn(flow, line, item) for flow in flows for item in self._flows[flow][line]]

    def serve(self, turn: Turn[T], cost: float) -> None:
        """Charge a flow for what is served of an item, whose line goes behind others; it waits on until removed."""
        self._now = max(self._now, self._served[turn.flow])
        self.charge(turn.flow, cost)
        self._flows[turn.flow].move_to_end(turn.line)

    def pop(self, cost: float) -> T:
        """The next item of all, which is charged the cost.

        Raises:
            IndexError: nothing waits.
        """
        turn = next(self.turns(), None)
        if turn is None:
            raise IndexError("nothing waits")
        self.serve(turn, cost)
        self.remove(turn.flow, turn.item, turn.line)
        return turn.item

    def pop_last_for(self, flow: str) -> T | None:
        """The last item of the flow with most of them, which makes way for one of another flow.

        None where nobody makes way: with one more this flow would itself have as many as any has.
        """
        lengths = self.lengths()
        if is_greediest(flow, lengths):
            return None
        flow = max(lengths, key=lengths.__getitem__)
        line = next(reversed(self._flows[flow]))
        item = self._flows[flow][line][-1]
        self.remove(flow, item, line)
        return item

    def remove(self, flow: str, item: T, line: Hashable = None) -> bool:
        """Take an item out of its line; whether it was there."""
        lines = self._flows.get(flow, OrderedDict())
        items = lines.get(line, deque())
        position = next((place for place, waiting in enumerate(items) if waiting is item), None)
        if position is None:
            return False
        del items[position]
        self._waiting -= 1
        if not items:
            del lines[line]
        if not lines:
            del self._flows[flow]
        return True

    def served(self, flow: str) -> float:
        """The virtual time of a flow, or where it would begin if it has nothing waiting."""
        return max(self._served.get(flow, 0.0), self._now)

    def charge(self, flow: str, cost: float) -> None:
        """Charge a flow, or correct what it was charged."""
        self._served[flow] = self._served.get(flow, self._now) + cost


def is_greediest(flow: str, lengths: Counter[str]) -> bool:
    """Whether a flow would have as many items as any, with one more than it has."""
    return lengths[flow] + 1 >= max(lengths.values(), default=0)
