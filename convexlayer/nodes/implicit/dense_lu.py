"""Dense LU factorisation of an equilibrated K = dR/dz, with an estimate of its condition number."""

from __future__ import annotations

from typing import ClassVar, final

import torch

from convexlayer.nodes.autodiff.derivatives import matvec
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, LinearSolve, Operator

__all__ = ["Dense"]

RUIZ_PASSES = 1
"""Passes of Ruiz equilibration after the block scaling, which leaves little to do."""

MAX_INVERSE_SIZE = 32
"""Size up to which the condition number is computed from the inverse, above by Hager's estimate."""

HAGER_STEPS = 4
"""Steps of Hager's estimator; more rarely improve it (Higham, Accuracy and Stability, section 15.3)."""

SINGULAR_FACTOR = 10.0
"""K of size n is singular to working accuracy at a condition of 1 / (SINGULAR_FACTOR n eps)."""


@final
class Dense(AbstractLinearSolver):
    """LU factorisation with partial pivoting of the dense, equilibrated K; n products and n^2 numbers per element.

    Rows and columns are scaled by powers of two, so accuracy and condition number do not depend on the units of
    variables and equations.
    """

    direct: ClassVar[bool] = True

    def init(self, operator: Operator, *, symmetric: bool) -> _Factor:
        """Form and factor K."""
        return _Factor(operator.dense(), symmetric=symmetric, multipliers=operator.residual.multipliers)

    def solve(self, state: _Factor, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """Solve with the factor.

        Where K is singular, the solution is the minimum-norm least-squares solution of the scaled system. The residual
        is that of the worst row, relative to the terms of that row and of the rows it is coupled to.
        """
        return state.solve(rhs, transposed=transposed)


@final
class _Factor:
    """LU factor of M, where K = diag(1 / left) M diag(1 / right).

    Attributes:
        matrix: M, equilibrated, (batch, n, n).
        right: column scales: the solution is these times that of the scaled system.
        condition: estimated condition number of M in the 1-norm, (batch,).
        singular: mask of elements whose M is singular to working accuracy, (batch,).
    """

    def __init__(self, matrix: torch.Tensor, *, symmetric: bool, multipliers: int) -> None:
        self.matrix, self._left, self.right = _equilibrate(matrix, symmetric=symmetric, multipliers=multipliers)
        self._lu, self._pivots, _ = torch.linalg.lu_factor_ex(self.matrix)
        self.condition = self._condition_estimate()
        self.singular = ~(self.condition < 1.0 / (SINGULAR_FACTOR * matrix.shape[-1] * torch.finfo(matrix.dtype).eps))
        self._any_singular = bool(self.singular.any())

    def solve(self, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        left, right = (self.right, self._left) if transposed else (self._left, self.right)
        matrix = self.matrix.mT if transposed else self.matrix
        scaled = left * rhs
        solution = self._lu_solve(scaled, transposed=transposed)
        if self._any_singular:
            solution[self.singular] = _minimum_norm(matrix[self.singular], scaled[self.singular])
        size = matrix.abs()
        terms = matvec(size, solution.abs()) + scaled.abs()
        # A row that is zero up to rounding is measured relative to the rows that it is coupled to.
        terms = terms + matvec(size, terms)
        error = (matvec(matrix, solution) - scaled).abs() / torch.where(terms > 0, terms, 1.0)
        return LinearSolve(right * solution, error.amax(-1), self.condition)

    def _lu_solve(self, rhs: torch.Tensor, *, transposed: bool) -> torch.Tensor:
        return torch.linalg.lu_solve(self._lu, self._pivots, rhs.unsqueeze(-1), adjoint=transposed).squeeze(-1)

    def _condition_estimate(self) -> torch.Tensor:
        """|M|_1 |M^-1|_1; for large M the lower bound of Hager's method, seldom below a third of it."""
        n = self.matrix.shape[-1]
        norm = self.matrix.abs().sum(-2).amax(-1)
        if n <= MAX_INVERSE_SIZE:
            whole = torch.linalg.inv_ex(self.matrix)[0].abs().sum(-2).amax(-1)
            return (norm * whole).nan_to_num(torch.inf)
        x = torch.full_like(self.matrix[..., 0], 1.0 / n)
        inverse = torch.zeros_like(norm)
        for _ in range(HAGER_STEPS):
            y = self._lu_solve(x, transposed=False)
            inverse = torch.maximum(inverse, y.abs().sum(-1))
            z = self._lu_solve(torch.where(y >= 0, 1.0, -1.0).to(y.dtype), transposed=True)
            x = torch.nn.functional.one_hot(z.abs().argmax(-1), n).to(y.dtype)
        return torch.where(torch.isfinite(inverse), norm * inverse, torch.inf)


def _equilibrate(
    matrix: torch.Tensor, *, symmetric: bool, multipliers: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scale K to M = diag(left) K diag(right) with rows and columns of size about 1; scales are powers of two.

    An unsymmetric K is scaled by rows, then by columns. Of a symmetric one the variables are scaled by the diagonal of
    the Hessian and the multipliers by their constraints, followed by Ruiz equilibration; Ruiz alone would need many
    passes and leave a small Hessian beside large constraints unscaled.

    Returns:
        M, left and right.
    """
    if not symmetric:
        left = _power_of_two_reciprocal(matrix.abs().amax(-1))
        matrix = left.unsqueeze(-1) * matrix
        right = _power_of_two_reciprocal(matrix.abs().amax(-2))
        return matrix * right.unsqueeze(-2), left, right
    n = matrix.shape[-1] - multipliers
    sizes = matrix[..., :n, :n].abs()
    diagonal = sizes.diagonal(dim1=-2, dim2=-1)
    scale = _power_of_two_reciprocal(torch.where(diagonal > 0, diagonal, sizes.amax(-1)), root=True)
    if multipliers:
        row_sizes = (matrix[..., n:, :n].abs() * scale.unsqueeze(-2)).amax(-1)
        scale = torch.cat([scale, _power_of_two_reciprocal(row_sizes)], -1)
    matrix = scale.unsqueeze(-1) * matrix * scale.unsqueeze(-2)
    for _ in range(RUIZ_PASSES):
        update = _power_of_two_reciprocal(matrix.abs().amax(-1), root=True)
        matrix, scale = update.unsqueeze(-1) * matrix * update.unsqueeze(-2), scale * update
    return matrix, scale, scale


def _power_of_two_reciprocal(size: torch.Tensor, *, root: bool = False) -> torch.Tensor:
    """1 / size, or 1 / sqrt(size), rounded to a power of two; 1 where the size is zero."""
    logarithm = torch.log2(torch.where(size > 0, size, 1.0))
    return torch.exp2(torch.round(-0.5 * logarithm if root else -logarithm))


def _minimum_norm(matrix: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
    """Minimum-norm least-squares solution; NaN where the matrix is not finite."""
    finite = torch.isfinite(matrix).all(-1).all(-1)
    solution = torch.full_like(rhs, torch.nan)
    if finite.any():
        cutoff = SINGULAR_FACTOR * matrix.shape[-1] * torch.finfo(matrix.dtype).eps
        inverse = torch.linalg.pinv(matrix[finite], rtol=cutoff, hermitian=False)
        solution[finite] = matvec(inverse, rhs[finite])
    return solution
