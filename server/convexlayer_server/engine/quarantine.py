"""What ended workers, and is refused for a time: to the key for which it did, and to no other."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import final

from ..errors import SolverChoiceError, TooManyError, UnavailableError
from .task import Task
from .work import Ending

__all__ = ["Quarantine"]

_LOG = logging.getLogger(__name__)

_STRIKES = 2
"""Workers that a problem, or a solver, may end for one key before it is refused to that key."""

_STRIKES_OF_A_KEY = 8
"""Workers that a key may end, whatever by, before it is refused."""

_REMEMBERED = 10_000

_Mark = tuple[str, ...]


@final
class Quarantine:
    """Refuses a key the problems and the solvers that have ended two workers for it; and a key that has ended eight.

    Workers that took too long, or were ended since nobody waited any more, are no matter of this.

    Args:
        seconds: for how long something is refused, and for how long it is remembered that it ended a worker.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._strikes: OrderedDict[_Mark, list[tuple[float, Ending]]] = OrderedDict()

    def strike(self, task: Task, ending: Ending) -> None:
        """Remember that a worker ended with a task in work."""
        _LOG.warning(
            "problem %s of key %s was in work in a worker that ended (%s)", task.problem_id, task.owner, ending
        )
        now = time.monotonic()
        for mark in _marks(task):
            recent = [strike for strike in self._strikes.get(mark, ()) if strike[0] + self._seconds > now]
            self._strikes[mark] = [*recent, (now, ending)]
            self._strikes.move_to_end(mark)
        while len(self._strikes) > _REMEMBERED:
            self._strikes.popitem(last=False)

    def forgive(self, task: Task) -> None:
        """It was computed: so workers that were killed from outside with it in work were not its doing."""
        for mark in _marks(task) if self._strikes else ():
            strikes = self._strikes.get(mark)
            if strikes:
                strikes[:] = [strike for strike in strikes if strike[1] != "killed"]

    def check(self, task: Task) -> None:
        """See that a task is not refused.

        Raises:
            UnavailableError: its problem is.
            SolverChoiceError: its solver is.
            TooManyError: its owner is.
        """
        for mark in _marks(task) if self._strikes else ():
            count, left_s = self._found(mark)
            if mark[0] == "key" and count >= _STRIKES_OF_A_KEY:
                raise TooManyError(
                    f"requests of this key ended {count} workers; it may compute again in {left_s:.0f} s",
                    retry_after_s=left_s,
                )
            if mark[0] == "solver" and count >= _STRIKES:
                raise SolverChoiceError.at(
                    "/options/solver",
                    f"{mark[2]} ended {count} workers that computed for this key, and is refused to it for another "
                    f"{left_s:.0f} s; use another solver, or auto",
                )
            if mark[0] == "problem" and count >= _STRIKES:
                raise UnavailableError(
                    f"the problem ended {count} workers that computed for this key, and is refused to it for another "
                    f"{left_s:.0f} s",
                    retry_after_s=left_s,
                )

    def _found(self, mark: _Mark) -> tuple[int, float]:
        """Strikes that count, and for how long they still do."""
        strikes = self._strikes.get(mark, [])
        left_s = strikes[-1][0] + self._seconds - time.monotonic() if strikes else 0.0
        return (len(strikes), left_s) if left_s > 0 else (0, 0.0)


def _marks(task: Task) -> Iterator[_Mark]:
    """What a task's misfortune is laid to: its solver where it named one, its problem, and its owner."""
    if task.cutter is not None and task.cutter.request.options.solver != "auto":
        yield "solver", task.owner, task.cutter.request.options.solver.upper()
    yield "problem", task.owner, task.problem_id
    yield "key", task.owner
