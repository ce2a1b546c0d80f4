"""The upper level of a bilevel problem as a function of its parameters, and the terms in them alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from convexlayer.errors import ProblemError, SolverError
from convexlayer.nodes.batch import Tensors
from convexlayer.nodes.lower import AbstractLower

__all__ = ["AbstractRegulariser", "Box", "L1Norm", "Objective", "Point"]


@final
@dataclass(frozen=True)
class Point:
    """The upper objective at one place.

    Attributes:
        theta: the parameters, detached.
        loss: the objective.
        gradient: its gradient, one tensor a parameter.
        solution: the lower solution there, detached where it is a tensor or a tuple of them.
        warm: what the lower level may start from near by.
    """

    theta: Tensors
    loss: float
    gradient: Tensors
    solution: Any
    warm: Any

    @property
    def gradient_norm(self) -> float:
        """The Euclidean norm over all parameters."""
        return float(torch.stack([torch.linalg.vector_norm(part) for part in self.gradient]).norm())

    def along(self, step: Tensors) -> float:
        """The directional derivative <gradient, step>."""
        return sum(float((part * move).sum()) for part, move in zip(self.gradient, step, strict=True))


@final
class Objective:
    """theta -> upper(lower(theta), *theta), with its gradient.

    Args:
        upper: (solution, *theta) -> scalar tensor.
        lower: the lower level.

    Attributes:
        evaluations: how often it has been evaluated.
    """

    def __init__(self, upper: Callable[..., torch.Tensor], lower: AbstractLower) -> None:
        self._upper, self._lower = upper, lower
        self.evaluations = 0

    def __call__(self, theta: Sequence[torch.Tensor], warm: Any = None) -> Point:
        """Evaluate.

        Raises:
            FailedElementsError: the lower problem has no solution there.
            ProblemError: the objective is no scalar.
        """
        self.evaluations += 1
        leaves = tuple(part.detach().requires_grad_() for part in theta)
        with torch.enable_grad():
            solution, next_warm = self._lower.solve(leaves, warm)
            loss = self._upper(solution, *leaves)
        if loss.numel() != 1:
            raise ProblemError(
                f"upper: expected a scalar, got a tensor of shape {tuple(loss.shape)}; take its sum or mean"
            )
        gradient = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        # Copies, for torch's optimisers write to their parameters.
        return Point(
            tuple(part.detach().clone() for part in theta), loss.item(), gradient, _detached(solution), next_warm
        )

    def attempt(self, theta: Sequence[torch.Tensor], warm: Any = None) -> Point | None:
        """Evaluate; None where the lower problem has no solution, or the objective or its gradient is not finite."""
        try:
            point = self(theta, warm)
        except SolverError:
            return None
        return point if usable(point) else None


def usable(point: Point) -> bool:
    """Whether the objective and its gradient are finite."""
    return all(bool(torch.isfinite(part).all()) for part in (torch.tensor(point.loss), *point.gradient))


def _detached(solution: Any) -> Any:
    match solution:
        case torch.Tensor():
            return solution.detach()
        case tuple():
            return tuple(_detached(part) for part in solution)
    return solution


class AbstractRegulariser(ABC):
    """A convex function of the parameters, perhaps infinite somewhere, whose proximal map is known."""

    @abstractmethod
    def value(self, theta: Tensors) -> float:
        """The function; infinite outside its domain."""

    @abstractmethod
    def prox(self, theta: Tensors, step_size: float) -> Tensors:
        """The minimiser of step_size * value(x) + 1/2 |x - theta|^2."""


@final
@dataclass(frozen=True)
class L1Norm(AbstractRegulariser):
    """weight * sum |theta|, which makes parameters zero.

    Attributes:
        weight: nonnegative.
    """

    weight: float

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ProblemError: the weight is negative.
        """
        if not self.weight >= 0:
            raise ProblemError(f"expected a nonnegative weight of the L1 norm, got {self.weight}")

    def value(self, theta: Tensors) -> float:
        """The weighted norm."""
        return self.weight * sum(float(part.abs().sum()) for part in theta)

    def prox(self, theta: Tensors, step_size: float) -> Tensors:
        """Soft thresholding."""
        return tuple(torch.nn.functional.softshrink(part, self.weight * step_size) for part in theta)


@final
@dataclass(frozen=True)
class Box(AbstractRegulariser):
    """The constraint lower <= theta <= upper.

    Attributes:
        lower: lower bound of every parameter.
        upper: upper bound.
    """

    lower: float = -torch.inf
    upper: float = torch.inf

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ProblemError: the box is empty.
        """
        if not self.lower <= self.upper:
            raise ProblemError(f"expected a box with lower <= upper, got {self.lower} and {self.upper}")

    def value(self, theta: Tensors) -> float:
        """Zero inside, infinite outside."""
        inside = all(bool(((part >= self.lower) & (part <= self.upper)).all()) for part in theta)
        return 0.0 if inside else torch.inf

    def prox(self, theta: Tensors, step_size: float) -> Tensors:
        """The nearest point of the box."""
        return tuple(part.clamp(self.lower, self.upper) for part in theta)
