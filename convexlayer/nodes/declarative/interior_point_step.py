"""One step of the primal-dual interior-point method, in scaled units, and its state.

References: Nocedal and Wright, Numerical Optimization, 2006, chapter 19. Waechter and Biegler, On the implementation of
an interior-point filter line-search algorithm for large-scale nonlinear programming, 2006.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch

from convexlayer.nodes.autodiff.batch import Dims, Tensors
from convexlayer.nodes.autodiff.derivatives import matvec
from convexlayer.nodes.declarative.nonlinear_program import (
    NonlinearProgram,
    Point,
    ProgramDerivatives,
    RecordedValues,
    pseudo_inverse,
)

__all__ = ["InteriorPointState", "interior_point_step"]

ARMIJO_FRACTION = 1e-4
"""Sufficient decrease of the merit function, as a fraction of its slope (Nocedal and Wright, section 3.1)."""

MAX_HALVINGS = 40
"""Halvings of a step, to 1e-12 of it, before the line search fails."""

INITIAL_BARRIER = 0.1
"""First barrier parameter, in scaled units; the default of IPOPT."""

MIN_BARRIER = 1e-14
"""Last barrier parameter, in scaled units: its effect on the solution is below the tolerance in float64."""

BARRIER_FACTOR, BARRIER_EXPONENT = 0.2, 1.5
"""The barrier parameter falls to min(0.2 mu, mu^1.5), as in IPOPT: linearly, then superlinearly."""

BARRIER_ERROR_FACTOR = 10.0
"""Multiples of the barrier parameter that the KKT residual may have when it is reduced, as in IPOPT."""

MIN_SLACK = 0.01
"""Smallest initial slack, relative to max(|g|, 1), as the bound push of IPOPT."""

MAX_INITIAL_MULTIPLIER = 1e3
"""Largest least-squares multiplier to start from, in scaled units; the default of IPOPT."""

PENALTY_FACTOR = 2.0
"""Weight of a constraint in the merit function, as a multiple of its multiplier; above 1 for descent."""

BOUNDARY_FRACTION = 0.995
"""Fraction to the boundary of the slacks and multipliers (Nocedal and Wright, section 19.2)."""

MULTIPLIER_RANGE = 1e10
"""Multipliers of inequalities stay within this factor of barrier / s, as in IPOPT."""

MAX_SHIFTS = 24
"""Shifts of the Hessian that are tried: the last is 4^23 times the first."""

FIRST_SHIFT, SHIFT_GROWTH = 1e-4, 4.0
"""First shift relative to the Hessian, and growth factor; smaller ones cost Cholesky factorisations, larger ones slow
the convergence."""

MIN_SHIFT_EXPONENT = 0.75
"""The first shift is at least eps to this power, above the rounding of the factorisation."""

NULL_SPACE_WEIGHT = 1e3
"""Multiple of A'A, relative to the Hessian, whose addition makes definite what is so on the null space of A; larger
multiples lose digits of the Hessian."""

ROUNDOFF_FACTOR = 10.0
"""Multiples of eps that rounding may change a merit function, or n times that a Cholesky pivot."""

UNCHANGED_FACTOR = 4.0
"""Multiples of eps |y| below which a step changes nothing."""

VIOLATION_DECREASE = 0.9
"""Factor by which the violation must fall to count as progress."""

MAX_STALLED_STEPS = 20
"""Steps without such progress after which a problem counts as infeasible."""

INFEASIBLE_VIOLATION = 1e-6
"""Violation, in scaled units, above which such a problem is infeasible."""


@final
@dataclass(frozen=True)
class InteriorPointState:
    """Iterates of the active elements.

    Attributes:
        point: primal and dual variables.
        s: slacks, (batch, m), positive.
        barrier: barrier parameters, (batch,).
        penalty: weights nu of the constraints in the merit function, (batch, p + m).
        stalled: mask of elements whose last step made no progress, (batch,).
        target: final barrier parameters, (batch,).
        violation: smallest violation of the constraints so far, (batch,).
        stalled_steps: steps since the violation last fell by a tenth, (batch,).
    """

    point: Point
    s: torch.Tensor
    barrier: torch.Tensor
    penalty: torch.Tensor
    stalled: torch.Tensor
    target: torch.Tensor
    violation: torch.Tensor
    stalled_steps: torch.Tensor

    @staticmethod
    def at(start: Point, found: ProgramDerivatives, target: torch.Tensor) -> InteriorPointState:
        """Start from a point with known derivatives, with slacks -g where g < 0."""
        y, g, m = start.y, found.g, found.g.shape[-1]
        barrier = target.clamp(min=INITIAL_BARRIER) if m else target
        s = torch.maximum(-g, MIN_SLACK * g.abs().clamp(min=1.0))
        # Huge multipliers, from nearly dependent constraints, are a worse start than zero.
        lam = start.lam
        if lam.shape[-1]:
            lam = torch.where(lam.abs().amax(-1, keepdim=True) < MAX_INITIAL_MULTIPLIER, lam, 0.0)
        penalty = y.new_ones(len(y), found.h.shape[-1] + m)
        stalled = torch.zeros_like(barrier, dtype=torch.bool)
        return InteriorPointState(
            Point(y, lam, barrier.unsqueeze(-1) / s if m else s),
            s,
            barrier,
            penalty,
            stalled,
            target,
            torch.full_like(barrier, torch.inf),
            torch.zeros_like(barrier),
        )

    @property
    def last_barrier(self) -> torch.Tensor:
        """Smallest barrier parameter to reach, (batch,)."""
        return self.target.clamp(min=MIN_BARRIER) if self.s.shape[-1] else self.target

    def rows(self, index: torch.Tensor) -> InteriorPointState:
        """Select the elements at these indices."""
        point = Point(self.point.y[index], self.point.lam[index], self.point.mu[index])
        return replace(
            self,
            point=point,
            s=self.s[index],
            barrier=self.barrier[index],
            penalty=self.penalty[index],
            stalled=self.stalled[index],
            target=self.target[index],
            violation=self.violation[index],
            stalled_steps=self.stalled_steps[index],
        )

    def replace_rows(self, index: torch.Tensor, other: InteriorPointState) -> InteriorPointState:
        """Return a copy with the values of ``other`` in these rows."""

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

    def error(self, found: ProgramDerivatives, target: torch.Tensor) -> torch.Tensor:
        """Largest entry of the perturbed KKT residual, (batch,)."""
        parts = [_lagrangian_slope(self.point, found)]
        if self.point.lam.shape[-1]:
            parts.append(found.h)
        if self.s.shape[-1]:
            parts += [found.g + self.s, self.s * self.point.mu - target.unsqueeze(-1)]
        return torch.cat(parts, dim=-1).abs().amax(-1)

    def with_reduced_barrier(self, found: ProgramDerivatives) -> InteriorPointState:
        """Reduce the barrier parameter where the perturbed KKT conditions hold (Waechter and Biegler 2006, eq. 7)."""
        if not found.g.shape[-1]:
            return self
        good = self.error(found, self.barrier) <= BARRIER_ERROR_FACTOR * self.barrier
        smaller = torch.maximum(
            torch.minimum(BARRIER_FACTOR * self.barrier, self.barrier**BARRIER_EXPONENT), self.last_barrier
        )
        return replace(self, barrier=torch.where(good, torch.minimum(smaller, self.barrier), self.barrier))


def _lagrangian_slope(point: Point, found: ProgramDerivatives) -> torch.Tensor:
    if not point.lam.shape[-1] + point.mu.shape[-1]:
        return found.slope
    return found.slope + matvec(found.A.mT, point.lam) + matvec(found.G.mT, point.mu)


def interior_point_step(
    program: NonlinearProgram, state: InteriorPointState, found: ProgramDerivatives, dims: Dims, theta: Tensors
) -> tuple[InteriorPointState, RecordedValues | None]:
    """Take one step; returns the next state, and its function values if they were recorded."""
    point, s, barrier, penalty = state.point, state.s, state.barrier.unsqueeze(-1), state.penalty
    p, m = point.lam.shape[-1], s.shape[-1]
    dy, lam, delta = _direction(state, found)
    here, slope = found.f, (found.slope * dy).sum(-1)
    max_length, ds, mu = torch.ones_like(here), torch.zeros_like(s), point.mu
    if m:
        ratio = point.mu / s
        ds = -(found.g + s) - matvec(found.G, dy)
        dmu = barrier / s - point.mu - ratio * ds
        max_length = _fraction_to_boundary(s, ds)
        mu = point.mu + _fraction_to_boundary(point.mu, dmu).unsqueeze(-1) * dmu
        here = here - (barrier * torch.log(s)).sum(-1)
        slope = slope - (barrier * ds / s).sum(-1)
        required = PENALTY_FACTOR * torch.cat([lam, point.mu + dmu], dim=-1).abs()
    else:
        required = PENALTY_FACTOR * lam.abs()
    if p + m:
        # Powell's rule: a weight that a bad start required decays.
        penalty = torch.maximum(required, 0.5 * (penalty + required))
        violation = (penalty * torch.cat([found.h, found.g + s], -1).abs()).sum(-1)
        here, slope = here + violation, slope - violation
    slack = ROUNDOFF_FACTOR * torch.finfo(here.dtype).eps * here.abs()  # rounding in the merit function
    size, accepted = max_length.clone(), torch.zeros_like(max_length, dtype=torch.bool)
    y, new_s = point.y, s
    correction: torch.Tensor | None = None
    recorded: RecordedValues | None = None
    for number in range(MAX_HALVINGS):
        trial_y = point.y + size.unsqueeze(-1) * dy
        trial_y = trial_y if correction is None else trial_y + correction
        if number == 0:
            recorded = program.record(dims, trial_y, theta)
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
        good = ~accepted & (merit <= here + ARMIJO_FRACTION * size * slope.clamp(max=0.0) + slack)
        if bool(good.all()):
            y, new_s, accepted = trial_y, trial_s, good
            break
        y = torch.where(good.unsqueeze(-1), trial_y, y)
        new_s = torch.where(good.unsqueeze(-1), trial_s, new_s)
        accepted = accepted | good
        if bool(accepted.all()):
            break
        if number == 0 and p:
            # Second-order correction: the full step again, corrected for the curvature of the equalities.
            correction = -matvec(pseudo_inverse(found.A), h)
            continue
        correction = None
        size = torch.where(accepted, size, 0.5 * size)
    stalled, least_violation, stalled_steps = _stalled(state, found, y, penalty, accepted, delta)
    # The multipliers of equalities follow from the step; those of inequalities stay within a factor of barrier / s.
    if p:
        lam = torch.where(accepted.unsqueeze(-1), point.lam + size.unsqueeze(-1) * (lam - point.lam), point.lam)
    if m:
        limit = MULTIPLIER_RANGE
        mu = torch.minimum(torch.maximum(mu, barrier / (limit * new_s)), limit * barrier / new_s)
    following = InteriorPointState(
        Point(y, lam, mu), new_s, state.barrier, penalty, stalled, state.target, least_violation, stalled_steps
    )
    return following, recorded


def _stalled(
    state: InteriorPointState,
    found: ProgramDerivatives,
    y: torch.Tensor,
    penalty: torch.Tensor,
    accepted: torch.Tensor,
    delta: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Detect elements without progress; returns their mask, the least violations, and the steps since they fell."""
    # If a step changes nothing and the barrier is at its end, later steps will not either.
    unchanged = (y - state.point.y).abs() <= UNCHANGED_FACTOR * torch.finfo(y.dtype).eps * y.abs()
    at_rest = unchanged.all(-1) & (state.barrier <= state.last_barrier) & (delta == 0)
    stalled = ~accepted | at_rest
    if not penalty.shape[-1]:
        return stalled, state.violation, state.stalled_steps
    # Inconsistent constraints stay violated, or their multipliers diverge.
    violation = torch.cat([found.h, found.g + state.s], -1).abs().amax(-1)
    improved = violation < VIOLATION_DECREASE * state.violation
    steps = torch.where(improved, 0.0, state.stalled_steps + 1.0)
    diverged = penalty.amax(-1) > torch.finfo(y.dtype).eps ** -2
    infeasible = (steps > MAX_STALLED_STEPS) & (violation > INFEASIBLE_VIOLATION)
    return stalled | diverged | infeasible, torch.where(improved, violation, state.violation), steps


def _direction(state: InteriorPointState, found: ProgramDerivatives) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Solve for dy and the new multipliers of the equalities; returns them and the Hessian shift."""
    point, s, barrier = state.point, state.s, state.barrier.unsqueeze(-1)
    n, p = found.slope.shape[-1], found.h.shape[-1]
    matrix, rhs = found.hessian, found.slope
    if s.shape[-1]:
        ratio = point.mu / s
        matrix = matrix + found.G.mT @ (ratio.unsqueeze(-1) * found.G)
        rhs = rhs + matvec(found.G.mT, barrier / s + ratio * (found.g + s))
    delta = _hessian_shift(found.hessian, matrix, found.A)
    matrix = matrix + torch.diag_embed(delta.unsqueeze(-1).expand(-1, n))
    if not p:
        return -torch.linalg.solve_ex(matrix, rhs.unsqueeze(-1))[0].squeeze(-1), point.lam, delta
    # A small negative corner block keeps the factorisation finite if constraints are dependent.
    corner = -torch.finfo(rhs.dtype).eps * torch.eye(p, dtype=rhs.dtype, device=rhs.device).expand(len(rhs), p, p)
    system = torch.cat([torch.cat([matrix, found.A.mT], -1), torch.cat([found.A, corner], -1)], -2)
    both = torch.cat([-rhs, -found.h], -1).unsqueeze(-1)
    solution = torch.linalg.solve_ex(system, both)[0].squeeze(-1)
    return solution[:, :n], solution[:, n:], delta


def _hessian_shift(hessian: torch.Tensor, matrix: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """Smallest tried delta (batch,) with matrix + delta I positive definite on the null space of A.

    Equivalently, matrix + delta I plus a large multiple of A'A is positive definite, which Cholesky tests. Shifts are
    relative to the Hessian, since the barrier term of the matrix may be larger by many orders of magnitude.
    """
    scale = hessian.abs().sum(-1).amax(-1)
    size = A.square().sum((-1, -2))
    weight = torch.where(size > 0, NULL_SPACE_WEIGHT * (1.0 + scale) / torch.where(size > 0, size, 1.0), 0.0)
    whole = matrix + weight.unsqueeze(-1).unsqueeze(-1) * (A.mT @ A)
    eps, n = torch.finfo(scale.dtype).eps, matrix.shape[-1]
    roundoff = ROUNDOFF_FACTOR * n * eps * torch.where(scale > 0, scale, matrix.abs().amax((-1, -2)))
    # Without any curvature a shift of 1 gives a step of length 1, in scaled units.
    floor = torch.where(scale > 0, eps**MIN_SHIFT_EXPONENT * (1.0 + scale), 1.0)
    delta = torch.zeros_like(scale)
    eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    for number in range(MAX_SHIFTS):
        bad = torch.linalg.cholesky_ex(whole + (delta - roundoff).unsqueeze(-1).unsqueeze(-1) * eye)[1] != 0
        if not bool(bad.any()):
            break
        delta = torch.where(bad, torch.maximum(FIRST_SHIFT * scale, floor) * SHIFT_GROWTH**number, delta)
    return delta


def _fraction_to_boundary(value: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Largest step in (0, 1] by the fraction-to-boundary rule, (batch,)."""
    if not value.shape[-1]:
        return torch.ones_like(value.sum(-1))
    limit = torch.where(step < 0, -BOUNDARY_FRACTION * value / torch.where(step < 0, step, -1.0), torch.inf)
    return limit.amin(-1).clamp(max=1.0)
