"""What a derivative of the solution map at one batch of solutions can do."""

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
    """A cotangent of (x, y, s), of the same shapes; that of s is zero if it is None."""

    x: Array
    y: Array
    s: Array | None = None


def whole_data(data: ConeProgram) -> Array:
    """Everything that a program cotangent holds, (B, ...)."""
    return np.concatenate([data.P, data.q, data.A, data.b], axis=1)


def whole_point(tangent: SolutionTangent) -> Array:
    """Everything of a solution tangent but s, which follows from the rest, (B, n + m)."""
    return np.concatenate([tangent.x, tangent.y], axis=1)


class AbstractDifferentiator(ABC):
    """The derivative of (P, q, A, b) -> (x, y, s) at one batch of solutions; r does not move them.

    CVXPY's epigraph variables are often not unique while the variables of the problem are: then the linear system is
    singular, or w lies on a jump of D, and yet every derivative that anyone asks for is well defined. So both calls
    take
    ``seen``: what becomes of their answer outside, linear, (B, ...). A choice that it does not show does not matter.
    """

    @abstractmethod
    def vjp(
        self,
        cotangent: SolutionCotangent,
        *,
        on: Structure | None = None,
        seen: Callable[[ConeProgram], Array] = whole_data,
    ) -> tuple[ConeProgram, DerivativeReport]:
        """Program cotangent of a solution cotangent, and how far to trust it.

        Args:
            cotangent: that of the solution.
            on: the patterns on which the cotangents of P and A are wanted; those of the program unless given. ``seen``
                and the answer have this structure.
            seen: what becomes of the answer.
        """

    @abstractmethod
    def jvp(
        self, tangent: ConeProgram, *, seen: Callable[[SolutionTangent], Array] = whole_point
    ) -> tuple[SolutionTangent, DerivativeReport]:
        """Solution tangent of a program tangent, and how far to trust it."""

    @abstractmethod
    def objective_report(self, *, seen: Callable[[SolutionTangent], Array]) -> DerivativeReport:
        """Whether (x, y) is unique as far as ``seen`` shows: the objective's derivative needs no more than that."""


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
