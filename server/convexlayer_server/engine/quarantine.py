"""Problems that end workers, and are refused for a time."""

from __future__ import annotations

import logging
import time
from typing import final

from ..errors import UnavailableError
from .crew import Ending

__all__ = ["Quarantine"]

_LOG = logging.getLogger(__name__)

_STRIKES = 2


@final
class Quarantine:
    """Refuses a problem that has ended two workers.

    Args:
        seconds: for how long it is refused, and for how long it is remembered that it ended one.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._strikes: dict[str, list[tuple[float, Ending]]] = {}

    def strike(self, problem_id: str, ending: Ending) -> None:
        """Remember that a worker ended with a problem in work."""
        now = time.monotonic()
        recent = [strike for strike in self._strikes.get(problem_id, ()) if strike[0] + self._seconds > now]
        self._strikes[problem_id] = [*recent, (now, ending)]
        _LOG.warning("problem %s was in work in a worker that ended (%s)", problem_id, ending)

    def forgive(self, problem_id: str) -> None:
        """It was computed: so workers that were killed from outside with it in work were not its doing."""
        strikes = self._strikes.get(problem_id)
        if strikes:
            strikes[:] = [strike for strike in strikes if strike[1] != "killed"]

    def check(self, problem_id: str) -> None:
        """See that a problem is not refused.

        Raises:
            UnavailableError: it is.
        """
        strikes = self._strikes.get(problem_id, [])
        if len(strikes) < _STRIKES:
            return
        left_s = strikes[-1][0] + self._seconds - time.monotonic()
        if left_s <= 0:
            del self._strikes[problem_id]
            return
        detail = f"the problem ended {len(strikes)} workers and is refused for another {left_s:.0f} s"
        raise UnavailableError(detail, retry_after_s=left_s)
