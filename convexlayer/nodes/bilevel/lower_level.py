"""Lower levels of a bilevel problem: layers, nodes and functions that map parameters to a solution."""

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
from convexlayer.nodes.declarative.initial_points import Start, initial_points
from convexlayer.nodes.declarative.node import AbstractNode
from convexlayer.nodes.declarative.nonlinear_program import NonlinearProgram, Point
from convexlayer.nodes.fixed_point.fixed_point_node import FixedPointNode

__all__ = ["AbstractLower", "LowerProgram", "lower_level", "lower_program"]


class AbstractLower(ABC):
    """Solver of the lower problem."""

    @abstractmethod
    def solve(self, theta: Tensors, warm: Any) -> tuple[Any, Any]:
        """Solve; returns the solution, differentiable in theta, and the warm start of the next solve.

        Args:
            theta: the parameters.
            warm: warm start from an earlier solve, or None.
        """


def lower_level(lower: ConvexLayer | Callable[..., Any], *, warm_start: bool) -> AbstractLower:
    """Wrap a layer, a node or any other function of theta, with warm starts if requested and supported."""
    match lower:
        case ConvexLayer() if warm_start:
            return _ConvexLayerLevel(lower)
        case AbstractNode() if warm_start:
            return _NodeLevel(lower)
        case FixedPointNode() if warm_start and lower.forgets_start:
            return _NodeLevel(lower)
    return _FunctionLevel(lower)


@final
class _ConvexLayerLevel(AbstractLower):
    def __init__(self, layer: ConvexLayer) -> None:
        self._layer = layer

    def solve(self, theta: Tensors, warm: Report | None) -> tuple[Tensors, Report]:
        return self._layer.solve(*theta, warm_start=warm)


@final
class _NodeLevel(AbstractLower):
    def __init__(self, node: AbstractNode | FixedPointNode) -> None:
        self._node = node

    def solve(self, theta: Tensors, warm: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        solution = self._node(*theta, warm_start=warm)
        return solution, solution.detach()


@final
class _FunctionLevel(AbstractLower):
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
        start: initial point(s) of its solver.
        solver: forward solver.
        minimises: whether its solutions are minima; else any stationary point is one.
    """

    program: NonlinearProgram
    variable: Shape
    shapes: Sequence[Shape]
    start: Start
    solver: AbstractForwardSolver
    minimises: bool

    def starts(self, theta: Tensors) -> torch.Tensor:
        """Initial points at these parameters, (k, n)."""
        return initial_points(self.start, None, self.variable, (None,) * len(theta), theta).squeeze(0)

    def solve(self, program: NonlinearProgram, start: torch.Tensor, theta: Tensors, *, p: int, m: int) -> Point:
        """Run the solver on a program from each start (k, n); the results are not verified."""
        return self.solver.solve(program, start, (None,) * len(theta), theta, p=p, m=m, mu=0.0).point


def lower_program(lower: object) -> LowerProgram:
    """Get the lower problem of a node.

    Raises:
        ProblemError: the lower level is not a node given by functions, or has a barrier parameter t.
    """
    if not isinstance(lower, AbstractNode):
        raise ProblemError(
            "the KKT form needs the functions of the lower problem: expected an ArgminNode, ArgmaxNode, "
            f"StationaryNode, EqualityNode or InequalityNode, got {type(lower).__name__}; the gradient form takes any"
        )
    if lower.t is not None:
        raise ProblemError(
            "the KKT form is that of the lower problem itself, but this node returns a point on the central path with "
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
