"""Unconstrained nodes: y(theta) = argmin, argmax or another stationary point of f(y, theta).

y' = -f_YY^-1 f_XY        (Gould et al. 2016, lemmas 3.1 to 3.3)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch

from convexlayer.nodes.autodiff.batch import Shape
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.interior_point import InteriorPoint
from convexlayer.nodes.declarative.node import AbstractNode, shaped
from convexlayer.nodes.declarative.node_options import NodeOptions
from convexlayer.nodes.declarative.nonlinear_program import Function, NonlinearProgram
from convexlayer.nodes.declarative.stationary_newton import Stationary
from convexlayer.nodes.implicit.operator import Operator

__all__ = ["ArgmaxNode", "ArgminNode", "StationaryNode"]


class _AbstractUnconstrainedNode(AbstractNode):
    """What the three nodes have in common: their arguments."""

    def __init__(
        self,
        f: Function,
        variable: Shape,
        parameters: Sequence[Shape],
        *,
        solver: AbstractForwardSolver | None = None,
        options: NodeOptions | None = None,
    ) -> None:
        program = NonlinearProgram(self._minimised(shaped(f, variable)))
        super().__init__(program, variable, parameters, solver or self._own_solver(), options)

    @staticmethod
    @abstractmethod
    def _minimised(f: Function) -> Function:
        """The objective of the lower problem."""

    @staticmethod
    @abstractmethod
    def _own_solver() -> AbstractForwardSolver:
        """The solver where none is given."""

    def _why_singular(self, operator: Operator, element: int) -> str:
        return "the Hessian f_YY is singular at the solution, which may not be isolated"


@final
class ArgminNode(_AbstractUnconstrainedNode):
    """y(theta), a local minimum of f(y, theta).

    Points where the Hessian has a negative eigenvalue are left along it. Where it is singular, f is followed along some
    of its null vectors: what does not fall there counts as a minimum, of the kind ``degenerate``. With a linear solver
    by products alone no Hessian is formed, and the kind is ``unknown``.

    Args:
        f: objective of one element, f(y, *parameters) -> a scalar.
        variable: shape of y; () for a scalar.
        parameters: shapes of the parameters, -1 for any size.
        solver: finds the minimum; Newton's method with a line search by default.
        options: start, choice, linear solver, tolerances, and what to do about failures.
    """

    @staticmethod
    def _minimised(f: Function) -> Function:
        return f

    @staticmethod
    def _own_solver() -> AbstractForwardSolver:
        return InteriorPoint()


@final
class ArgmaxNode(_AbstractUnconstrainedNode):
    """y(theta), a local maximum of f(y, theta). The arguments are those of ``ArgminNode``; ``choose`` is given -f."""

    @staticmethod
    def _minimised(f: Function) -> Function:
        return _Negative(f)

    @staticmethod
    def _own_solver() -> AbstractForwardSolver:
        return InteriorPoint()


@final
class StationaryNode(_AbstractUnconstrainedNode):
    """y(theta), any stationary point of f(y, theta): minimum, maximum, saddle or inflection.

    Several starts give several points, and ``options.choose`` says which is meant. The arguments are those of
    ``ArgminNode``; the default solver is Newton's method on f_Y = 0. ``report.kind`` says what kind of point each is.
    """

    minimises: ClassVar[bool] = False

    @staticmethod
    def _minimised(f: Function) -> Function:
        return f

    @staticmethod
    def _own_solver() -> AbstractForwardSolver:
        return Stationary()


@final
class _Negative:
    """-f."""

    def __init__(self, f: Function) -> None:
        self.function = f

    def __call__(self, y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return -self.function(y, *theta)
