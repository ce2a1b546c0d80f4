"""What a derivative of the solution map at one batch of solutions can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convexlayer.diff.report import DerivativeReport
from convexlayer.program import Array, ConeProgram

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


SolutionCotangent = SolutionTangent
"""A cotangent of (x, y, s) has the same shapes."""


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
        self, cotangent: SolutionCotangent, *, seen: Callable[[ConeProgram], Array] = whole_data
    ) -> tuple[ConeProgram, DerivativeReport]:
        """Program cotangent of a solution cotangent, and how far to trust it."""

    @abstractmethod
    def jvp(
        self, tangent: ConeProgram, *, seen: Callable[[SolutionTangent], Array] = whole_point
    ) -> tuple[SolutionTangent, DerivativeReport]:
        """Solution tangent of a program tangent, and how far to trust it."""

    @abstractmethod
    def objective_report(self, *, seen: Callable[[SolutionTangent], Array]) -> DerivativeReport:
        """Whether (x, y) is unique as far as ``seen`` shows: the objective's derivative needs no more than that."""


def data_cotangent(program: ConeProgram, x: Array, y: Array, l: Array, v: Array) -> ConeProgram:  # noqa: E741 (the design's name)
    """grad_q = -l, grad_b = v, grad_A = -(y l' + v x'), grad_P = -(l x' + x l') / 2, on the patterns of the program."""
    P, A = program.structure.P, program.structure.A
    return ConeProgram(
        program.structure,
        P=-0.5 * (l[:, P.rows] * x[:, P.cols] + x[:, P.rows] * l[:, P.cols]),
        q=-l,
        r=np.zeros(program.batch),
        A=-(y[:, A.rows] * l[:, A.cols] + v[:, A.rows] * x[:, A.cols]),
        b=v,
    )
