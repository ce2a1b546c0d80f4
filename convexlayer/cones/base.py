"""Interface of a cone, with the sign conventions of `convexlayer.program`.

For w = y - s:   y = Pi_{K*}(w) in K*,   s = y - w in K,   y's = 0   (Moreau decomposition).

The code uses the array API standard, so that it works with NumPy arrays and torch tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, final

import array_api_compat.numpy as numpy_namespace
import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

__all__ = ["AbstractCone", "Array", "BlockKind", "ConePoint", "Eigenbasis", "RankTwo", "namespace"]

# A NumPy array or a torch tensor, float64: no static type covers both.
Array: TypeAlias = Any


def namespace(array: Array) -> Any:
    """The array-API namespace of an array, with a fast path for NumPy."""
    return numpy_namespace if type(array) is np.ndarray else array_namespace(array)


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """The derivative D = Q diag(d) Q' of a projection: symmetric, eigenvalues in [0, 1].

    Attributes:
        Q: (..., size, size), orthogonal; None for the identity.
        d: (..., size), the eigenvalues, in the order of Q's columns.
        complement: (..., size), 1 - d to full relative precision, which subtraction would lose.
        margin: computes the strict complementarity margin at the same point, (...), see ``AbstractCone.margin``.
    """

    Q: Array | None
    d: Array
    complement: Array
    margin: Callable[[], Array]

    @cached_property
    def root(self) -> Array:
        """The square roots of d."""
        return namespace(self.d).sqrt(self.d)

    def apply(self, v: Array) -> Array:
        """D v, (..., size)."""
        if self.Q is None:
            return self.d * v
        return (self.Q @ (self.d * (v[..., None, :] @ self.Q)[..., 0, :])[..., None])[..., 0]


@dataclass(frozen=True, eq=False)
class RankTwo:
    """The derivative D = delta I + (1 - delta) q1 q1' - delta q2 q2' of a projection, without an eigenbasis.

    With q1 and q2 orthonormal the eigenvalues are 1, 0 and delta. D = I is delta = 1 with q2 = 0; D = 0 is delta = 0
    with q1 = q2 = 0.

    Attributes:
        q1: (..., size).
        q2: (..., size).
        delta: (..., 1).
        complement: (..., 1), 1 - delta without cancellation.
        margin: computes the strict complementarity margin at the same point, (...), see ``AbstractCone.margin``.
    """

    q1: Array
    q2: Array
    delta: Array
    complement: Array
    margin: Callable[[], Array]

    @cached_property
    def root(self) -> Array:
        """The square root of delta, (..., 1)."""
        return namespace(self.delta).sqrt(self.delta)

    @cached_property
    def scaled_q1(self) -> Array:
        """sqrt(1 - delta) q1, (..., size)."""
        return namespace(self.q1).sqrt(self.complement) * self.q1

    def apply(self, v: Array) -> Array:
        """D v, (..., size)."""
        along1, along2 = ((q * v).sum(-1)[..., None] for q in (self.q1, self.q2))
        return self.delta * (v - self.q2 * along2) + self.complement * (self.q1 * along1)


Derivative = TypeVar("Derivative")


@final
@dataclass(frozen=True, eq=False)
class ConePoint(Generic[Derivative]):
    """The projection onto K* at points w (..., size), and its derivative on demand.

    Attributes:
        projection: Pi_{K*}(w), (..., size).
        derive: computes the derivative of Pi_{K*} at w, reusing intermediate results.
    """

    projection: Array
    derive: Callable[[], Derivative]


class BlockKind(NamedTuple):
    """What the kernels must know of a block.

    Attributes:
        cone: name of the cone in the table of ``kernels``.
        size: number of rows.
        order: side length of a semidefinite block, else 0.
        rank_two: whether its derivative is a rank-two form.
        exponent: exponent of a power cone, else 0.
    """

    cone: str
    size: int
    order: int = 0
    rank_two: bool = False
    exponent: float = 0.0


class AbstractCone(ABC):
    """Blocks of one cone K and one size; leading axes are batch and block.

    Where Pi_{K*} is not differentiable, D is an element of its Bouligand subdifferential (a limit of derivatives). At
    w = 0 it is 0.

    Attributes:
        size: rows of one block.
    """

    size: int

    @property
    @abstractmethod
    def centre(self) -> NDArray[np.float64]:
        """A direction in the interior of K and K*, (size,); 0 for the zero cone."""

    @property
    @abstractmethod
    def recession_rows(self) -> NDArray[np.bool_]:
        """Mask (size,) of the unit vectors that are in K: increasing such a row of an element of K stays in K."""

    def kinds(self, blocks: int, *, rank_two: bool) -> tuple[BlockKind, ...] | None:
        """What the kernels must know of ``blocks`` consecutive blocks; None for a cone without kernels.

        Args:
            blocks: number of blocks.
            rank_two: whether their derivative is a rank-two form.
        """
        return None

    @abstractmethod
    def at(self, w: Array) -> ConePoint[Eigenbasis]:
        """The projection of w, (..., size), and the derivative there."""

    def project_dual(self, w: Array) -> Array:
        """Pi_{K*}(w), (..., size) -> (..., size)."""
        return self.at(w).projection

    def derivative(self, w: Array) -> Eigenbasis:
        """The derivative of Pi_{K*} at w, (..., size)."""
        return self.at(w).derive()

    def margin(self, w: Array) -> Array:
        """Strict complementarity margin: distance from w to where D is discontinuous, (..., size) -> (...).

        Exact if it is below 1e-3 norm(w); larger values may be lower bounds.
        """
        return self.derivative(w).margin()
