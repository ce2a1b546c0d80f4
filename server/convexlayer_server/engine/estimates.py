"""How long computations are likely to take, by how long they took of late; each key's by its own."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar, final

from .task import Computation, Task

__all__ = ["LONG_S", "Estimates"]

LONG_S = 0.2
"""What takes longer, in one element, is done in the background where others compute."""

_VERY_LONG_S = 1.0
"""The same for what is judged by others alone."""

_Key = TypeVar("_Key")

_SMOOTHING = 0.3
"""Weight of the newest element, or piece of work."""

_UNKNOWN_S = 2e-3
"""What something takes of whose kind nothing is known."""

_KNOWN = 10_000
"""Computations that are remembered."""


@final
class Estimates:
    """Running means of seconds an element, by computation; and of seconds a piece of work, by owner and kind of it."""

    def __init__(self) -> None:
        self._each_s: OrderedDict[Computation, float] = OrderedDict()
        self._lately_s: OrderedDict[tuple[str, bool], float] = OrderedDict()

    def each_s(self, task: Task) -> float | None:
        """Seconds of one element, or of compiling; None where it was never seen."""
        return self._each_s.get(task.computation)

    def first_s(self, task: Task) -> float:
        """Seconds of the least that can be done of a task; of an unknown one, what its owner's others take."""
        known = self.each_s(task)
        return self._lately_s.get((task.owner, task.cutter is None), _UNKNOWN_S) if known is None else known

    def is_long(self, task: Task) -> bool:
        """Whether the least of a task is likely to take long: by others of its owner, where that is unknown."""
        known = self.each_s(task)
        return self.first_s(task) > _VERY_LONG_S if known is None else known > LONG_S

    def left_s(self, task: Task) -> float:
        """Seconds of all of a task that is not yet handed to a worker."""
        return self.first_s(task) * max(1, task.left)

    def learn(self, task: Task, elements: int, seconds: float) -> None:
        """Take into account what some elements of a task took, or compiling it."""
        _smooth(self._each_s, task.computation, seconds / max(1, elements), elements)
        _smooth(self._lately_s, (task.owner, task.cutter is None), seconds)

    def is_late(self, task: Task, elements: int, seconds: float) -> None:
        """Take into account that some elements of a task have taken so long already: they may well as long again."""
        if (self.each_s(task) or 0.0) * max(1, elements) < 2.0 * seconds:
            self._each_s[task.computation] = 2.0 * seconds / max(1, elements)
            self._lately_s[task.owner, task.cutter is None] = 2.0 * _VERY_LONG_S


def _smooth(means: OrderedDict[_Key, float], key: _Key, value: float, count: int = 1) -> None:
    """Let a value count as often as this: the first of a computation, with all that it sets up, soon fades."""
    old = (1 - _SMOOTHING) ** max(1, count)
    means[key] = old * means.get(key, value) + (1 - old) * value
    means.move_to_end(key)
    if len(means) > _KNOWN:
        means.popitem(last=False)
