"""Linear systems of the implicit function theorem by products with K alone: no matrix is formed.

Both solvers run the whole batch in lock step; elements that have converged stand still.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from convexlayer.errors import ProblemError
from convexlayer.nodes.linear import AbstractLinearSolver, LinearSolve, Operator, relative_residual

__all__ = ["ConjugateGradients", "MinimalResidual"]


@final
@dataclass(frozen=True)
class ConjugateGradients(AbstractLinearSolver):
    """For definite K of either sign: Hessians at a strict minimum or maximum.

    Attributes:
        tol: relative residual at the end; None for 1e-10 in float64, 1e-5 in float32.
        max_iter: iterations; None for ten times the size. Few of them give an approximate derivative, and the report
            gives its residual.
    """

    tol: float | None = None
    max_iter: int | None = None

    def init(self, operator: Operator, *, symmetric: bool) -> Operator:
        """Check that the method applies."""
        return _symmetric(operator, symmetric, "ConjugateGradients")

    def solve(self, state: Operator, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """Hestenes and Stiefel's recurrence; an element whose curvature changes sign stops where it is."""
        tol = _tolerance(self.tol, rhs)
        u, r, p = torch.zeros_like(rhs), rhs, rhs
        rr = (r * r).sum(-1)
        goal = tol**2 * rr
        going = rr > goal
        sign = torch.zeros_like(rr)
        for _ in range(10 * rhs.shape[-1] if self.max_iter is None else self.max_iter):
            Kp = state.transposed_product(p)
            curvature = (p * Kp).sum(-1)
            sign = torch.where(sign == 0, torch.sign(curvature), sign)
            going = going & (curvature * sign > 0)
            if not going.any():
                break
            step = torch.where(going, rr / torch.where(going, curvature, 1.0), 0.0).unsqueeze(-1)
            u, r = u + step * p, r - step * Kp
            new = (r * r).sum(-1)
            p = torch.where(going.unsqueeze(-1), r + (new / torch.where(rr > 0, rr, 1.0)).unsqueeze(-1) * p, p)
            rr = new
            going = going & (rr > goal)
        return _answer(state, u, rhs)


@final
@dataclass(frozen=True)
class MinimalResidual(AbstractLinearSolver):
    """MINRES, for symmetric K of any signs: KKT matrices, saddle points. Singular, consistent systems are solved too.

    Attributes:
        tol: relative residual at the end; None for 1e-10 in float64, 1e-5 in float32.
        max_iter: iterations; None for ten times the size.

    Reference: Paige and Saunders, Solution of sparse indefinite systems of linear equations, 1975.
    """

    tol: float | None = None
    max_iter: int | None = None

    def init(self, operator: Operator, *, symmetric: bool) -> Operator:
        """Check that the method applies."""
        return _symmetric(operator, symmetric, "MinimalResidual")

    def solve(self, state: Operator, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """Lanczos vectors v, and the QR factorisation of the tridiagonal matrix by rotations (cs, sn)."""
        tol = _tolerance(self.tol, rhs)
        first = torch.linalg.vector_norm(rhs, dim=-1)
        beta, old_beta = first, torch.ones_like(first)
        old, new = torch.zeros_like(rhs), rhs  # beta times the last two Lanczos vectors
        cs, sn, dbar, epsilon = -torch.ones_like(first), torch.zeros_like(first), first * 0.0, first * 0.0
        left, w, older_w = first, torch.zeros_like(rhs), torch.zeros_like(rhs)
        u = torch.zeros_like(rhs)
        for _ in range(10 * rhs.shape[-1] if self.max_iter is None else self.max_iter):
            going = (left > tol * first) & (beta > 0)
            if not going.any():
                break
            scale = _nonzero(beta)
            v = new / scale.unsqueeze(-1)
            y = state.transposed_product(v) - (beta / old_beta).unsqueeze(-1) * old
            alpha = (v * y).sum(-1)
            old, new = new, y - alpha.unsqueeze(-1) * v
            old_beta, beta = scale, torch.linalg.vector_norm(new, dim=-1)
            last_epsilon, delta, gbar = epsilon, cs * dbar + sn * alpha, sn * dbar - cs * alpha
            epsilon, dbar = sn * beta, -cs * beta
            gamma = torch.hypot(gbar, beta)
            length = _nonzero(gamma)
            cs, sn = gbar / length, beta / length
            phi, left = cs * left, torch.where(going, sn.abs() * left, left)
            direction = v - last_epsilon.unsqueeze(-1) * older_w - delta.unsqueeze(-1) * w
            older_w, w = w, direction / length.unsqueeze(-1)
            u = u + torch.where(going & (gamma > 0), phi, 0.0).unsqueeze(-1) * w
        return _answer(state, u, rhs)


def _symmetric(operator: Operator, symmetric: bool, name: str) -> Operator:
    if not symmetric:
        raise ProblemError(f"{name} needs a symmetric system, which that of this node is not: use Dense()")
    return operator


def _tolerance(tol: float | None, like: torch.Tensor) -> float:
    return tol if tol is not None else (1e-10 if like.dtype == torch.float64 else 1e-5)


def _nonzero(value: torch.Tensor) -> torch.Tensor:
    return torch.where(value == 0, 1.0, value)


def _answer(operator: Operator, u: torch.Tensor, rhs: torch.Tensor) -> LinearSolve:
    unknown = torch.full_like(u[:, 0], torch.nan)
    return LinearSolve(u, relative_residual(operator.transposed_product(u), rhs), unknown)
