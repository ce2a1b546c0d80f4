"""Regularisers of the upper level: convex functions of the parameters with a known proximal map."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch

from convexlayer.errors import ProblemError
from convexlayer.nodes.autodiff.batch import Tensors

__all__ = ["AbstractRegulariser", "Box", "L1Norm"]


class AbstractRegulariser(ABC):
    """A convex, extended-valued function of the parameters with a known proximal map."""

    @abstractmethod
    def value(self, theta: Tensors) -> float:
        """Value, infinite outside the domain."""

    @abstractmethod
    def prox(self, theta: Tensors, step_size: float) -> Tensors:
        """Proximal map: the minimiser of step_size * value(x) + 1/2 |x - theta|^2."""


@final
@dataclass(frozen=True)
class L1Norm(AbstractRegulariser):
    """weight * sum |theta|, which promotes zero parameters.

    Attributes:
        weight: weight, nonnegative.
    """

    weight: float

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ProblemError: the weight is negative.
        """
        if not self.weight >= 0:
            raise ProblemError(f"expected a nonnegative weight of the L1 norm, got {self.weight}")

    def value(self, theta: Tensors) -> float:
        """Weighted norm."""
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
        """Validate.

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
        """Projection onto the box."""
        return tuple(part.clamp(self.lower, self.upper) for part in theta)
