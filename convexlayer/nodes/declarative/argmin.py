"""Unconstrained nodes: y(theta) is a minimum, a maximum or any stationary point of f(y, theta).

dy/dtheta = -f_YY^-1 f_XY        (Gould et al. 2016, lemmas 3.1 to 3.3)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch

from convexlayer.nodes.autodiff.batch import Shape
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.interior_point import InteriorPoint
from convexlayer.nodes.declarative.node import AbstractNode, flat_function
from convexlayer.nodes.declarative.node_options import NodeOptions
from convexlayer.nodes.declarative.nonlinear_program import Function, NonlinearProgram
from convexlayer.nodes.declarative.stationary_newton import Stationary
from convexlayer.nodes.implicit.operator import Operator

__all__ = ["ArgmaxNode", "ArgminNode", "StationaryNode"]


class _AbstractUnconstrainedNode(AbstractNode):
    """Base class of the unconstrained nodes."""

    def __init__(
        self,
        f: Function,
        variable: Shape,
        parameters: Sequence[Shape],
        *,
        solver: AbstractForwardSolver | None = None,
        options: NodeOptions | None = None,
    ) -> None:
        program = NonlinearProgram(self._objective(flat_function(f, variable)))
        super().__init__(program, variable, parameters, solver or self._default_solver(), options)

    @staticmethod
    @abstractmethod
    def _objective(f: Function) -> Function:
        """Objective of the lower problem, which is minimised."""

    @staticmethod
    @abstractmethod
    def _default_solver() -> AbstractForwardSolver:
        """Forward solver used if none is given."""

    def _singular_message(self, operator: Operator, index: int) -> str:
        return "the Hessian f_YY is singular at the solution, which may not be isolated"


@final
class ArgminNode(_AbstractUnconstrainedNode):
    """y(theta), a local minimum of f(y, theta).

    The search leaves points whose Hessian has a negative eigenvalue along its eigenvector. Where the Hessian is
    singular, f is searched along some null vectors; a point with no decrease there counts as a minimum of the kind
    ``degenerate``. With an iterative linear solver no Hessian is formed, and the kind is ``unknown``.

    Args:
        f: objective of one element, f(y, *parameters) -> a scalar.
        variable: shape of y; () for a scalar.
        parameters: shapes of the parameters, -1 for any size.
        solver: forward solver; Newton's method with a line search by default.
        options: start, choice, linear solver, tolerances, and failure policies.
    """

    @staticmethod
    def _objective(f: Function) -> Function:
        return f

    @staticmethod
    def _default_solver() -> AbstractForwardSolver:
        return InteriorPoint()


@final
class ArgmaxNode(_AbstractUnconstrainedNode):
    """y(theta), a local maximum of f(y, theta). Arguments as in ``ArgminNode``; ``options.choose`` receives -f."""

    @staticmethod
    def _objective(f: Function) -> Function:
        return _Negative(f)

    @staticmethod
    def _default_solver() -> AbstractForwardSolver:
        return InteriorPoint()


@final
class StationaryNode(_AbstractUnconstrainedNode):
    """y(theta), any stationary point of f(y, theta): minimum, maximum, saddle or inflection.

    Several starts may give several points, among which ``options.choose`` selects; ``report.kind`` classifies them.
    Arguments as in ``ArgminNode``; the default solver is Newton's method on f_Y = 0.
    """

    minimises: ClassVar[bool] = False

    @staticmethod
    def _objective(f: Function) -> Function:
        return f

    @staticmethod
    def _default_solver() -> AbstractForwardSolver:
        return Stationary()


@final
class _Negative:
    """-f."""

    def __init__(self, f: Function) -> None:
        self.function = f

    def __call__(self, y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return -self.function(y, *theta)
