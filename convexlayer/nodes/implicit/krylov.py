"""Krylov methods for K u = v by products with K alone: conjugate gradients, MINRES and GMRES.

A batch runs in lock step; elements that have converged do not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch

from convexlayer.arguments import check_integer, check_number
from convexlayer.errors import ProblemError
from convexlayer.nodes.autodiff.derivatives import matvec
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, LinearSolve, Operator, relative_residual

__all__ = ["GMRES", "ConjugateGradients", "MinimalResidual"]

MIN_CYCLE_REDUCTION = 1e-3
"""Relative reduction of the residual by a GMRES cycle below which the restarts have stalled."""

ITERATIONS_PER_UNKNOWN = 10
"""Default limit of iterations, as a multiple of the number of unknowns; exact arithmetic needs one per unknown."""

DEFAULT_TOL = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Default relative residual by dtype."""

ORTHOGONALISATION_PASSES = 2
"""Passes of classical Gram-Schmidt: two give orthogonality to rounding ("twice is enough", Giraud et al. 2005)."""

BREAKDOWN_FACTOR = 10.0
"""Multiples of eps |K v| below which a new Krylov vector or pivot is zero."""


@final
@dataclass(frozen=True)
class ConjugateGradients(AbstractLinearSolver):
    """Conjugate gradients, for definite K of either sign: Hessians at a strict minimum or maximum.

    Attributes:
        tol: relative residual to reach; None for 1e-10 in float64, 1e-5 in float32.
        max_iter: limit of iterations; None for ten per unknown. A small limit gives an approximate derivative, whose
            residual is in the report.

    Reference: Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems, 1952.
    """

    tol: float | None = None
    max_iter: int | None = None

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ProblemError: ``tol`` or ``max_iter`` is negative.
        """
        _check_limits(self.tol, self.max_iter)

    def accurate(self) -> AbstractLinearSolver:
        """Return the solver with default tolerance and iteration limit."""
        return ConjugateGradients()

    def init(self, operator: Operator, *, symmetric: bool) -> Operator:
        """Check that K is symmetric."""
        return _require_symmetric(operator, symmetric, "ConjugateGradients")

    def solve(self, state: Operator, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """Iterate; an element stops where the curvature p'Kp changes sign."""
        tol = _tolerance(self.tol, rhs)
        u, r, p = torch.zeros_like(rhs), rhs, rhs
        rr = (r * r).sum(-1)
        goal = tol**2 * rr
        active = rr > goal
        sign = torch.zeros_like(rr)
        for _ in range(_iteration_limit(self.max_iter, rhs)):
            Kp = state.transposed_product(p)
            curvature = (p * Kp).sum(-1)
            sign = torch.where(sign == 0, torch.sign(curvature), sign)
            active = active & (curvature * sign > 0)
            if not active.any():
                break
            step = torch.where(active, rr / torch.where(active, curvature, 1.0), 0.0).unsqueeze(-1)
            u, r = u + step * p, r - step * Kp
            new = (r * r).sum(-1)
            p = torch.where(active.unsqueeze(-1), r + (new / torch.where(rr > 0, rr, 1.0)).unsqueeze(-1) * p, p)
            rr = new
            active = active & (rr > goal)
        return _linear_solve(state, u, rhs)


@final
@dataclass(frozen=True)
class MinimalResidual(AbstractLinearSolver):
    """MINRES, for symmetric K of any inertia: KKT matrices, saddle points; also for singular, consistent systems.

    Attributes:
        tol: relative residual to reach; None for 1e-10 in float64, 1e-5 in float32.
        max_iter: limit of iterations; None for ten per unknown.

    Reference: Paige and Saunders, Solution of sparse indefinite systems of linear equations, 1975.
    """

    tol: float | None = None
    max_iter: int | None = None

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ProblemError: ``tol`` or ``max_iter`` is negative.
        """
        _check_limits(self.tol, self.max_iter)

    def accurate(self) -> AbstractLinearSolver:
        """Return the solver with default tolerance and iteration limit."""
        return MinimalResidual()

    def init(self, operator: Operator, *, symmetric: bool) -> Operator:
        """Check that K is symmetric."""
        return _require_symmetric(operator, symmetric, "MinimalResidual")

    def solve(self, state: Operator, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """Lanczos process with vectors v, and QR factorisation of the tridiagonal matrix by rotations (cs, sn)."""
        tol = _tolerance(self.tol, rhs)
        first = torch.linalg.vector_norm(rhs, dim=-1)
        beta, old_beta = first, torch.ones_like(first)
        previous, new = torch.zeros_like(rhs), rhs  # beta times the last two Lanczos vectors
        cs, sn, dbar, epsilon = -torch.ones_like(first), torch.zeros_like(first), first * 0.0, first * 0.0
        left, w, w_before = first, torch.zeros_like(rhs), torch.zeros_like(rhs)
        u = torch.zeros_like(rhs)
        for _ in range(_iteration_limit(self.max_iter, rhs)):
            active = (left > tol * first) & (beta > 0)
            if not active.any():
                break
            scale = _nonzero(beta)
            v = new / scale.unsqueeze(-1)
            y = state.transposed_product(v) - (beta / old_beta).unsqueeze(-1) * previous
            alpha = (v * y).sum(-1)
            previous, new = new, y - alpha.unsqueeze(-1) * v
            old_beta, beta = scale, torch.linalg.vector_norm(new, dim=-1)
            last_epsilon, delta, gbar = epsilon, cs * dbar + sn * alpha, sn * dbar - cs * alpha
            epsilon, dbar = sn * beta, -cs * beta
            gamma = torch.hypot(gbar, beta)
            length = _nonzero(gamma)
            cs, sn = gbar / length, beta / length
            phi, left = cs * left, torch.where(active, sn.abs() * left, left)
            direction = v - last_epsilon.unsqueeze(-1) * w_before - delta.unsqueeze(-1) * w
            w_before, w = w, direction / length.unsqueeze(-1)
            u = u + torch.where(active & (gamma > 0), phi, 0.0).unsqueeze(-1) * w
        return _linear_solve(state, u, rhs)


@final
@dataclass(frozen=True)
class GMRES(AbstractLinearSolver):
    """Restarted GMRES, for any K, such as I - dA/dx of a fixed-point equation.

    u minimises |K u - v| over span {v, K v, K^2 v, ...}, with K' for transposed systems; ``restart`` vectors are
    stored. A singular, consistent system is solved if its null space and range meet in 0 only. That holds for
    I - dA/dx of every nonexpansive A, even if the fixed point is not unique: powers of dA/dx are bounded, and a Jordan
    block of eigenvalue 1 would make them grow. The solution then gives the derivative of the unique part. Where a
    system is inconsistent, or the restarts stall, the residual shows it.

    Attributes:
        tol: relative residual to reach; None for 1e-10 in float64, 1e-5 in float32.
        restart: dimension of the Krylov space, at least one, after which it is rebuilt from the residual.
        max_iter: limit of products with K in all cycles; None for ten per unknown.

    References: Saad and Schultz, GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear
    systems, 1986. Brown and Walker, GMRES on (nearly) singular systems, 1997.
    """

    tol: float | None = None
    restart: int = 50
    max_iter: int | None = None

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ProblemError: ``restart`` is below one, or ``tol`` or ``max_iter`` is negative.
        """
        check_integer("restart", self.restart, least=1)
        _check_limits(self.tol, self.max_iter)

    def accurate(self) -> AbstractLinearSolver:
        """Return the solver with default tolerance and iteration limit."""
        return GMRES(restart=self.restart)

    def init(self, operator: Operator, *, symmetric: bool) -> Operator:
        """Return the operator: there is nothing to prepare."""
        return operator

    def solve(self, state: Operator, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """Run cycles, each from the true residual; an element stops when a cycle does not reduce its residual."""
        multiply = state.transposed_product if transposed else state.product
        n = rhs.shape[-1]
        limit = _iteration_limit(self.max_iter, rhs)
        first = torch.linalg.vector_norm(rhs, dim=-1)
        goal = _tolerance(self.tol, rhs) * first
        u, r, size = 0.0 * rhs, rhs, first  # NaN where the right-hand side is not finite
        count = torch.zeros(len(rhs), dtype=torch.int64, device=rhs.device)
        active = (size > goal) & (count < limit)
        while active.any():
            step, steps = _cycle(multiply, r, goal, torch.where(active, limit - count, 0), min(self.restart, n))
            moved = u + step
            residual = rhs - multiply(moved)
            new = torch.linalg.vector_norm(residual, dim=-1)
            better = active & (new < size)  # false for NaN
            u, r = torch.where(better.unsqueeze(-1), moved, u), torch.where(better.unsqueeze(-1), residual, r)
            count = count + steps
            active = better & (new > goal) & (new < (1.0 - MIN_CYCLE_REDUCTION) * size) & (count < limit)
            size = torch.where(better, new, size)
        return LinearSolve(u, size / _nonzero(first), torch.full_like(size, torch.nan))


def _cycle(
    multiply: Callable[[torch.Tensor], torch.Tensor],
    r: torch.Tensor,
    goal: torch.Tensor,
    max_dimension: torch.Tensor,
    m: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimise |r - K step| over Krylov spaces, by Arnoldi vectors V and the factors Q H = R of K V = V H.

    Args:
        multiply: product with K.
        r: residuals, (batch, n).
        goal: residual norms to reach, (batch,).
        max_dimension: largest dimension per element, (batch,).
        m: largest dimension of all.

    Returns:
        The steps (batch, n), and the dimensions used (batch,).
    """
    batch, n = r.shape
    size = torch.linalg.vector_norm(r, dim=-1)
    V, R = r.new_zeros(batch, m + 1, n), r.new_zeros(batch, m, m)
    Q = torch.eye(m + 1, dtype=r.dtype, device=r.device).repeat(batch, 1, 1)
    V[:, 0] = r / _nonzero(size).unsqueeze(-1)
    rank, steps, norm = torch.zeros_like(max_dimension), torch.zeros_like(max_dimension), torch.zeros_like(size)
    active = max_dimension > 0
    for j in range(m):
        w = multiply(V[:, j])
        norm = torch.maximum(norm, torch.linalg.vector_norm(w, dim=-1))
        h = torch.zeros_like(R[:, : j + 1, 0])
        for _ in range(ORTHOGONALISATION_PASSES):
            part = matvec(V[:, : j + 1], w)
            w, h = w - matvec(V[:, : j + 1].mT, part), h + part
        length = torch.linalg.vector_norm(w, dim=-1)
        roundoff = BREAKDOWN_FACTOR * torch.finfo(r.dtype).eps * norm
        V[:, j + 1] = torch.where(length > roundoff, 1.0 / _nonzero(length), 0.0).unsqueeze(-1) * w
        R[:, : j + 1, j] = matvec(Q[:, : j + 1, : j + 1], h)
        pivot = torch.hypot(R[:, j, j], length)
        cs, sn = (R[:, j, j] / _nonzero(pivot)).unsqueeze(-1), (length / _nonzero(pivot)).unsqueeze(-1)
        R[:, j, j] = pivot
        Q[:, j], Q[:, j + 1] = cs * Q[:, j] + sn * Q[:, j + 1], cs * Q[:, j + 1] - sn * Q[:, j]
        # A zero pivot: K is singular on this space, and its last direction is left out.
        steps = steps + active
        rank = torch.where(active & (pivot > roundoff), j + 1, rank)
        left = size * Q[:, j + 1, 0].abs()
        active = active & (length > roundoff) & (pivot > roundoff) & (left > goal) & (j + 1 < max_dimension)
        if not active.any():
            break
    keep = torch.arange(m, device=r.device) < rank.unsqueeze(-1)
    square = torch.where(keep.unsqueeze(-1) & keep.unsqueeze(-2), R, torch.eye(m, dtype=r.dtype, device=r.device))
    side = torch.where(keep, size.unsqueeze(-1) * Q[:, :m, 0], 0.0).unsqueeze(-1)
    return matvec(V[:, :m].mT, torch.linalg.solve_triangular(square, side, upper=True).squeeze(-1)), steps


def _check_limits(tol: float | None, max_iter: int | None) -> None:
    if tol is not None:
        check_number("tol", tol, least=0)
    if max_iter is not None:
        check_integer("max_iter", max_iter, least=0)


def _require_symmetric(operator: Operator, symmetric: bool, name: str) -> Operator:
    if not symmetric:
        raise ProblemError(f"{name} needs a symmetric system, which that of this node is not: use GMRES(), or Dense()")
    return operator


def _tolerance(tol: float | None, like: torch.Tensor) -> float:
    return tol if tol is not None else DEFAULT_TOL[like.dtype]


def _iteration_limit(max_iter: int | None, rhs: torch.Tensor) -> int:
    return ITERATIONS_PER_UNKNOWN * rhs.shape[-1] if max_iter is None else max_iter


def _nonzero(value: torch.Tensor) -> torch.Tensor:
    return torch.where(value == 0, 1.0, value)


def _linear_solve(operator: Operator, u: torch.Tensor, rhs: torch.Tensor) -> LinearSolve:
    unknown = torch.full_like(u[:, 0], torch.nan)
    return LinearSolve(u, relative_residual(operator.transposed_product(u), rhs), unknown)
