"""Linear systems of the implicit function theorem by products with K alone: no matrix is formed.

All solvers run the whole batch in lock step; elements that have converged stand still.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch

from convexlayer.errors import ProblemError
from convexlayer.nodes.autodiff.derivatives import times
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, LinearSolve, Operator, relative_residual

__all__ = ["GMRES", "ConjugateGradients", "MinimalResidual"]

STALL = 1e-3
"""A cycle of GMRES that lessens the residual by a smaller share than this is the last: the next would be the same."""


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

    def accurate(self) -> AbstractLinearSolver:
        """As many iterations as it takes."""
        return ConjugateGradients()

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

    def accurate(self) -> AbstractLinearSolver:
        """As many iterations as it takes."""
        return MinimalResidual()

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


@final
@dataclass(frozen=True)
class GMRES(AbstractLinearSolver):
    """GMRES with restarts, for any K: fixed-point equations, whose I - dA/dx is not symmetric.

    u minimises |K u - v| over span {v, K v, K^2 v, ...}, K' in the place of K where the system is transposed. It keeps
    ``restart`` vectors of v's size. A singular, consistent system is solved too if no vector of its null space is in
    its range. That holds for I - dA/dx of every nonexpansive A, even where the fixed point is not unique: powers of
    dA/dx are bounded, and a Jordan block of its eigenvalue 1 would let them grow. What the solution then gives is the
    derivative of what is unique. Where a system is inconsistent, or the restarts stall, the residual tells.

    Attributes:
        tol: relative residual at the end; None for 1e-10 in float64, 1e-5 in float32.
        restart: dimension of the Krylov space, at least one, after which it is built anew from the residual.
        max_iter: products with K in all cycles; None for ten times the size.

    References: Saad and Schultz, GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear
    systems, 1986. Brown and Walker, GMRES on (nearly) singular systems, 1997.
    """

    tol: float | None = None
    restart: int = 50
    max_iter: int | None = None

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ProblemError: the Krylov space has no dimension.
        """
        if self.restart < 1:
            raise ProblemError(f"restart: expected a Krylov space of at least one dimension, got {self.restart}")

    def accurate(self) -> AbstractLinearSolver:
        """As many iterations as it takes."""
        return GMRES(restart=self.restart)

    def init(self, operator: Operator, *, symmetric: bool) -> Operator:
        """Nothing to prepare."""
        return operator

    def solve(self, state: Operator, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """Cycles, each from the true residual of the last; an element that a cycle brings no nearer stops."""
        multiply = state.transposed_product if transposed else state.product
        n = rhs.shape[-1]
        limit = 10 * n if self.max_iter is None else self.max_iter
        first = torch.linalg.vector_norm(rhs, dim=-1)
        goal = _tolerance(self.tol, rhs) * first
        u, r, size = 0.0 * rhs, rhs, first  # NaN where the right-hand side is not finite
        count = torch.zeros(len(rhs), dtype=torch.int64, device=rhs.device)
        going = (size > goal) & (count < limit)
        while going.any():
            step, steps = _cycle(multiply, r, goal, torch.where(going, limit - count, 0), min(self.restart, n))
            moved = u + step
            residual = rhs - multiply(moved)
            new = torch.linalg.vector_norm(residual, dim=-1)
            better = going & (new < size)  # false for NaN
            u, r = torch.where(better.unsqueeze(-1), moved, u), torch.where(better.unsqueeze(-1), residual, r)
            count = count + steps
            going = better & (new > goal) & (new < (1.0 - STALL) * size) & (count < limit)
            size = torch.where(better, new, size)
        return LinearSolve(u, size / _nonzero(first), torch.full_like(size, torch.nan))


def _cycle(
    multiply: Callable[[torch.Tensor], torch.Tensor], r: torch.Tensor, goal: torch.Tensor, room: torch.Tensor, m: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The steps (batch, n) that minimise |r - K step| over Krylov spaces, and their dimensions (batch,).

    Arnoldi's vectors V and the factors Q H = R of the Hessenberg matrix H of K V = V H.

    Args:
        multiply: the product with K.
        r: residuals, (batch, n).
        goal: residual norms to reach, (batch,).
        room: largest dimensions, (batch,).
        m: the largest of all.
    """
    batch, n = r.shape
    size = torch.linalg.vector_norm(r, dim=-1)
    V, R = r.new_zeros(batch, m + 1, n), r.new_zeros(batch, m, m)
    Q = torch.eye(m + 1, dtype=r.dtype, device=r.device).repeat(batch, 1, 1)
    V[:, 0] = r / _nonzero(size).unsqueeze(-1)
    kept, steps, norm = torch.zeros_like(room), torch.zeros_like(room), torch.zeros_like(size)
    going = room > 0
    for j in range(m):
        w = multiply(V[:, j])
        norm = torch.maximum(norm, torch.linalg.vector_norm(w, dim=-1))
        h = torch.zeros_like(R[:, : j + 1, 0])
        for _ in range(2):  # once does not make w orthogonal to rounding
            part = times(V[:, : j + 1], w)
            w, h = w - times(V[:, : j + 1].mT, part), h + part
        length = torch.linalg.vector_norm(w, dim=-1)
        rounding = 10.0 * torch.finfo(r.dtype).eps * norm
        V[:, j + 1] = torch.where(length > rounding, 1.0 / _nonzero(length), 0.0).unsqueeze(-1) * w
        R[:, : j + 1, j] = times(Q[:, : j + 1, : j + 1], h)
        pivot = torch.hypot(R[:, j, j], length)
        cs, sn = (R[:, j, j] / _nonzero(pivot)).unsqueeze(-1), (length / _nonzero(pivot)).unsqueeze(-1)
        R[:, j, j] = pivot
        Q[:, j], Q[:, j + 1] = cs * Q[:, j] + sn * Q[:, j + 1], cs * Q[:, j + 1] - sn * Q[:, j]
        # Where the pivot is zero K is singular on this space, and its last direction is left out.
        steps = steps + going
        kept = torch.where(going & (pivot > rounding), j + 1, kept)
        left = size * Q[:, j + 1, 0].abs()
        going = going & (length > rounding) & (pivot > rounding) & (left > goal) & (j + 1 < room)
        if not going.any():
            break
    keep = torch.arange(m, device=r.device) < kept.unsqueeze(-1)
    square = torch.where(keep.unsqueeze(-1) & keep.unsqueeze(-2), R, torch.eye(m, dtype=r.dtype, device=r.device))
    side = torch.where(keep, size.unsqueeze(-1) * Q[:, :m, 0], 0.0).unsqueeze(-1)
    return times(V[:, :m].mT, torch.linalg.solve_triangular(square, side, upper=True).squeeze(-1)), steps


def _symmetric(operator: Operator, symmetric: bool, name: str) -> Operator:
    if not symmetric:
        raise ProblemError(f"{name} needs a symmetric system, which that of this node is not: use GMRES(), or Dense()")
    return operator


def _tolerance(tol: float | None, like: torch.Tensor) -> float:
    return tol if tol is not None else (1e-10 if like.dtype == torch.float64 else 1e-5)


def _nonzero(value: torch.Tensor) -> torch.Tensor:
    return torch.where(value == 0, 1.0, value)


def _answer(operator: Operator, u: torch.Tensor, rhs: torch.Tensor) -> LinearSolve:
    unknown = torch.full_like(u[:, 0], torch.nan)
    return LinearSolve(u, relative_residual(operator.transposed_product(u), rhs), unknown)
