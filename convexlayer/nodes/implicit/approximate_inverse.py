"""Approximate inverses of K = dR/dz: cheaper derivatives, whose error shows as the linear residual in the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from convexlayer.arguments import check_integer
from convexlayer.nodes.implicit.dense_lu import Dense
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, LinearSolve, Operator, relative_residual

__all__ = ["Diagonal", "Neumann"]


@final
@dataclass(frozen=True)
class Neumann(AbstractLinearSolver):
    """Truncated Neumann series  K^-1 ~ sum over j < terms of (I - K)^j.

    For a fixed point x = A(x, theta), I - K = dA/dx: this is reverse mode through ``terms`` steps of the algorithm, all
    at the solution, so that no iterate is stored (Ochs et al. 2016, section 4.3). It converges if the spectral radius
    of dA/dx is below one.

    Attributes:
        terms: number of terms, at least one.
    """

    terms: int

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ProblemError: ``terms`` is below one.
        """
        check_integer("terms", self.terms, least=1)

    def accurate(self) -> AbstractLinearSolver:
        """``Dense()``, which inverts K exactly."""
        return Dense()

    def init(self, operator: Operator, *, symmetric: bool) -> Operator:
        """Return the operator: there is nothing to prepare."""
        return operator

    def solve(self, state: Operator, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """Sum the series by one product with K per term; the last product gives the residual."""
        product = state.transposed_product if transposed else state.product
        solution, term = rhs, rhs
        for _ in range(self.terms - 1):
            term = term - product(term)
            solution = solution + term
        return LinearSolve(solution, relative_residual(product(solution), rhs), torch.full_like(rhs[..., 0], torch.nan))


@final
class Diagonal(AbstractLinearSolver):
    """Inverse of the diagonal of K, by n products with K and without an n x n matrix."""

    def accurate(self) -> AbstractLinearSolver:
        """``Dense()``, which inverts K exactly."""
        return Dense()

    def init(self, operator: Operator, *, symmetric: bool) -> tuple[Operator, torch.Tensor]:
        """Compute the diagonal by products with unit vectors."""
        diagonal = torch.empty_like(operator.z)
        for index in range(diagonal.shape[-1]):
            unit = torch.zeros_like(diagonal)
            unit[..., index] = 1.0
            diagonal[..., index] = operator.transposed_product(unit)[..., index]
        return operator, diagonal

    def solve(self, state: tuple[Operator, torch.Tensor], rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """Divide by the diagonal; components with a zero on the diagonal are 0."""
        operator, diagonal = state
        solution = torch.where(diagonal == 0, 0.0, rhs / torch.where(diagonal == 0, 1.0, diagonal))
        product = operator.transposed_product(solution) if transposed else operator.product(solution)
        return LinearSolve(solution, relative_residual(product, rhs), torch.full_like(rhs[..., 0], torch.nan))
