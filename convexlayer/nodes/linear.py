"""Linear systems of the implicit function theorem: K u = v with K = dR/dz, dense or by products with K alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch

from convexlayer.nodes.batch import Dims, Tensors
from convexlayer.nodes.calculus import product, transposed_product

__all__ = ["AbstractLinearSolver", "Dense", "LinearSolve", "Operator"]

Residual = Callable[..., torch.Tensor]
"""(z, *theta) -> R of one element; z and R have shape (n,)."""


@final
class Operator:
    """K = dR/dz at one point of each element, known by its products.

    Args:
        residual: R of one element.
        dims: batch axes of theta.
        z: the points, (batch, n).
        theta: the parameters.
    """

    def __init__(self, residual: Residual, dims: Dims, z: torch.Tensor, theta: Tensors) -> None:
        self._residual = torch.func.vmap(residual, in_dims=(0, *dims))
        self._one, self.dims = residual, dims
        self.z, self.theta = z, theta

    def value(self) -> torch.Tensor:
        """R at the points, (batch, n)."""
        return self._of(self.z)

    def transposed_product(self, u: torch.Tensor) -> torch.Tensor:
        """K'u, (batch, n)."""
        return transposed_product(self._of, self.z, u)

    def product(self, u: torch.Tensor) -> torch.Tensor:
        """K u, (batch, n)."""
        return product(self._of, self.z, u)

    def _of(self, z: torch.Tensor) -> torch.Tensor:
        return self._residual(z, *self.theta)

    def at(self, z: torch.Tensor) -> Operator:
        """The operator at other points with the same parameters."""
        return Operator(self._one, self.dims, z, self.theta)

    def dense(self) -> torch.Tensor:
        """K, (batch, n, n)."""
        jacobian = torch.func.jacrev(self._one, argnums=0)
        return torch.func.vmap(jacobian, in_dims=(0, *self.dims))(self.z, *self.theta)


@final
@dataclass(frozen=True)
class LinearSolve:
    """The solution of one system for each element.

    Attributes:
        solution: (batch, n).
        residual: relative residual |K u - v| / |v|, (batch,).
        condition: estimate of the condition number of K in the 1-norm, (batch,); NaN where the solver has none.
    """

    solution: torch.Tensor
    residual: torch.Tensor
    condition: torch.Tensor


class AbstractLinearSolver(ABC):
    """How K u = v is solved: ``init`` does what does not need the right-hand side, ``solve`` the rest."""

    @abstractmethod
    def init(self, operator: Operator, *, symmetric: bool) -> Any:
        """Prepare for one operator."""

    @abstractmethod
    def solve(self, state: Any, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """u with K u = rhs, or K'u = rhs; rhs is (batch, n)."""


@final
class Dense(AbstractLinearSolver):
    """K formed, n products and n^2 numbers an element, and factored once: LU with partial pivoting."""

    def init(self, operator: Operator, *, symmetric: bool) -> _Factor:
        """Form and factor K."""
        matrix = operator.dense()
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        return _Factor(matrix, lu, pivots)

    def solve(self, state: _Factor, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """Solve with the factor; where K is singular, the least-squares solution of minimum norm."""
        solution = state.solve(rhs, transposed=transposed)
        matrix = state.matrix.mT if transposed else state.matrix
        singular = ~(state.condition < 1.0 / (10.0 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps))
        if singular.any():
            solution[singular] = _minimum_norm(matrix[singular], rhs[singular])
        return LinearSolve(solution, relative_residual(_times(matrix, solution), rhs), state.condition)


class _Factor:
    """A factored K and the estimate of its condition."""

    def __init__(self, matrix: torch.Tensor, lu: torch.Tensor, pivots: torch.Tensor) -> None:
        self.matrix, self._lu, self._pivots = matrix, lu, pivots
        self.condition = self._estimate()

    def solve(self, rhs: torch.Tensor, *, transposed: bool) -> torch.Tensor:
        return torch.linalg.lu_solve(self._lu, self._pivots, rhs.unsqueeze(-1), adjoint=transposed).squeeze(-1)

    def _estimate(self) -> torch.Tensor:
        """|K|_1 |K^-1|_1 by Hager's method: a lower bound, seldom below a third of it; infinite for a zero pivot."""
        n = self.matrix.shape[-1]
        norm = self.matrix.abs().sum(-2).amax(-1)
        x = torch.full_like(self.matrix[..., 0], 1.0 / n)
        inverse = torch.zeros_like(norm)
        for _ in range(4):
            y = self.solve(x, transposed=False)
            inverse = torch.maximum(inverse, y.abs().sum(-1))
            z = self.solve(torch.where(y >= 0, 1.0, -1.0).to(y.dtype), transposed=True)
            x = torch.nn.functional.one_hot(z.abs().argmax(-1), n).to(y.dtype)
        return torch.where(torch.isfinite(inverse), norm * inverse, torch.inf)


def _minimum_norm(matrix: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
    """The least-squares solution of minimum norm; NaN where K is not finite."""
    finite = torch.isfinite(matrix).all(-1).all(-1)
    solution = torch.full_like(rhs, torch.nan)
    if finite.any():
        cutoff = 10.0 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps
        inverse = torch.linalg.pinv(matrix[finite], rtol=cutoff, hermitian=False)
        solution[finite] = _times(inverse, rhs[finite])
    return solution


def relative_residual(product: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
    """|K u - v| / |v| of each element, 0 where v is 0."""
    size = torch.linalg.vector_norm(rhs, dim=-1)
    return torch.linalg.vector_norm(product - rhs, dim=-1) / torch.where(size > 0, size, 1.0)


def _times(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
