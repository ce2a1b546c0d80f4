"""Estimates of how long tasks take, from the durations of earlier ones of the same owner."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar, final

from .task import CostKey, Task

__all__ = ["SLOW_S", "Estimates"]

SLOW_S = 0.2
"""Seconds from which one element is slow: a background worker computes it while several owners compute.

Smaller values send more work to the background; larger ones let one element delay other owners for longer.
"""

_SLOW_BY_OWNER_S = 1.0
"""The same for a task that was never seen and is judged by its owner's other tasks; higher, since that is a guess."""

_Key = TypeVar("_Key")

_SMOOTHING = 0.3
"""Weight of the newest element, or chunk, in the exponential moving average."""

_DEFAULT_S = 2e-3
"""Estimate in seconds for a task of an owner of whom no duration is known."""

_MAX_KEYS = 10_000
"""Number of averages to keep; the least recently updated ones are dropped."""


@final
class Estimates:
    """Moving averages: seconds an element by ``CostKey``, and seconds a chunk by owner and kind of task."""

    def __init__(self) -> None:
        self._element_s: OrderedDict[CostKey, float] = OrderedDict()
        self._chunk_s: OrderedDict[tuple[str, bool], float] = OrderedDict()

    def element_s(self, task: Task) -> float | None:
        """Return the seconds of one element, or of canonicalising; None if such a task was never seen."""
        return self._element_s.get(task.cost_key)

    def minimum_s(self, task: Task) -> float:
        """Return the seconds of the smallest possible chunk; if unknown, those of its owner's other chunks."""
        known = self.element_s(task)
        return self._chunk_s.get((task.owner, task.batched is None), _DEFAULT_S) if known is None else known

    def is_slow(self, task: Task) -> bool:
        """Whether the smallest possible chunk probably occupies a worker for long."""
        known = self.element_s(task)
        return self.minimum_s(task) > _SLOW_BY_OWNER_S if known is None else known > SLOW_S

    def remaining_s(self, task: Task) -> float:
        """Return the seconds of all elements that no worker has received."""
        return self.minimum_s(task) * max(1, task.remaining)

    def record_duration(self, task: Task, elements: int, seconds: float) -> None:
        """Record how long some elements of a task took, or canonicalising its document."""
        _update(self._element_s, task.cost_key, seconds / max(1, elements), elements)
        _update(self._chunk_s, (task.owner, task.batched is None), seconds)

    def record_overrun(self, task: Task, elements: int, seconds: float) -> None:
        """Record that some elements of a running task already took this long: expect twice the time."""
        if (self.element_s(task) or 0.0) * max(1, elements) < 2.0 * seconds:
            self._element_s[task.cost_key] = 2.0 * seconds / max(1, elements)
            self._chunk_s[task.owner, task.batched is None] = 2.0 * _SLOW_BY_OWNER_S


def _update(means: OrderedDict[_Key, float], key: _Key, value: float, count: int = 1) -> None:
    """Update a moving average as if with ``count`` equal values, so that the set-up cost of a first call soon fades."""
    old = (1 - _SMOOTHING) ** max(1, count)
    means[key] = old * means.get(key, value) + (1 - old) * value
    means.move_to_end(key)
    while len(means) > _MAX_KEYS:
        means.popitem(last=False)
