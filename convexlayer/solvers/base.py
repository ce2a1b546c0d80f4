"""The contract of a solver adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from convexlayer.program import Array, ConeProgram, Cones, IndexArray, Pattern, Structure
from convexlayer.solution import Solution
from convexlayer.solvers.options import Options
from convexlayer.status import Status

__all__ = [
    "AbstractSolver",
    "ElementResult",
    "SolverState",
    "batch_solution",
    "failed_element",
    "not_begun",
    "smallest_program",
    "upper_triangles",
]

SolverState = Any
"""What ``init`` prepares; known only to the solver that made it, and safe to share between threads."""


class AbstractSolver(ABC):
    """Solves batches of cone programs in the standard form; an element that fails is a status, not an exception.

    Attributes:
        name: the name users give.
        package: the distribution to install.
        cones: kinds of cone it supports (names of the fields of ``Cones``).
        quadratic: whether it takes a quadratic objective.
        fallback: the solver for elements that this one leaves unsettled, or None.
        fallback_for_claims: whether the fallback is used only where this one reports an element infeasible or unbounded
            without proof.
        supports_time_limit: whether it can stop at a time limit.
        starts_warm: whether it can start from a given point.
    """

    name: str
    package: str
    cones: frozenset[str]
    quadratic: bool
    fallback: str | None = None
    fallback_for_claims: bool = False
    supports_time_limit: bool = True
    starts_warm: bool = False

    @abstractmethod
    def installed(self) -> bool:
        """Whether the solver can be used here."""

    @abstractmethod
    def init(self, structure: Structure) -> SolverState:
        """Work that every solve of this structure shares."""

    @abstractmethod
    def solve(
        self, state: SolverState, program: ConeProgram, options: Options, warm_start: Solution | None = None
    ) -> Solution:
        """Solve every element.

        Args:
            state: from ``init``, for this program's structure.
            program: (B, ...) data; finite, unless it has overflown.
            options: portable and raw options.
            warm_start: solutions of a similar batch of the same size, used where the solver can.

        Returns:
            The solver's own words; ``Solution.certified`` judges them. An element on which the solver raised an
            exception is a numerical error, with a message in ``stats["messages"]``, by position.

        Raises:
            SolverError: an option that the solver does not know, or a value of one that it refuses for any program.
        """

    def refusal(self, structure: Structure) -> str | None:
        """Why the solver cannot take programs of this structure, or None."""
        missing = structure.cones.kinds - self.cones
        if missing:
            return f"it does not support the cones {', '.join(sorted(missing))}"
        if structure.P.nnz and not self.quadratic:
            return "it does not support quadratic objectives"
        return None


@dataclass(frozen=True, eq=False)
class ElementResult:
    """What a solver said of one element; NaN where it gave no point. Attributes as of ``Solution``, and a message."""

    x: Array
    y: Array
    s: Array
    status: Status
    iterations: int
    seconds: float
    message: str = ""


def failed_element(structure: Structure, message: str) -> ElementResult:
    """What is left of an element on which the solver raised an exception."""
    x, y, s = (np.full(length, np.nan) for length in (structure.n, structure.m, structure.m))
    return ElementResult(x, y, s, Status.NUMERICAL_ERROR, 0, 0.0, message)


def smallest_program() -> ConeProgram:
    """Minimise x over x >= 1: what no solver can refuse but for its settings."""
    one, none = (Pattern((1, 1), np.zeros(nnz, np.int64), np.zeros(nnz, np.int64)) for nnz in (1, 0))
    row = np.ones((1, 1))
    return ConeProgram(Structure(none, one, Cones(nonnegative=1)), np.zeros((1, 0)), row, np.zeros(1), -row, -row)


def not_begun(structure: Structure) -> ElementResult:
    """What is said of an element for which no time was left."""
    x, y = np.full(structure.n, np.nan), np.full(structure.m, np.nan)
    return ElementResult(x=x, y=y, s=y, status=Status.TIME_LIMIT, iterations=0, seconds=0.0)


def batch_solution(elements: list[ElementResult], stats: dict[str, Any]) -> Solution:
    """One Solution of many results; what is not finite becomes NaN. Their messages join ``stats`` by position."""
    messages = {i: element.message for i, element in enumerate(elements) if element.message}

    def finite(rows: list[Array]) -> Array:
        stacked = np.stack(rows)
        stacked[~np.isfinite(stacked)] = np.nan
        return stacked

    return Solution(
        x=finite([element.x for element in elements]),
        y=finite([element.y for element in elements]),
        s=finite([element.s for element in elements]),
        status=tuple(element.status for element in elements),
        iterations=np.array([element.iterations for element in elements], dtype=np.int64),
        seconds=np.array([element.seconds for element in elements]),
        stats={**stats, "messages": messages} if messages else stats,
    )


def upper_triangles(cones: Cones) -> IndexArray:
    """Rows of the standard form in an order where PSD blocks are upper triangles, column by column, (m,).

    ``b[permutation]`` is in that order; ``v[argsort(permutation)]`` comes back.
    """
    start = cones.zero + cones.nonnegative + sum(cones.second_order)
    order = np.arange(cones.m)
    for side in cones.psd:
        triangle = np.zeros((side, side), dtype=np.int64)
        rows, cols = np.triu_indices(side)
        triangle[cols, rows] = start + np.arange(len(rows))
        lower_rows, lower_cols = np.tril_indices(side)
        order[start : start + len(rows)] = triangle[lower_rows, lower_cols]
        start += len(rows)
    return order
