"""A primal-dual interior-point method for smooth lower problems, a whole batch in lock step.

With slacks g + s = 0 and the barrier parameter mu, a step solves

    [ L_YY + G'(mu/s)G + delta I    A' ] [ dy   ]
    [ A                             0  ] [ dlam ]

where delta is the smallest of a few shifts that make the reduced Hessian positive definite, so that dy descends on the
merit function f - mu sum log s + nu (|h|_1 + |g + s|_1) also where f is not convex. Without inequalities it is Newton's
method with a line search; elements that have converged leave the batch.

Reference: Nocedal and Wright, Numerical Optimization, 2006, chapter 19.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch

from convexlayer.nodes.batch import Dims, Tensors
from convexlayer.nodes.forward import AbstractForwardSolver, Iterate, take
from convexlayer.nodes.nonlinear import NonlinearProgram, Point, Quantities

__all__ = ["InteriorPoint"]

ARMIJO = 1e-4
HALVINGS = 40
SHIFTS = 24
FIRST_BARRIER = 0.1
SMALLEST_BARRIER = 1e-14


@final
@dataclass(frozen=True)
class InteriorPoint(AbstractForwardSolver):
    """The node's own solver; finds a local minimum near the start.

    Attributes:
        tol: largest entry of the optimality conditions at the end, relative to 1 + |f_Y|; None for eps^(2/3) of the
            dtype, 4e-11 in float64.
        max_iter: iterations.
    """

    tol: float | None = None
    max_iter: int = 200

    def solve(
        self, program: NonlinearProgram, start: torch.Tensor, dims: Dims, theta: Tensors, *, p: int, m: int, mu: float
    ) -> Iterate:
        """Solve; elements that do not converge keep their last iterate."""
        tol = torch.finfo(start.dtype).eps ** (2 / 3) if self.tol is None else self.tol
        state = _State.at(program, start, dims, theta, p, m, mu)
        result = state
        count = torch.zeros(len(start), dtype=torch.int64, device=start.device)
        rows = torch.arange(len(start), device=start.device)  # the elements that are still at work
        for _ in range(self.max_iter):
            here = take(dims, theta, rows)
            found = program.quantities(dims, state.point, here)
            done = state.error(found, mu) <= tol * (1.0 + found.slope.abs().amax(-1))
            done |= ~torch.isfinite(found.f) | state.stuck
            if done.any():
                result = result.put(rows, state)
                keep = torch.nonzero(~done).squeeze(-1)
                rows, state = rows[keep], state.rows(keep)
                if not len(rows):
                    break
                here = take(dims, theta, rows)
                found = Quantities(**{name: value[keep] for name, value in vars(found).items()})
            count[rows] += 1
            state = state.lowered(found)
            state = _step(program, state, found, dims, here)
        return Iterate(result.put(rows, state).point, count)


@final
@dataclass(frozen=True)
class _State:
    """The iterates of some elements.

    Attributes:
        point: primal and dual variables.
        s: slacks, (batch, m), positive.
        barrier: barrier parameters, (batch,).
        penalty: weights nu of the merit function, (batch,).
        stuck: elements whose last step led nowhere, (batch,).
        last_barrier: the barrier parameter to end with.
    """

    point: Point
    s: torch.Tensor
    barrier: torch.Tensor
    penalty: torch.Tensor
    stuck: torch.Tensor
    last_barrier: float

    @staticmethod
    def at(
        program: NonlinearProgram, y: torch.Tensor, dims: Dims, theta: Tensors, p: int, m: int, target: float
    ) -> _State:
        _, _, g = program.values(dims, y, theta)
        barrier = torch.full_like(y[:, 0], max(FIRST_BARRIER, target) if m else target)
        s = torch.maximum(-g, 0.01 * g.abs().clamp(min=1.0))
        guess = program.multipliers(dims, y, theta, p=p, m=0) if p else Point(y, y.new_zeros(len(y), 0), g)
        # Huge multipliers, of almost dependent constraints, are a worse start than none.
        lam = torch.where(guess.lam.abs().amax(-1, keepdim=True) < 1e3, guess.lam, 0.0) if p else guess.lam
        point = Point(y, lam, barrier.unsqueeze(-1) / s)
        stuck = torch.zeros_like(barrier, dtype=torch.bool)
        return _State(
            point, s, barrier, torch.ones_like(barrier), stuck, max(target, SMALLEST_BARRIER) if m else target
        )

    def rows(self, index: torch.Tensor) -> _State:
        point = Point(self.point.y[index], self.point.lam[index], self.point.mu[index])
        return replace(
            self,
            point=point,
            s=self.s[index],
            barrier=self.barrier[index],
            penalty=self.penalty[index],
            stuck=self.stuck[index],
        )

    def put(self, index: torch.Tensor, other: _State) -> _State:
        """A copy with the other's values in these rows."""

        def at(mine: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            return mine.index_copy(0, index, new)

        mine, new = self.point, other.point
        point = Point(at(mine.y, new.y), at(mine.lam, new.lam), at(mine.mu, new.mu))
        return replace(
            self,
            point=point,
            s=at(self.s, other.s),
            barrier=at(self.barrier, other.barrier),
            penalty=at(self.penalty, other.penalty),
        )

    def error(self, found: Quantities, target: torch.Tensor | float) -> torch.Tensor:
        """The largest violation of the perturbed optimality conditions, (batch,)."""
        target = torch.as_tensor(target, dtype=self.s.dtype, device=self.s.device)
        complementarity = self.s * self.point.mu - (target.unsqueeze(-1) if target.ndim else target)
        parts = [_lagrangian_slope(self.point, found), found.h, found.g + self.s, complementarity]
        return torch.cat(parts, dim=-1).abs().amax(-1)

    def lowered(self, found: Quantities) -> _State:
        """With a smaller barrier where the conditions hold well for this one."""
        if not found.g.shape[-1]:
            return self
        good = self.error(found, self.barrier) <= 10.0 * self.barrier
        smaller = torch.minimum(0.2 * self.barrier, self.barrier**1.5).clamp(min=self.last_barrier)
        return replace(self, barrier=torch.where(good, torch.minimum(smaller, self.barrier), self.barrier))


def _lagrangian_slope(point: Point, found: Quantities) -> torch.Tensor:
    return found.slope + _back(found.A, point.lam) + _back(found.G, point.mu)


def _back(matrix: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (matrix.mT @ weights.unsqueeze(-1)).squeeze(-1)


def _step(program: NonlinearProgram, state: _State, found: Quantities, dims: Dims, theta: Tensors) -> _State:
    point, s, barrier = state.point, state.s, state.barrier.unsqueeze(-1)
    dy, lam = _direction(state, found)
    ratio = point.mu / s
    ds = -(found.g + s) - (found.G @ dy.unsqueeze(-1)).squeeze(-1)
    dmu = barrier / s - point.mu - ratio * ds
    longest = _longest(s, ds)
    mu = point.mu + _longest(point.mu, dmu).unsqueeze(-1) * dmu
    largest = torch.cat([lam, point.mu + dmu], dim=-1).abs()
    needed = 2.0 * largest.amax(-1) if largest.shape[-1] else torch.zeros_like(longest)
    # Powell's rule: a weight that a bad start asked for does not stay.
    penalty = torch.maximum(needed, 0.5 * (state.penalty + needed))
    violation = found.h.abs().sum(-1) + (found.g + s).abs().sum(-1)
    fall = (found.slope * dy).sum(-1) - (barrier * ds / s).sum(-1) - penalty * violation
    here = found.f - (barrier * torch.log(s)).sum(-1) + penalty * violation
    slack = 10.0 * torch.finfo(here.dtype).eps * here.abs()  # what rounding leaves of the last steps' descent
    size, accepted = longest.clone(), torch.zeros_like(longest, dtype=torch.bool)
    y, new_s = point.y, s
    bend = torch.zeros_like(dy)
    for number in range(HALVINGS):
        trial_y = point.y + size.unsqueeze(-1) * dy + bend
        trial_s = s + size.unsqueeze(-1) * ds
        f, h, g = program.values(dims, trial_y, theta)
        merit = f - (barrier * torch.log(trial_s)).sum(-1)
        merit = merit + penalty * (h.abs().sum(-1) + (g + trial_s).abs().sum(-1))
        good = ~accepted & (merit <= here + ARMIJO * size * fall.clamp(max=0.0) + slack)
        y = torch.where(good.unsqueeze(-1), trial_y, y)
        new_s = torch.where(good.unsqueeze(-1), trial_s, new_s)
        accepted |= good
        if accepted.all():
            break
        if number == 0 and h.shape[-1]:
            # Second-order correction: the whole step again, bent back to curved equalities, before it is shortened.
            bend = -(torch.linalg.pinv(found.A) @ h.unsqueeze(-1)).squeeze(-1)
            continue
        bend = torch.zeros_like(dy)
        size = torch.where(accepted, size, 0.5 * size)
    # Where a step changes nothing and the barrier is at its end, no later step will.
    moved = torch.cat([y - point.y, new_s - s], -1).abs().amax(-1)
    still = moved <= 4.0 * torch.finfo(moved.dtype).eps * (1.0 + y.abs().amax(-1))
    stuck = ~accepted | (still & (state.barrier <= state.last_barrier))
    # The multipliers of equalities follow from the step; those of inequalities stay within reach of barrier / s.
    lam = torch.where(accepted.unsqueeze(-1), point.lam + size.unsqueeze(-1) * (lam - point.lam), point.lam)
    mu = torch.minimum(torch.maximum(mu, barrier / (1e10 * new_s)), 1e10 * barrier / new_s)
    return _State(Point(y, lam, mu), new_s, state.barrier, penalty, stuck, state.last_barrier)


def _direction(state: _State, found: Quantities) -> tuple[torch.Tensor, torch.Tensor]:
    """dy and the new multipliers of the equalities."""
    point, s, barrier = state.point, state.s, state.barrier.unsqueeze(-1)
    ratio = point.mu / s
    n, p = found.slope.shape[-1], found.h.shape[-1]
    matrix = found.hessian + found.G.mT @ (ratio.unsqueeze(-1) * found.G)
    matrix = matrix + torch.diag_embed(_shift(found.hessian, matrix, found.A).unsqueeze(-1).expand(-1, n))
    rhs = found.slope + _back(found.G, barrier / s + ratio * (found.g + s))
    if not p:
        return -torch.linalg.lu_solve(*torch.linalg.lu_factor_ex(matrix)[:2], rhs.unsqueeze(-1)).squeeze(-1), point.lam
    # A little of -I in the corner keeps the factor finite where constraints are dependent.
    corner = -torch.finfo(rhs.dtype).eps * torch.eye(p, dtype=rhs.dtype, device=rhs.device).expand(len(rhs), p, p)
    system = torch.cat([torch.cat([matrix, found.A.mT], -1), torch.cat([found.A, corner], -1)], -2)
    both = torch.cat([-rhs, -found.h], -1).unsqueeze(-1)
    solution = torch.linalg.lu_solve(*torch.linalg.lu_factor_ex(system)[:2], both).squeeze(-1)
    return solution[:, :n], solution[:, n:]


def _shift(hessian: torch.Tensor, matrix: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """delta (batch,) with matrix + delta I positive definite on the null space of A, 0 where it is so already.

    Positive definite with a large multiple of A'A added is the same, and Cholesky tells. Shifts are measured by the
    Hessian, for the barrier's part of the matrix may be larger by many orders.
    """
    scale = hessian.abs().sum(-1).amax(-1)
    size = A.square().sum((-1, -2))
    weight = torch.where(size > 0, 1e3 * (1.0 + scale) / torch.where(size > 0, size, 1.0), 0.0)
    whole = matrix + weight.unsqueeze(-1).unsqueeze(-1) * (A.mT @ A)
    eps, n = torch.finfo(scale.dtype).eps, matrix.shape[-1]
    rounding, floor = 10.0 * n * eps * scale, eps**0.75 * (1.0 + scale)
    delta = torch.zeros_like(scale)
    eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    for number in range(SHIFTS):
        bad = torch.linalg.cholesky_ex(whole + (delta - rounding).unsqueeze(-1).unsqueeze(-1) * eye)[1] != 0
        if not bad.any():
            break
        delta = torch.where(bad, torch.maximum(1e-4 * scale, floor) * 4.0**number, delta)
    return delta


def _longest(value: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """The longest step in (0, 1] that keeps 0.5 % of positive values, (batch,)."""
    if not value.shape[-1]:
        return torch.ones_like(value.sum(-1))
    limit = torch.where(step < 0, -0.995 * value / torch.where(step < 0, step, -1.0), torch.inf)
    return limit.amin(-1).clamp(max=1.0)
