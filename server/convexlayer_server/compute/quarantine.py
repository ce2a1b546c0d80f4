"""Quarantine: problems, solvers and keys that ended workers are refused for a time, to the responsible key alone."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import final

from ..errors import SolverChoiceError, TooManyError, UnavailableError
from .task import Task
from .worker_messages import ExitReason

__all__ = ["Quarantine"]

_LOG = logging.getLogger(__name__)

_MAX_STRIKES = 2
"""Workers that a problem, or a solver, may end for one key before it is refused to that key."""

_MAX_KEY_STRIKES = 8
"""Workers that a key may end with any problems before all its requests are refused."""

_MAX_SUBJECTS = 10_000
"""Number of subjects to remember; the least recent ones are dropped."""

_Subject = tuple[str, ...]
"""What a strike counts against: ("solver", key, solver), ("problem", key, problem) or ("key", key)."""


@final
class Quarantine:
    """Refuses a key the problems and the solvers that ended two workers for it, and a key that ended eight workers.

    Workers that exceeded their deadline, or whose work was cancelled, do not count.

    Args:
        seconds: duration of a quarantine, and time for which a strike counts.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._strikes: OrderedDict[_Subject, list[tuple[float, ExitReason]]] = OrderedDict()

    def record_strike(self, task: Task, reason: ExitReason) -> None:
        """Record that a worker ended while it computed a task."""
        _LOG.warning("a worker ended (%s) while it computed problem %s of key %s", reason, task.problem_id, task.owner)
        now = time.monotonic()
        for subject in _subjects(task):
            recent = [strike for strike in self._strikes.get(subject, ()) if strike[0] + self._seconds > now]
            self._strikes[subject] = [*recent, (now, reason)]
            self._strikes.move_to_end(subject)
        while len(self._strikes) > _MAX_SUBJECTS:
            self._strikes.popitem(last=False)

    def record_success(self, task: Task) -> None:
        """Record that a task succeeded: workers that were killed from outside during such a task no longer count."""
        for subject in _subjects(task) if self._strikes else ():
            strikes = self._strikes.get(subject)
            if strikes:
                strikes[:] = [strike for strike in strikes if strike[1] != "killed"]

    def check(self, task: Task) -> None:
        """Check that a task is not quarantined.

        Raises:
            UnavailableError: its problem is quarantined.
            SolverChoiceError: its solver is quarantined.
            TooManyError: its owner is quarantined.
        """
        for subject in _subjects(task) if self._strikes else ():
            count, left_s = self._count(subject)
            if subject[0] == "key" and count >= _MAX_KEY_STRIKES:
                raise TooManyError(
                    f"requests of this key ended {count} workers; it may compute again in {left_s:.0f} s",
                    retry_after_s=left_s,
                )
            if subject[0] == "solver" and count >= _MAX_STRIKES:
                raise SolverChoiceError.at(
                    "/options/solver",
                    f"{subject[2]} ended {count} workers that computed for this key, and is unavailable to it for "
                    f"another {left_s:.0f} s; choose another solver, or auto",
                )
            if subject[0] == "problem" and count >= _MAX_STRIKES:
                raise UnavailableError(
                    f"the problem ended {count} workers that computed for this key, and is unavailable to it for "
                    f"another {left_s:.0f} s",
                    retry_after_s=left_s,
                )

    def _count(self, subject: _Subject) -> tuple[int, float]:
        """Return the number of strikes that count, and the seconds for which they still do."""
        strikes = self._strikes.get(subject, [])
        left_s = strikes[-1][0] + self._seconds - time.monotonic() if strikes else 0.0
        return (len(strikes), left_s) if left_s > 0 else (0, 0.0)


def _subjects(task: Task) -> Iterator[_Subject]:
    """Yield the subjects of a task: its solver, if the request names one, its problem, and its owner."""
    if task.batched is not None and task.batched.request.options.solver != "auto":
        yield "solver", task.owner, task.batched.request.options.solver.upper()
    yield "problem", task.owner, task.problem_id
    yield "key", task.owner
