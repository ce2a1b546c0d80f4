"""Dense LU factorisation of an equilibrated K = dR/dz, with an estimate of its condition number."""

from __future__ import annotations

from typing import ClassVar, final

import torch

from convexlayer.nodes.autodiff.derivatives import times
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, LinearSolve, Operator

__all__ = ["Dense"]


RUIZ = 1
"""Passes of Ruiz's scaling."""


INVERTED = 32
"""Up to this size the condition is computed from the inverse and not estimated."""


@final
class Dense(AbstractLinearSolver):
    """K formed, n products and n^2 numbers an element, equilibrated, and factored once: LU with partial pivoting.

    Rows and columns are scaled by powers of two, so that neither accuracy nor the condition depends on the units of
    variables and equations.
    """

    direct: ClassVar[bool] = True

    def init(self, operator: Operator, *, symmetric: bool) -> _Factor:
        """Form and factor K."""
        return _Factor(operator.dense(), symmetric=symmetric, multipliers=operator.residual.multipliers)

    def solve(self, state: _Factor, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """Solve with the factor; where K is singular, the least-squares solution of minimum norm of the scaled system.

        The residual is that of the worst row, relative to the terms of it and of the rows that it is coupled to.
        """
        return state.answer(rhs, transposed=transposed)


@final
class _Factor:
    """A factored K = diag(1 / left) M diag(1 / right), and the estimate of M's condition.

    Attributes:
        matrix: M, equilibrated, (batch, n, n).
        right: the scales of its columns: what is solved for is these times the solution of the scaled system.
        condition: of M in the 1-norm, (batch,).
        singular: where M is singular to working accuracy, (batch,).
    """

    def __init__(self, matrix: torch.Tensor, *, symmetric: bool, multipliers: int) -> None:
        self.matrix, self._left, self.right = _equilibrated(matrix, symmetric=symmetric, multipliers=multipliers)
        self._lu, self._pivots, _ = torch.linalg.lu_factor_ex(self.matrix)
        self.condition = self._estimate()
        self.singular = ~(self.condition < 1.0 / (10.0 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps))
        self._any_singular = bool(self.singular.any())

    def answer(self, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        left, right = (self.right, self._left) if transposed else (self._left, self.right)
        matrix = self.matrix.mT if transposed else self.matrix
        scaled = left * rhs
        solution = self._solved(scaled, transposed=transposed)
        if self._any_singular:
            solution[self.singular] = _minimum_norm(matrix[self.singular], scaled[self.singular])
        size = matrix.abs()
        terms = times(size, solution.abs()) + scaled.abs()
        # A row of zeros but for rounding is measured by the rows that it is coupled to.
        terms = terms + times(size, terms)
        error = (times(matrix, solution) - scaled).abs() / torch.where(terms > 0, terms, 1.0)
        return LinearSolve(right * solution, error.amax(-1), self.condition)

    def _solved(self, rhs: torch.Tensor, *, transposed: bool) -> torch.Tensor:
        return torch.linalg.lu_solve(self._lu, self._pivots, rhs.unsqueeze(-1), adjoint=transposed).squeeze(-1)

    def _estimate(self) -> torch.Tensor:
        """|M|_1 |M^-1|_1; of large ones by Hager's method, a lower bound, seldom below a third of it."""
        n = self.matrix.shape[-1]
        norm = self.matrix.abs().sum(-2).amax(-1)
        if n <= INVERTED:
            whole = torch.linalg.inv_ex(self.matrix)[0].abs().sum(-2).amax(-1)
            return (norm * whole).nan_to_num(torch.inf)
        x = torch.full_like(self.matrix[..., 0], 1.0 / n)
        inverse = torch.zeros_like(norm)
        for _ in range(4):
            y = self._solved(x, transposed=False)
            inverse = torch.maximum(inverse, y.abs().sum(-1))
            z = self._solved(torch.where(y >= 0, 1.0, -1.0).to(y.dtype), transposed=True)
            x = torch.nn.functional.one_hot(z.abs().argmax(-1), n).to(y.dtype)
        return torch.where(torch.isfinite(inverse), norm * inverse, torch.inf)


def _equilibrated(
    matrix: torch.Tensor, *, symmetric: bool, multipliers: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(M, left, right) with M = diag(left) K diag(right) of rows and columns about 1; scales are powers of two.

    Without symmetry rows are scaled, then columns. With it variables are scaled by the diagonal of the Hessian and
    multipliers by their constraints, then all by Ruiz's method, which alone would need many passes, and would leave a
    small Hessian beside large constraints as it is.
    """
    if not symmetric:
        left = _reciprocal(matrix.abs().amax(-1))
        matrix = left.unsqueeze(-1) * matrix
        right = _reciprocal(matrix.abs().amax(-2))
        return matrix * right.unsqueeze(-2), left, right
    n = matrix.shape[-1] - multipliers
    sizes = matrix[..., :n, :n].abs()
    diagonal = sizes.diagonal(dim1=-2, dim2=-1)
    scale = _reciprocal(torch.where(diagonal > 0, diagonal, sizes.amax(-1)), root=True)
    if multipliers:
        reach = (matrix[..., n:, :n].abs() * scale.unsqueeze(-2)).amax(-1)
        scale = torch.cat([scale, _reciprocal(reach)], -1)
    matrix = scale.unsqueeze(-1) * matrix * scale.unsqueeze(-2)
    for _ in range(RUIZ):
        more = _reciprocal(matrix.abs().amax(-1), root=True)
        matrix, scale = more.unsqueeze(-1) * matrix * more.unsqueeze(-2), scale * more
    return matrix, scale, scale


def _reciprocal(size: torch.Tensor, *, root: bool = False) -> torch.Tensor:
    """1 / size, or 1 / sqrt(size), to the nearest power of two; 1 where the size is zero."""
    logarithm = torch.log2(torch.where(size > 0, size, 1.0))
    return torch.exp2(torch.round(-0.5 * logarithm if root else -logarithm))


def _minimum_norm(matrix: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
    """The least-squares solution of minimum norm; NaN where K is not finite."""
    finite = torch.isfinite(matrix).all(-1).all(-1)
    solution = torch.full_like(rhs, torch.nan)
    if finite.any():
        cutoff = 10.0 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps
        inverse = torch.linalg.pinv(matrix[finite], rtol=cutoff, hermitian=False)
        solution[finite] = times(inverse, rhs[finite])
    return solution
