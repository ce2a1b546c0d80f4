"""Solution statuses of the elements of a batch."""

from __future__ import annotations

from enum import Enum

__all__ = ["Status"]


class Status(str, Enum):
    """Status of one element; ``invalid`` means that its parameter values are invalid and it was not solved."""

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
        """Whether the element has a usable solution."""
        return self in (Status.OPTIMAL, Status.OPTIMAL_INACCURATE)

    def __str__(self) -> str:
        return self.value
