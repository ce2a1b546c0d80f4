"""Interface of the derivatives of the solution map at one batch of solutions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convexlayer.diff.report import DerivativeReport
from convexlayer.program import Array, ConeProgram, ProgramCotangent, Structure

__all__ = [
    "AbstractDifferentiator",
    "SolutionCotangent",
    "SolutionTangent",
    "whole_point",
    "whole_program",
]


@dataclass(frozen=True, eq=False)
class SolutionTangent:
    """A tangent of (x, y, s): dx (B, n), dy (B, m), ds (B, m)."""

    x: Array
    y: Array
    s: Array


@dataclass(frozen=True, eq=False)
class SolutionCotangent:
    """A cotangent of (x, y, s), of the same shapes; s = None is zero."""

    x: Array
    y: Array
    s: Array | None = None


def whole_program(structure: Structure) -> Callable[[ProgramCotangent], Array]:
    """The map from a program cotangent to all its entries on the patterns of a structure, (B, ...)."""
    return lambda cotangent: np.concatenate(
        [cotangent.P(structure.P), cotangent.q, cotangent.A(structure.A), cotangent.b], axis=1
    )


def whole_point(tangent: SolutionTangent) -> Array:
    """Concatenate x and y of a solution tangent, (B, n + m); s follows from x."""
    return np.concatenate([tangent.x, tangent.y], axis=1)


class AbstractDifferentiator(ABC):
    """The derivative of (P, q, A, b) -> (x, y, s) at one batch of solutions; solutions do not depend on r.

    CVXPY's epigraph variables are often not unique although the variables of the problem are. Then the KKT matrix is
    singular, or w is at a jump of the projection's derivative D, although the requested derivative is well defined.
    Therefore vjp and jvp take ``observe``, the linear map from their result to what the caller uses of it, (B, ...);
    the report ignores ambiguity that ``observe`` maps to zero.
    """

    @abstractmethod
    def vjp(
        self,
        cotangent: SolutionCotangent,
        *,
        observe: Callable[[ProgramCotangent], Array] | None = None,
    ) -> tuple[ProgramCotangent, DerivativeReport]:
        """Pull back a solution cotangent to a program cotangent, with an accuracy report.

        Args:
            cotangent: the cotangent of the solution.
            observe: linear map of the result to what the caller uses of it; default all entries on the program's own
                patterns (``whole_program``).
        """

    @abstractmethod
    def jvp(
        self, tangent: ConeProgram, *, observe: Callable[[SolutionTangent], Array] = whole_point
    ) -> tuple[SolutionTangent, DerivativeReport]:
        """Push forward a program tangent to a solution tangent, with an accuracy report."""

    @abstractmethod
    def objective_report(self, *, observe: Callable[[SolutionTangent], Array]) -> DerivativeReport:
        """Accuracy report of the objective's derivative; it exists if ``observe`` maps the null space of K to zero."""
