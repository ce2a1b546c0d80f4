"""Interface of the derivatives of the solution map at one batch of solutions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convexlayer.diff.report import DerivativeReport
from convexlayer.program import Array, ConeProgram, Structure
from convexlayer.sparse import entries_of_products

__all__ = [
    "AbstractDifferentiator",
    "SolutionCotangent",
    "SolutionTangent",
    "data_cotangent",
    "whole_data",
    "whole_point",
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


def whole_data(data: ConeProgram) -> Array:
    """Concatenate all entries of a program cotangent, (B, ...)."""
    return np.concatenate([data.P, data.q, data.A, data.b], axis=1)


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
        on: Structure | None = None,
        observe: Callable[[ConeProgram], Array] = whole_data,
    ) -> tuple[ConeProgram, DerivativeReport]:
        """Pull back a solution cotangent to a program cotangent, with an accuracy report.

        Args:
            cotangent: the cotangent of the solution.
            on: the structure on whose patterns the cotangents of P and A are computed, also for ``observe``; default
                that of the program.
            observe: linear map of the result to what the caller uses of it.
        """

    @abstractmethod
    def jvp(
        self, tangent: ConeProgram, *, observe: Callable[[SolutionTangent], Array] = whole_point
    ) -> tuple[SolutionTangent, DerivativeReport]:
        """Push forward a program tangent to a solution tangent, with an accuracy report."""

    @abstractmethod
    def objective_report(self, *, observe: Callable[[SolutionTangent], Array]) -> DerivativeReport:
        """Accuracy report of the objective's derivative; it exists if ``observe`` maps the null space of K to zero."""


def data_cotangent(structure: Structure, x: Array, y: Array, l: Array, v: Array) -> ConeProgram:  # noqa: E741 (the design's name)
    """grad_q = -l, grad_b = v, grad_A = -(y l' + v x'), grad_P = -(l x' + x l') / 2, on the patterns of a structure."""
    q = -l
    return ConeProgram(
        structure,
        P=entries_of_products(structure.P.rows, structure.P.cols, ((0.5 * q, x), (x, 0.5 * q))),
        q=q,
        r=np.zeros(len(q)),
        A=entries_of_products(structure.A.rows, structure.A.cols, ((y, q), (-v, x))),
        b=v,
    )
