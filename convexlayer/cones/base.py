"""What every cone supplies, in the signs of `convexlayer.program`.

For w = y - s:   y = Pi_{K*}(w) in K*,   s = y - w in K,   y's = 0   (Moreau).

Everything is written against the array API: NumPy arrays and torch tensors go through the same lines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["AbstractCone", "Array", "Eigenbasis"]

# A NumPy array or a torch tensor, float64: no static type covers both.
Array: TypeAlias = Any


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """The derivative D = Q diag(d) Q' of a projection: symmetric, eigenvalues in [0, 1].

    Attributes:
        Q: (..., size, size), orthogonal; None for the identity.
        d: (..., size), the eigenvalues, in the order of Q's columns.
        complement: (..., size), 1 - d to full relative precision, where subtraction would leave rounding.
    """

    Q: Array | None
    d: Array
    complement: Array


class AbstractCone(ABC):
    """Blocks of one cone K, all of one size; leading axes are batch and block.

    Where w lies in both K* and -K, or on a set where D jumps, D is one of its limits. At w = 0 it is 0.

    Attributes:
        size: rows of one block.
    """

    size: int

    @abstractmethod
    def project_dual(self, w: Array) -> Array:
        """Pi_{K*}(w), (..., size) -> (..., size)."""

    @abstractmethod
    def derivative(self, w: Array) -> Eigenbasis:
        """The derivative of Pi_{K*} at w, (..., size)."""

    @abstractmethod
    def margin(self, w: Array) -> Array:
        """Euclidean distance from w to the set where the derivative jumps, (..., size) -> (...)."""
