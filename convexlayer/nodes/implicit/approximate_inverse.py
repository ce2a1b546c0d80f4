"""Approximate inverses of K = dR/dz: cheaper derivatives, whose error the linear residual in the report measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from convexlayer.errors import ProblemError
from convexlayer.nodes.implicit.dense_lu import Dense
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, LinearSolve, Operator, relative_residual

__all__ = ["Diagonal", "Neumann"]


@final
@dataclass(frozen=True)
class Neumann(AbstractLinearSolver):
    """K^-1 by the first terms of its series,  sum over j < terms of (I - K)^j.

    For a fixed point x = A(x, theta), I - K = dA/dx: this is the reverse mode of the unrolled algorithm with so many
    back-iterations and all derivatives taken at the solution, so that only the solution is kept (Ochs et al. 2016,
    section 4.3). It converges where the spectral radius of dA/dx is below one.

    Attributes:
        terms: the number of terms, at least one.
    """

    terms: int

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ProblemError: there is no term.
        """
        if self.terms < 1:
            raise ProblemError(f"a Neumann series has at least one term, got {self.terms}")

    def accurate(self) -> AbstractLinearSolver:
        """K itself."""
        return Dense()

    def init(self, operator: Operator, *, symmetric: bool) -> Operator:
        """Nothing to prepare."""
        return operator

    def solve(self, state: Operator, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """One product with K for each term, the last of which measures the residual."""
        product = state.transposed_product if transposed else state.product
        solution, term = rhs, rhs
        for _ in range(self.terms - 1):
            term = term - product(term)
            solution = solution + term
        return LinearSolve(solution, relative_residual(product(solution), rhs), torch.full_like(rhs[..., 0], torch.nan))


@final
class Diagonal(AbstractLinearSolver):
    """K^-1 by the inverse of K's diagonal, which takes n products with K but no n x n matrix."""

    def accurate(self) -> AbstractLinearSolver:
        """K itself."""
        return Dense()

    def init(self, operator: Operator, *, symmetric: bool) -> tuple[Operator, torch.Tensor]:
        """Read the diagonal off, column by column."""
        diagonal = torch.empty_like(operator.z)
        for index in range(diagonal.shape[-1]):
            unit = torch.zeros_like(diagonal)
            unit[..., index] = 1.0
            diagonal[..., index] = operator.transposed_product(unit)[..., index]
        return operator, diagonal

    def solve(self, state: tuple[Operator, torch.Tensor], rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """Divide; coordinates whose diagonal is zero get zero."""
        operator, diagonal = state
        solution = torch.where(diagonal == 0, 0.0, rhs / torch.where(diagonal == 0, 1.0, diagonal))
        product = operator.transposed_product(solution) if transposed else operator.product(solution)
        return LinearSolve(solution, relative_residual(product, rhs), torch.full_like(rhs[..., 0], torch.nan))
