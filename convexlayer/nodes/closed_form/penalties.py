"""Robust penalties phi of a distance t, as functions of its square s = t^2 and a scale alpha.

phi(t) is about t^2/2 near 0 and, except for the quadratic, grows more slowly beyond alpha. Pooling uses its value, the
weight w = 2 dphi/ds of a point, and the derivatives of w. t and alpha have the unit of the points, phi its square.

Reference: Gould, Hartley and Campbell, Deep declarative networks, 2022, robust pooling, which compares these penalties.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch

__all__ = ["AbstractPenalty", "Huber", "PseudoHuber", "Quadratic", "TruncatedQuadratic", "Welsch"]


class AbstractPenalty(ABC):
    """A penalty phi; s and alpha are tensors of one shape.

    Attributes:
        convex: whether phi is convex, so that a minimum is global.
    """

    convex: ClassVar[bool]

    @abstractmethod
    def value(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The penalty phi."""

    @abstractmethod
    def weight(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The weight w = 2 dphi/ds, nonnegative and decreasing in s."""

    @abstractmethod
    def slope(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The derivative dw/ds."""

    @abstractmethod
    def scale_slope(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The derivative dw/dalpha."""


@final
class Quadratic(AbstractPenalty):
    """phi(t) = t^2/2, which pools to the mean."""

    convex: ClassVar = True

    def value(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The penalty."""
        return 0.5 * s

    def weight(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The weight, 1."""
        return torch.ones_like(s)

    def slope(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The derivative in s, 0."""
        return torch.zeros_like(s)

    def scale_slope(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The derivative in alpha, 0."""
        return torch.zeros_like(s)


@final
class PseudoHuber(AbstractPenalty):
    """phi(t) = alpha^2 (sqrt(1 + t^2/alpha^2) - 1), smooth."""

    convex: ClassVar = True

    def value(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The penalty, in a form without cancellation for small s."""
        return s / (1.0 + torch.sqrt(1.0 + s / alpha.square()))

    def weight(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The weight (1 + s/alpha^2)^(-1/2)."""
        return torch.rsqrt(1.0 + s / alpha.square())

    def slope(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The derivative in s, -w^3 / (2 alpha^2)."""
        return -0.5 * self.weight(s, alpha) ** 3 / alpha.square()

    def scale_slope(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The derivative in alpha, w^3 s / alpha^3."""
        return self.weight(s, alpha) ** 3 * s / alpha**3


@final
class Huber(AbstractPenalty):
    """phi(t) = t^2/2 for t <= alpha, else alpha (t - alpha/2); the second derivative jumps at alpha."""

    convex: ClassVar = True

    def value(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The penalty."""
        return torch.where(
            s <= alpha.square(), 0.5 * s, alpha * (_at_least_alpha_squared(s, alpha).sqrt() - 0.5 * alpha)
        )

    def weight(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The weight min(1, alpha / sqrt(s))."""
        return torch.where(s <= alpha.square(), 1.0, alpha * torch.rsqrt(_at_least_alpha_squared(s, alpha)))

    def slope(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The derivative in s: 0, or -alpha s^(-3/2) / 2."""
        return torch.where(s <= alpha.square(), 0.0, -0.5 * alpha * _at_least_alpha_squared(s, alpha) ** -1.5)

    def scale_slope(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The derivative in alpha: 0, or s^(-1/2)."""
        return torch.where(s <= alpha.square(), 0.0, torch.rsqrt(_at_least_alpha_squared(s, alpha)))


@final
class Welsch(AbstractPenalty):
    """phi(t) = alpha^2 (1 - exp(-t^2 / (2 alpha^2))): far points have no weight; there may be several minima."""

    convex: ClassVar = False

    def value(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The penalty."""
        return -alpha.square() * torch.expm1(-0.5 * s / alpha.square())

    def weight(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The weight exp(-s / (2 alpha^2))."""
        return torch.exp(-0.5 * s / alpha.square())

    def slope(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The derivative in s, -w / (2 alpha^2)."""
        return -0.5 * self.weight(s, alpha) / alpha.square()

    def scale_slope(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The derivative in alpha, w s / alpha^3."""
        return self.weight(s, alpha) * s / alpha**3


@final
class TruncatedQuadratic(AbstractPenalty):
    """phi(t) = min(t, alpha)^2 / 2: the mean of the points within alpha; several minima, with kinks between them."""

    convex: ClassVar = False

    def value(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The penalty."""
        return 0.5 * torch.minimum(s, alpha.square())

    def weight(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The weight: 1 within alpha, 0 beyond."""
        return torch.where(s <= alpha.square(), 1.0, 0.0).to(s.dtype)

    def slope(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The derivative in s, 0 almost everywhere."""
        return torch.zeros_like(s)

    def scale_slope(self, s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The derivative in alpha, 0 almost everywhere."""
        return torch.zeros_like(s)


def _at_least_alpha_squared(s: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """max(s, alpha^2), so that no branch of a torch.where is infinite."""
    return torch.where(s <= alpha.square(), alpha.square(), s)
