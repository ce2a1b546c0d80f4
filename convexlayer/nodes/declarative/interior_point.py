"""A primal-dual interior-point method for smooth lower problems, a whole batch in lock step.

With slacks g + s = 0 and the barrier parameter mu, a step solves

    [ L_YY + G'(mu/s)G + delta I    A' ] [ dy   ]
    [ A                             0  ] [ dlam ]

where delta is the smallest of a few shifts that make the reduced Hessian positive definite, so that dy descends on the
merit function f - mu sum log s + nu'(|h|, |g + s|) also where f is not convex. Without inequalities it is Newton's
method with a line search; elements that have converged leave the batch.

All of it works in units of the problem's own: variables are scaled by the curvature of f at the start, f by the
decrease that a Newton step promises there, and constraints by their gradients. Then 1 is a large step, a large slope
and a large violation, whatever the units of the functions.

Reference: Nocedal and Wright, Numerical Optimization, 2006, chapter 19.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch

from convexlayer.nodes.autodiff.batch import Dims, Tensors, take
from convexlayer.nodes.autodiff.derivatives import times
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.nonlinear_program import (
    Iterate,
    NonlinearProgram,
    Point,
    Quantities,
    Recorded,
    pseudo_inverse,
)
from convexlayer.nodes.declarative.problem_scaling import Scales
from convexlayer.nodes.declarative.ray_search import steepest, towards_feasibility

__all__ = ["InteriorPoint"]

ARMIJO = 1e-4
HALVINGS = 40
SHIFTS = 24
FIRST_BARRIER = 0.1
SMALLEST_BARRIER = 1e-14
PATIENCE = 20
VIOLATED = 1e-6


@final
@dataclass(frozen=True)
class InteriorPoint(AbstractForwardSolver):
    """The node's own solver; finds a local minimum near the start.

    Attributes:
        tol: largest entry of the optimality conditions at the end, in the problem's own units (see the module) and
            relative to 1 + |f_Y|; None for eps^(2/3) of the dtype, 4e-11 in float64.
        max_iter: iterations.
    """

    restarts: ClassVar[bool] = True

    tol: float | None = None
    max_iter: int = 200

    def solve(
        self, program: NonlinearProgram, start: torch.Tensor, dims: Dims, theta: Tensors, *, p: int, m: int, mu: float
    ) -> Iterate:
        """Solve; elements that do not converge keep their last iterate."""
        recorded = program.recorded(dims, start, theta)
        lam, found = program.stationary(recorded, p)
        if p:
            moved = towards_feasibility(program, start, found, dims, theta)
            if moved is not None:
                start = moved
                lam, found = program.stationary(program.recorded(dims, start, theta), p)
        moved = steepest(program, Point(start, lam, start.new_zeros(len(start), m)), found, dims, theta)
        if moved is not None:
            start = moved
            lam, found = program.stationary(program.recorded(dims, start, theta), p)
        guess = Point(start, lam, start.new_zeros(len(start), m))
        scales = Scales.at(guess, found)
        dims, theta = (0, 0, 0, 0, *dims), (*scales.tensors, *theta)
        run = _Run(scales.scaled(program), dims, theta, mu / scales.f, self)
        run.go(scales.inward(guess), scales.shrunk(found))
        known = None if m or run.known is None else scales.grown(*run.known)
        return Iterate(scales.outward(run.point), run.count, known)


@final
class _Run:
    """One solve in scaled units.

    Attributes:
        count: iterations, (batch,).
        known: the value of (L_Y, h) at the end and its derivative, where every element has come to one.
    """

    def __init__(
        self, program: NonlinearProgram, dims: Dims, theta: Tensors, target: torch.Tensor, options: InteriorPoint
    ) -> None:
        self._program, self._dims, self._theta, self._target, self._options = program, dims, theta, target, options
        self.count = torch.zeros(target.shape, dtype=torch.int64, device=target.device)
        self.known: tuple[torch.Tensor, torch.Tensor] | None = None

    def go(self, start: Point, found: Quantities) -> None:
        """Iterate from the start, of which everything is known already."""
        options, y = self._options, start.y
        tol = torch.finfo(y.dtype).eps ** (2 / 3) if options.tol is None else options.tol
        state = _State.at(start, found, self._target)
        self._result = state
        rows = torch.arange(len(y), device=y.device)  # the elements that are still at work
        here = self._theta
        recorded: Recorded | None = None
        for number in range(options.max_iter):
            if number:
                recorded = self._program.recorded(self._dims, state.point.y, here) if recorded is None else recorded
                found = recorded.quantities(state.point.lam, state.point.mu)
            done = state.error(found, state.target) <= tol * (1.0 + found.slope.abs().amax(-1))
            done |= ~torch.isfinite(found.f) | state.stuck
            if bool(done.any()):
                self._end(rows, state, found)
                keep = torch.nonzero(~done).squeeze(-1)
                rows, state = rows[keep], state.rows(keep)
                if not len(rows):
                    return
                here = take(self._dims, self._theta, rows)
                found = Quantities(**{name: value[keep] for name, value in vars(found).items()})
            self.count[rows] += 1
            state = state.lowered(found)
            state, recorded = _step(self._program, state, found, self._dims, here)
        self._result, self.known = self._result.put(rows, state), None

    def _end(self, rows: torch.Tensor, state: _State, found: Quantities) -> None:
        """Write what is known of these elements, some of which have ended; the others are written again."""
        value, matrix = found.optimality(state.point.lam)
        if len(rows) == len(self.count):
            self._result, self.known = state, (value, matrix)
        else:
            assert self.known is not None  # the first call was for all elements
            self._result = self._result.put(rows, state)
            self.known = (self.known[0].index_copy(0, rows, value), self.known[1].index_copy(0, rows, matrix))

    @property
    def point(self) -> Point:
        """The end, with multipliers of inactive inequalities set to zero."""
        point = self._result.point
        # Of slack and multiplier of an inequality one is next to nothing, in these units.
        away = (point.mu < self._result.s) & (self._target == 0).unsqueeze(-1)
        return Point(point.y, point.lam, torch.where(away, 0.0, point.mu))


@final
@dataclass(frozen=True)
class _State:
    """The iterates of some elements.

    Attributes:
        point: primal and dual variables.
        s: slacks, (batch, m), positive.
        barrier: barrier parameters, (batch,).
        penalty: weights nu of the constraints in the merit function, (batch, p + m).
        stuck: elements whose last step led nowhere, (batch,).
        target: the barrier parameter that the conditions are wanted for, (batch,).
        violation: the least violation of the constraints so far, (batch,).
        idle: steps since it was a tenth larger, (batch,).
    """

    point: Point
    s: torch.Tensor
    barrier: torch.Tensor
    penalty: torch.Tensor
    stuck: torch.Tensor
    target: torch.Tensor
    violation: torch.Tensor
    idle: torch.Tensor

    @staticmethod
    def at(start: Point, found: Quantities, target: torch.Tensor) -> _State:
        y, g, m = start.y, found.g, found.g.shape[-1]
        barrier = target.clamp(min=FIRST_BARRIER) if m else target
        s = torch.maximum(-g, 0.01 * g.abs().clamp(min=1.0))
        # Huge multipliers, of almost dependent constraints, are a worse start than none.
        lam = start.lam
        if lam.shape[-1]:
            lam = torch.where(lam.abs().amax(-1, keepdim=True) < 1e3, lam, 0.0)
        penalty = y.new_ones(len(y), found.h.shape[-1] + m)
        stuck = torch.zeros_like(barrier, dtype=torch.bool)
        return _State(
            Point(y, lam, barrier.unsqueeze(-1) / s if m else s),
            s,
            barrier,
            penalty,
            stuck,
            target,
            torch.full_like(barrier, torch.inf),
            torch.zeros_like(barrier),
        )

    @property
    def last_barrier(self) -> torch.Tensor:
        """The barrier parameter to end with, (batch,)."""
        return self.target.clamp(min=SMALLEST_BARRIER) if self.s.shape[-1] else self.target

    def rows(self, index: torch.Tensor) -> _State:
        point = Point(self.point.y[index], self.point.lam[index], self.point.mu[index])
        return replace(
            self,
            point=point,
            s=self.s[index],
            barrier=self.barrier[index],
            penalty=self.penalty[index],
            stuck=self.stuck[index],
            target=self.target[index],
            violation=self.violation[index],
            idle=self.idle[index],
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

    def error(self, found: Quantities, target: torch.Tensor) -> torch.Tensor:
        """The largest violation of the perturbed optimality conditions, (batch,)."""
        parts = [_lagrangian_slope(self.point, found)]
        if self.point.lam.shape[-1]:
            parts.append(found.h)
        if self.s.shape[-1]:
            parts += [found.g + self.s, self.s * self.point.mu - target.unsqueeze(-1)]
        return torch.cat(parts, dim=-1).abs().amax(-1)

    def lowered(self, found: Quantities) -> _State:
        """With a smaller barrier where the conditions hold well for this one."""
        if not found.g.shape[-1]:
            return self
        good = self.error(found, self.barrier) <= 10.0 * self.barrier
        smaller = torch.maximum(torch.minimum(0.2 * self.barrier, self.barrier**1.5), self.last_barrier)
        return replace(self, barrier=torch.where(good, torch.minimum(smaller, self.barrier), self.barrier))


def _lagrangian_slope(point: Point, found: Quantities) -> torch.Tensor:
    if not point.lam.shape[-1] + point.mu.shape[-1]:
        return found.slope
    return found.slope + times(found.A.mT, point.lam) + times(found.G.mT, point.mu)


def _step(
    program: NonlinearProgram, state: _State, found: Quantities, dims: Dims, theta: Tensors
) -> tuple[_State, Recorded | None]:
    """The next state, and its functions' values where they have been recorded."""
    point, s, barrier, penalty = state.point, state.s, state.barrier.unsqueeze(-1), state.penalty
    p, m = point.lam.shape[-1], s.shape[-1]
    dy, lam, delta = _direction(state, found)
    here, fall = found.f, (found.slope * dy).sum(-1)
    longest, ds, mu = torch.ones_like(here), torch.zeros_like(s), point.mu
    if m:
        ratio = point.mu / s
        ds = -(found.g + s) - times(found.G, dy)
        dmu = barrier / s - point.mu - ratio * ds
        longest = _longest(s, ds)
        mu = point.mu + _longest(point.mu, dmu).unsqueeze(-1) * dmu
        here = here - (barrier * torch.log(s)).sum(-1)
        fall = fall - (barrier * ds / s).sum(-1)
        needed = 2.0 * torch.cat([lam, point.mu + dmu], dim=-1).abs()
    else:
        needed = 2.0 * lam.abs()
    if p + m:
        # Powell's rule: a weight that a bad start asked for does not stay.
        penalty = torch.maximum(needed, 0.5 * (penalty + needed))
        violation = (penalty * torch.cat([found.h, found.g + s], -1).abs()).sum(-1)
        here, fall = here + violation, fall - violation
    slack = 10.0 * torch.finfo(here.dtype).eps * here.abs()  # what rounding leaves of the last steps' descent
    size, accepted = longest.clone(), torch.zeros_like(longest, dtype=torch.bool)
    y, new_s = point.y, s
    bend: torch.Tensor | None = None
    recorded: Recorded | None = None
    for number in range(HALVINGS):
        trial_y = point.y + size.unsqueeze(-1) * dy
        trial_y = trial_y if bend is None else trial_y + bend
        if number == 0:
            recorded = program.recorded(dims, trial_y, theta)
            merit, h, g = recorded.f.detach(), recorded.h.detach(), recorded.g.detach()
        else:
            recorded = None
            merit, h, g = program.values(dims, trial_y, theta)
        trial_s = s
        if m:
            trial_s = s + size.unsqueeze(-1) * ds
            merit = merit - (barrier * torch.log(trial_s)).sum(-1)
        if p + m:
            merit = merit + (penalty * torch.cat([h, g + trial_s], -1).abs()).sum(-1)
        good = ~accepted & (merit <= here + ARMIJO * size * fall.clamp(max=0.0) + slack)
        if bool(good.all()):
            y, new_s, accepted = trial_y, trial_s, good
            break
        y = torch.where(good.unsqueeze(-1), trial_y, y)
        new_s = torch.where(good.unsqueeze(-1), trial_s, new_s)
        accepted = accepted | good
        if bool(accepted.all()):
            break
        if number == 0 and p:
            # Second-order correction: the whole step again, bent back to curved equalities, before it is shortened.
            bend = -times(pseudo_inverse(found.A), h)
            continue
        bend = None
        size = torch.where(accepted, size, 0.5 * size)
    # Where a step changes nothing and the barrier is at its end, no later step will.
    moved = (y - point.y).abs() <= 4.0 * torch.finfo(y.dtype).eps * y.abs()
    still = moved.all(-1) & (state.barrier <= state.last_barrier) & (delta == 0)
    lost, least, idle = ~accepted | still, state.violation, state.idle
    if p + m:
        # Constraints without a common point stay violated, or their multipliers grow without end.
        now = torch.cat([found.h, found.g + s], -1).abs().amax(-1)
        less = now < 0.9 * least
        least, idle = torch.where(less, now, least), torch.where(less, 0.0, idle + 1.0)
        lost = lost | (penalty.amax(-1) > torch.finfo(y.dtype).eps ** -2) | ((idle > PATIENCE) & (now > VIOLATED))
    # The multipliers of equalities follow from the step; those of inequalities stay within reach of barrier / s.
    if p:
        lam = torch.where(accepted.unsqueeze(-1), point.lam + size.unsqueeze(-1) * (lam - point.lam), point.lam)
    if m:
        mu = torch.minimum(torch.maximum(mu, barrier / (1e10 * new_s)), 1e10 * barrier / new_s)
    return _State(Point(y, lam, mu), new_s, state.barrier, penalty, lost, state.target, least, idle), recorded


def _direction(state: _State, found: Quantities) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dy, the new multipliers of the equalities, and the shift."""
    point, s, barrier = state.point, state.s, state.barrier.unsqueeze(-1)
    n, p = found.slope.shape[-1], found.h.shape[-1]
    matrix, rhs = found.hessian, found.slope
    if s.shape[-1]:
        ratio = point.mu / s
        matrix = matrix + found.G.mT @ (ratio.unsqueeze(-1) * found.G)
        rhs = rhs + times(found.G.mT, barrier / s + ratio * (found.g + s))
    delta = _shift(found.hessian, matrix, found.A)
    matrix = matrix + torch.diag_embed(delta.unsqueeze(-1).expand(-1, n))
    if not p:
        return -torch.linalg.solve_ex(matrix, rhs.unsqueeze(-1))[0].squeeze(-1), point.lam, delta
    # A little of -I in the corner keeps the factor finite where constraints are dependent.
    corner = -torch.finfo(rhs.dtype).eps * torch.eye(p, dtype=rhs.dtype, device=rhs.device).expand(len(rhs), p, p)
    system = torch.cat([torch.cat([matrix, found.A.mT], -1), torch.cat([found.A, corner], -1)], -2)
    both = torch.cat([-rhs, -found.h], -1).unsqueeze(-1)
    solution = torch.linalg.solve_ex(system, both)[0].squeeze(-1)
    return solution[:, :n], solution[:, n:], delta


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
    rounding = 10.0 * n * eps * torch.where(scale > 0, scale, matrix.abs().amax((-1, -2)))
    # Where there is no curvature at all, a step of length 1 is one that fits the problem's units.
    floor = torch.where(scale > 0, eps**0.75 * (1.0 + scale), 1.0)
    delta = torch.zeros_like(scale)
    eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    for number in range(SHIFTS):
        bad = torch.linalg.cholesky_ex(whole + (delta - rounding).unsqueeze(-1).unsqueeze(-1) * eye)[1] != 0
        if not bool(bad.any()):
            break
        delta = torch.where(bad, torch.maximum(1e-4 * scale, floor) * 4.0**number, delta)
    return delta


def _longest(value: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """The longest step in (0, 1] that keeps 0.5 % of positive values, (batch,)."""
    if not value.shape[-1]:
        return torch.ones_like(value.sum(-1))
    limit = torch.where(step < 0, -0.995 * value / torch.where(step < 0, step, -1.0), torch.inf)
    return limit.amin(-1).clamp(max=1.0)
