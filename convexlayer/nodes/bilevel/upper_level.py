"""Upper objective of a bilevel problem as a function of the parameters, with its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from convexlayer.errors import ProblemError, SolverError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.bilevel.lower_level import AbstractLower

__all__ = ["Objective", "UpperPoint", "is_finite"]


@final
@dataclass(frozen=True)
class UpperPoint:
    """The upper objective at one point.

    Attributes:
        theta: the parameters, detached.
        loss: the objective.
        gradient: its gradient, one tensor per parameter.
        solution: the lower solution, detached if it is a tensor or a tuple of them.
        warm: warm start of the lower level at nearby parameters.
    """

    theta: Tensors
    loss: float
    gradient: Tensors
    solution: Any
    warm: Any

    @property
    def gradient_norm(self) -> float:
        """Euclidean norm over all parameters."""
        return float(torch.stack([torch.linalg.vector_norm(part) for part in self.gradient]).norm())

    def along(self, step: Tensors) -> float:
        """Directional derivative <gradient, step>."""
        return sum(float((part * move).sum()) for part, move in zip(self.gradient, step, strict=True))


@final
class Objective:
    """theta -> upper(lower(theta), *theta), with its gradient.

    Args:
        upper: (solution, *theta) -> scalar tensor.
        lower: the lower level.

    Attributes:
        evaluations: number of evaluations.
    """

    def __init__(self, upper: Callable[..., torch.Tensor], lower: AbstractLower) -> None:
        self._upper, self._lower = upper, lower
        self.evaluations = 0

    def __call__(self, theta: Sequence[torch.Tensor], warm: Any = None) -> UpperPoint:
        """Evaluate.

        Raises:
            FailedElementsError: the lower problem has no solution.
            ProblemError: the objective is not a scalar.
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
        # Copies, because torch's optimisers write to their parameters.
        return UpperPoint(
            tuple(part.detach().clone() for part in theta), loss.item(), gradient, _detached(solution), next_warm
        )

    def attempt(self, theta: Sequence[torch.Tensor], warm: Any = None) -> UpperPoint | None:
        """Evaluate; None if the lower problem has no solution, or the objective or its gradient is not finite."""
        try:
            point = self(theta, warm)
        except SolverError:
            return None
        return point if is_finite(point) else None


def is_finite(point: UpperPoint) -> bool:
    """Whether the objective and its gradient are finite."""
    return all(bool(torch.isfinite(part).all()) for part in (torch.tensor(point.loss), *point.gradient))


def _detached(solution: Any) -> Any:
    match solution:
        case torch.Tensor():
            return solution.detach()
        case tuple():
            return tuple(_detached(part) for part in solution)
    return solution
