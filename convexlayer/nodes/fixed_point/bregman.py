"""Bregman distances: nonlinear proximal terms that keep iterates inside a set without a projection.

A function psi, strongly convex with modulus 1 and differentiable inside its domain X, generates

    D(x, c) = psi(x) - psi(c) - <grad psi(c), x - c>  >=  1/2 |x - c|^2.

If |grad psi| is unbounded towards the boundary, the proximal step of a linear function on X,

    argmin over x in X of <slope, x> + D(x, c),        grad psi(x) = grad psi(c) - slope,

needs no projection and is a smooth function of c and slope, even if the problem that it is a step for is not smooth.

Reference: Ochs, Ranftl, Brox and Pock 2016, section 6; equations and examples are numbered as there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch

from convexlayer.errors import ProblemError

__all__ = ["AbstractBregman", "BoxEntropy", "Euclidean", "OrthantEntropy", "SimplexEntropy"]


class AbstractBregman(ABC):
    """The function psi that generates a Bregman distance, on tensors of one element of any shape."""

    @abstractmethod
    def potential(self, x: torch.Tensor) -> torch.Tensor:
        """psi(x), a scalar."""

    @abstractmethod
    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        """Gradient of psi at x, of x's shape."""

    @abstractmethod
    def mirror(self, y: torch.Tensor) -> torch.Tensor:
        """Mirror map: the x in X that maximises <y, x> - psi(x), the inverse of ``gradient``."""

    @abstractmethod
    def move(self, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """Mirror-descent step mirror(gradient(x) - slope), in a form that is defined on the boundary of X too.

        Points on the boundary do not move.
        """

    def distance(self, x: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
        """D(x, center), a scalar; eq. 14."""
        return self.potential(x) - self.potential(center) - (self.gradient(center) * (x - center)).sum()


@final
class Euclidean(AbstractBregman):
    """psi = 1/2 |x|^2 on the whole space, D = 1/2 |x - c|^2; example 1."""

    def potential(self, x: torch.Tensor) -> torch.Tensor:
        """Half the squared norm."""
        return 0.5 * x.square().sum()

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        """The point itself."""
        return x

    def mirror(self, y: torch.Tensor) -> torch.Tensor:
        """The point itself."""
        return y

    def move(self, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """A gradient step."""
        return x - slope


@final
class BoxEntropy(AbstractBregman):
    """Binary entropy on a box lower <= x <= upper; examples 2, 7 and 8.

        psi = h^2 sum 1/2 ((1 + z) log(1 + z) + (1 - z) log(1 - z)),    z = (x - middle) / h,    h half the width

    Args:
        lower: lower bounds, a number or a tensor that broadcasts with x.
        upper: upper bounds.

    Raises:
        ProblemError: a lower bound is not below its upper bound, or a bound is infinite.
    """

    def __init__(self, lower: float | torch.Tensor = -1.0, upper: float | torch.Tensor = 1.0) -> None:
        width = torch.as_tensor(upper, dtype=torch.float64) - torch.as_tensor(lower, dtype=torch.float64)
        if not bool(((width > 0) & torch.isfinite(width)).all()):
            raise ProblemError(f"expected finite lower bounds below the upper ones, got {lower} and {upper}")
        self._middle, self._half = (lower + upper) / 2, (upper - lower) / 2

    def potential(self, x: torch.Tensor) -> torch.Tensor:
        """Negative binary entropy."""
        z = (x - self._middle) / self._half
        entropy = torch.special.entr(1 + z) + torch.special.entr(1 - z)
        return -0.5 * (self._half**2 * entropy).sum()

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        """Gradient h atanh(z)."""
        return self._half * torch.atanh((x - self._middle) / self._half)

    def mirror(self, y: torch.Tensor) -> torch.Tensor:
        """Point with z = tanh(y / h)."""
        return self._middle + self._half * torch.tanh(y / self._half)

    def move(self, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """Example 7, symmetric in both bounds and scaled so that no exponential overflows."""
        z, push = (x - self._middle) / self._half, slope / self._half
        size = push.detach().abs()
        up, down = (1 + z) * torch.exp(-push - size), (1 - z) * torch.exp(push - size)
        return self._middle + self._half * (up - down) / (up + down)


@final
class OrthantEntropy(AbstractBregman):
    """psi = a sum x log x on x >= 0; examples 3 and 5.

    Args:
        a: scale; the modulus of strong convexity is 1 on 0 <= x <= a (the paper has [0, 1/a] by a slip).

    Raises:
        ProblemError: a is not positive.
    """

    def __init__(self, a: float = 1.0) -> None:
        if not a > 0:
            raise ProblemError(f"expected a positive scale of the entropy, got {a}")
        self._a = a

    def potential(self, x: torch.Tensor) -> torch.Tensor:
        """Negative entropy."""
        return -self._a * torch.special.entr(x).sum()

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        """Gradient a (log x + 1)."""
        return self._a * (torch.log(x) + 1)

    def mirror(self, y: torch.Tensor) -> torch.Tensor:
        """Point exp(y / a - 1)."""
        return torch.exp(y / self._a - 1)

    def move(self, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """Example 5."""
        return x * torch.exp(-slope / self._a)


@final
class SimplexEntropy(AbstractBregman):
    """psi = sum x log x on the simplices x >= 0, sum of x over one axis = 1; example 6.

    Args:
        dim: axis that sums to one; the other axes index the simplices.
    """

    def __init__(self, dim: int = -1) -> None:
        self._dim = dim

    def potential(self, x: torch.Tensor) -> torch.Tensor:
        """Negative entropy."""
        return -torch.special.entr(x).sum()

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        """Gradient log x + 1."""
        return torch.log(x) + 1

    def mirror(self, y: torch.Tensor) -> torch.Tensor:
        """Soft-max."""
        return torch.softmax(y, self._dim)

    def move(self, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """Example 6; exponentials are scaled by the largest among nonzero coordinates."""
        steepest = torch.where(x > 0, slope, torch.inf).detach().amin(self._dim, keepdim=True)
        # A zero coordinate stays zero; without the clamp its exponential could overflow, and 0 * inf is NaN.
        weighted = x * torch.exp((steepest - slope).clamp(max=0.0))
        return weighted / weighted.sum(self._dim, keepdim=True)
