"""What a derivative of the solution map at one batch of solutions can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convexlayer.diff.report import DerivativeReport
from convexlayer.program import Array, ConeProgram

__all__ = ["AbstractDifferentiator", "Observer", "SolutionCotangent", "SolutionTangent", "data_cotangent"]


@dataclass(frozen=True, eq=False)
class SolutionTangent:
    """A tangent of (x, y, s): dx (B, n), dy (B, m), ds (B, m)."""

    x: Array
    y: Array
    s: Array


SolutionCotangent = SolutionTangent
"""A cotangent of (x, y, s) has the same shapes."""


@dataclass(frozen=True, eq=False)
class Observer:
    """What of program data and solutions is seen from outside, for deciding whether a non-unique answer matters.

    CVXPY's epigraph variables are often not unique while the variables of the problem are: then the linear system is
    singular, and yet every derivative that anyone asks for is well defined.

    Attributes:
        parameters: program cotangent -> cotangent of the parameters, (B, ...).
        outputs: tangents (B, n) of x and (B, m) of y -> tangent of the outputs, (B, ...).
    """

    parameters: Callable[[ConeProgram], Array]
    outputs: Callable[[Array, Array], Array]


class AbstractDifferentiator(ABC):
    """The derivative of (P, q, A, b) -> (x, y, s) at one batch of solutions; r does not move them."""

    @abstractmethod
    def vjp(self, cotangent: SolutionCotangent) -> tuple[ConeProgram, DerivativeReport]:
        """Program cotangent of a solution cotangent, and how far to trust it."""

    @abstractmethod
    def jvp(self, tangent: ConeProgram) -> tuple[SolutionTangent, DerivativeReport]:
        """Solution tangent of a program tangent, and how far to trust it."""


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
