"""Interface of a solver adapter."""

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
    "not_started",
    "smallest_program",
    "upper_triangles",
]

SolverState = Any
"""The result of ``init``: opaque to callers, and safe to share between threads."""


class AbstractSolver(ABC):
    """Solves batches of cone programs in standard form; a failed element has a status and does not raise.

    Attributes:
        name: name of the solver, as users write it.
        package: distribution to install.
        cones: supported kinds of cones (names of fields of ``Cones``).
        quadratic: whether quadratic objectives are supported.
        fallback: name of the solver for elements that this one leaves unsettled, or None.
        fallback_for_unproved: whether the fallback is used only for elements that this solver reports as infeasible or
            unbounded without a certificate.
        supports_time_limit: whether time limits are supported.
        supports_warm_start: whether warm starts are supported.
    """

    name: str
    package: str
    cones: frozenset[str]
    quadratic: bool
    fallback: str | None = None
    fallback_for_unproved: bool = False
    supports_time_limit: bool = True
    supports_warm_start: bool = False

    @abstractmethod
    def installed(self) -> bool:
        """Whether the solver is installed."""

    @abstractmethod
    def init(self, structure: Structure) -> SolverState:
        """Analyse a structure, once for all solves."""

    @abstractmethod
    def solve(
        self, state: SolverState, program: ConeProgram, options: Options, warm_start: Solution | None = None
    ) -> Solution:
        """Solve every element.

        Args:
            state: result of ``init`` for this program's structure.
            program: data, (B, ...), finite unless it overflowed.
            options: portable and raw options.
            warm_start: solutions of a similar batch of the same size; ignored if warm starts are not supported.

        Returns:
            The results as the solver reports them; ``Solution.certified`` checks them. An element on which the solver
            raised an exception has status NUMERICAL_ERROR and a message in ``stats["messages"]``, by position.

        Raises:
            SolverError: an unknown option, or an option value that the solver rejects for every program.
        """

    def unsupported_reason(self, structure: Structure) -> str | None:
        """Why the solver does not support programs of this structure, or None if it does."""
        missing = structure.cones.kinds - self.cones
        if missing:
            return f"it does not support the cones {', '.join(sorted(missing))}"
        if structure.P.nnz and not self.quadratic:
            return "it does not support quadratic objectives"
        return None


@dataclass(frozen=True, eq=False)
class ElementResult:
    """Result of one element: the attributes of ``Solution``, NaN without a point, and an error message."""

    x: Array
    y: Array
    s: Array
    status: Status
    iterations: int
    seconds: float
    message: str = ""


def failed_element(structure: Structure, message: str) -> ElementResult:
    """The result of an element on which the solver raised an exception."""
    x, y, s = (np.full(length, np.nan) for length in (structure.n, structure.m, structure.m))
    return ElementResult(x, y, s, Status.NUMERICAL_ERROR, 0, 0.0, message)


def smallest_program() -> ConeProgram:
    """Minimise x subject to x >= 1: a program that a solver rejects only because of its settings."""
    one, none = (Pattern((1, 1), np.zeros(nnz, np.int64), np.zeros(nnz, np.int64)) for nnz in (1, 0))
    row = np.ones((1, 1))
    return ConeProgram(Structure(none, one, Cones(nonnegative=1)), np.zeros((1, 0)), row, np.zeros(1), -row, -row)


def not_started(structure: Structure) -> ElementResult:
    """The result of an element that was not started before the time limit."""
    x, y = np.full(structure.n, np.nan), np.full(structure.m, np.nan)
    return ElementResult(x=x, y=y, s=y, status=Status.TIME_LIMIT, iterations=0, seconds=0.0)


def batch_solution(elements: list[ElementResult], stats: dict[str, Any]) -> Solution:
    """Combine results in a Solution; infinite entries become NaN, messages go to ``stats["messages"]`` by position."""
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
    """Permutation (m,) of the rows that stores PSD blocks as upper triangles, column by column.

    ``b[permutation]`` is in that order; ``v[argsort(permutation)]`` is in the original one.
    """
    start = cones.rows_of("psd").start
    order = np.arange(cones.m)
    for side in cones.psd:
        triangle = np.zeros((side, side), dtype=np.int64)
        rows, cols = np.triu_indices(side)
        triangle[cols, rows] = start + np.arange(len(rows))
        lower_rows, lower_cols = np.tril_indices(side)
        order[start : start + len(rows)] = triangle[lower_rows, lower_cols]
        start += len(rows)
    return order
