"""A fair queue, in which no flow delays the others, however many items it has.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): each flow has a virtual time, the service that it received. The
flow with the least virtual time is served next. An idle flow starts at the virtual time of the present one, so idle
time earns no credit. An item is charged an estimate when it is served, and the difference when its cost is known.

Within a flow, the items stand in lines that are served in turn, so a fast kind of item need not wait for a slow one.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterator, KeysView
from dataclasses import dataclass
from typing import Generic, TypeVar, final

__all__ = ["FairQueue", "QueuedItem", "would_be_longest"]

T = TypeVar("T")


@final
@dataclass(frozen=True)
class QueuedItem(Generic[T]):
    """An item and its place in the queue.

    Attributes:
        flow: its flow.
        line: its line within the flow.
        item: the item.
    """

    flow: str
    line: Hashable
    item: T


@final
class FairQueue(Generic[T]):
    """Items in lines of flows. The virtual time of every flow is kept, so the number of flows should be bounded."""

    def __init__(self) -> None:
        self._flows: dict[str, OrderedDict[Hashable, deque[T]]] = {}
        self._virtual_time: dict[str, float] = {}
        self._now = 0.0
        self._length = 0

    def __len__(self) -> int:
        """Return the number of items."""
        return self._length

    def __iter__(self) -> Iterator[T]:
        """Iterate over the items, in no particular order."""
        return (item for lines in self._flows.values() for items in lines.values() for item in items)

    def flows(self) -> KeysView[str]:
        """Return the flows that have items."""
        return self._flows.keys()

    def lengths(self) -> Counter[str]:
        """Return the number of items of each flow."""
        return Counter({flow: sum(map(len, lines.values())) for flow, lines in self._flows.items()})

    def push(self, flow: str, item: T, line: Hashable = None, *, first: bool = False) -> None:
        """Add an item at the end of a line, or at its front."""
        if flow not in self._flows:
            self._flows[flow] = OrderedDict()
            self._virtual_time[flow] = self.virtual_time(flow)
        items = self._flows[flow].setdefault(line, deque())
        (items.appendleft if first else items.append)(item)
        self._length += 1

    def heads(self) -> Iterator[QueuedItem[T]]:
        """Iterate over the first items of all lines in the order of service; do not change the queue meanwhile."""
        for flow in sorted(self._flows, key=self._virtual_time.__getitem__):
            for line, items in self._flows[flow].items():
                yield QueuedItem(flow, line, items[0])

    def in_line(self, line: Hashable) -> list[QueuedItem[T]]:
        """Return all items of one line of every flow, in the order of service of the flows."""
        flows = sorted(
            (flow for flow, lines in self._flows.items() if line in lines), key=self._virtual_time.__getitem__
        )
        return [QueuedItem(flow, line, item) for flow in flows for item in self._flows[flow][line]]

    def serve(self, item: QueuedItem[T], cost: float) -> None:
        """Charge a flow for service to an item, and move its line behind the flow's others; the item stays."""
        self._now = max(self._now, self._virtual_time[item.flow])
        self.charge(item.flow, cost)
        self._flows[item.flow].move_to_end(item.line)

    def pop(self, cost: float) -> T:
        """Remove the next item, and charge its flow.

        Raises:
            IndexError: the queue is empty.
        """
        head = next(self.heads(), None)
        if head is None:
            raise IndexError("pop from an empty queue")
        self.serve(head, cost)
        self.remove(head.flow, head.item, head.line)
        return head.item

    def evict_for(self, flow: str) -> T | None:
        """Remove and return the last item of the longest flow, to make room for an item of ``flow``.

        Return None if ``flow`` would itself be the longest with one more item.
        """
        lengths = self.lengths()
        if would_be_longest(flow, lengths):
            return None
        longest = max(lengths, key=lengths.__getitem__)
        line = next(reversed(self._flows[longest]))
        item = self._flows[longest][line][-1]
        self.remove(longest, item, line)
        return item

    def remove(self, flow: str, item: T, line: Hashable = None) -> bool:
        """Remove an item from its line; return whether it was there."""
        lines = self._flows.get(flow, OrderedDict())
        items = lines.get(line, deque())
        position = next((place for place, waiting in enumerate(items) if waiting is item), None)
        if position is None:
            return False
        del items[position]
        self._length -= 1
        if not items:
            del lines[line]
        if not lines:
            del self._flows[flow]
        return True

    def virtual_time(self, flow: str) -> float:
        """Return the virtual time of a flow, or where it would start if it has no items."""
        return max(self._virtual_time.get(flow, 0.0), self._now)

    def charge(self, flow: str, cost: float) -> None:
        """Charge a flow, or correct an earlier charge."""
        self._virtual_time[flow] = self._virtual_time.get(flow, self._now) + cost


def would_be_longest(flow: str, lengths: Counter[str]) -> bool:
    """Whether a flow would have at least as many items as any other, with one more than now."""
    return lengths[flow] + 1 >= max(lengths.values(), default=0)
