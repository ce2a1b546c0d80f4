"""The lower level of a bilevel problem: anything that maps parameters to a solution, warm-started where it can be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch

from convexlayer.layers import ConvexLayer, Report
from convexlayer.nodes.batch import Tensors
from convexlayer.nodes.fixed_point import FixedPointNode
from convexlayer.nodes.node import AbstractNode

__all__ = ["AbstractLower", "lower_level"]


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
