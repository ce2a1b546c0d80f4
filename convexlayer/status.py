"""What became of the elements of a batch."""

from __future__ import annotations

from enum import Enum

__all__ = ["Status"]


class Status(str, Enum):
    """What became of one element; of one that is ``invalid`` the values could not be used, and nothing was solved."""

    OPTIMAL = "optimal"
    OPTIMAL_INACCURATE = "optimal_inaccurate"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    ITERATION_LIMIT = "iteration_limit"
    TIME_LIMIT = "time_limit"
    NUMERICAL_ERROR = "numerical_error"
    INVALID = "invalid"

    @property
    def solved(self) -> bool:
        """Whether the element has a solution that can be used."""
        return self in (Status.OPTIMAL, Status.OPTIMAL_INACCURATE)

    def __str__(self) -> str:
        return self.value
