"""The lower level of a bilevel problem: anything that maps parameters to a solution, warm-started where it can be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from convexlayer.errors import ProblemError
from convexlayer.layers import ConvexLayer, Report
from convexlayer.nodes.autodiff.batch import Shape, Tensors
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.initial_points import Start, starts_of
from convexlayer.nodes.declarative.node import AbstractNode
from convexlayer.nodes.declarative.nonlinear_program import NonlinearProgram, Point
from convexlayer.nodes.fixed_point.fixed_point_node import FixedPointNode

__all__ = ["AbstractLower", "LowerProgram", "lower_level", "lower_program"]


class AbstractLower(ABC):
    """Solves the lower problem."""

    @abstractmethod
    def solve(self, theta: Tensors, warm: Any) -> tuple[Any, Any]:
        """The solution, differentiable in theta, and what the next solve near by may start from.

        Args:
            theta: the parameters.
            warm: what an earlier solve gave, or None.
        """


def lower_level(lower: ConvexLayer | Callable[..., Any], *, warm_start: bool) -> AbstractLower:
    """The lower level that a layer, a node or any other function of theta is."""
    match lower:
        case ConvexLayer() if warm_start:
            return _Layer(lower)
        case AbstractNode() if warm_start:
            return _Node(lower)
        case FixedPointNode() if warm_start and lower.forgets_start:
            return _Node(lower)
    return _Function(lower)


@final
class _Layer(AbstractLower):
    def __init__(self, layer: ConvexLayer) -> None:
        self._layer = layer

    def solve(self, theta: Tensors, warm: Report | None) -> tuple[Tensors, Report]:
        return self._layer.solve(*theta, warm_start=warm)


@final
class _Node(AbstractLower):
    def __init__(self, node: AbstractNode | FixedPointNode) -> None:
        self._node = node

    def solve(self, theta: Tensors, warm: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        solution = self._node(*theta, warm_start=warm)
        return solution, solution.detach()


@final
class _Function(AbstractLower):
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def solve(self, theta: Tensors, warm: Any) -> tuple[Any, None]:
        return self._function(*theta), None


@final
@dataclass(frozen=True)
class LowerProgram:
    """A lower problem by its functions.

    Attributes:
        program: the functions, of y as a vector.
        variable: shape of y.
        shapes: shapes of the parameters.
        start: where its solver starts.
        solver: solves it.
        minimises: whether its solutions are minima, not any stationary points.
    """

    program: NonlinearProgram
    variable: Shape
    shapes: Sequence[Shape]
    start: Start
    solver: AbstractForwardSolver
    minimises: bool

    def starts(self, theta: Tensors) -> torch.Tensor:
        """The starts at these parameters, (k, n)."""
        return starts_of(self.start, None, self.variable, (None,) * len(theta), theta).squeeze(0)

    def solve(self, program: NonlinearProgram, start: torch.Tensor, theta: Tensors, *, p: int, m: int) -> Point:
        """What the solver makes of a program with these parameters, from each start (k, n); a solution or not."""
        return self.solver.solve(program, start, (None,) * len(theta), theta, p=p, m=m, mu=0.0).point


def lower_program(lower: object) -> LowerProgram:
    """The functions of a node.

    Raises:
        ProblemError: it is no node that is given by functions, or one of a barrier's central path.
    """
    if not isinstance(lower, AbstractNode):
        raise ProblemError(
            "the KKT form needs the functions of the lower problem: expected an ArgminNode, ArgmaxNode, "
            f"StationaryNode, EqualityNode or InequalityNode, got {type(lower).__name__}; the gradient form takes any"
        )
    if lower.t is not None:
        raise ProblemError(
            f"the KKT form is that of the lower problem itself, and this node follows the barrier's path with "
            f"t = {lower.t}: leave t out"
        )
    options = lower.options
    return LowerProgram(
        lower.program,
        lower.variable,
        lower.shapes,
        options.start,
        lower.solver,
        lower.minimises,
    )
