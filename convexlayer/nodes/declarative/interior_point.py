"""Primal-dual interior-point method for smooth nonlinear programs, for a batch in lock step.

With slacks g + s = 0 and the barrier parameter mu, a step solves

    [ L_YY + G'(mu/s)G + delta I    A' ] [ dy   ]
    [ A                             0  ] [ dlam ]

where delta is the smallest of a few shifts that make the reduced Hessian positive definite, so that dy is a descent
direction of the merit function f - mu sum log s + nu'(|h|, |g + s|) for nonconvex f too. Without inequalities this is
Newton's method with a line search. Converged elements leave the batch.

The problem is scaled at the start (``problem_scaling``): variables by the curvature of f, f by the decrease of a Newton
step, constraints by their gradients. Steps, slopes and violations of size 1 are then large in any units.

Reference: Nocedal and Wright, Numerical Optimization, 2006, chapter 19.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from convexlayer.nodes.autodiff.batch import Dims, Tensors, element_parameters
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.interior_point_step import InteriorPointState, interior_point_step
from convexlayer.nodes.declarative.nonlinear_program import (
    Iterate,
    NonlinearProgram,
    Point,
    ProgramDerivatives,
    RecordedValues,
)
from convexlayer.nodes.declarative.problem_scaling import ProblemScaling
from convexlayer.nodes.declarative.ray_search import feasibility_start, steepest_descent_start
from convexlayer.nodes.implicit.newton import TOL_EXPONENT

__all__ = ["InteriorPoint"]


@final
@dataclass(frozen=True)
class InteriorPoint(AbstractForwardSolver):
    """Primal-dual interior-point method; finds a local minimum near the start. The default solver of most nodes.

    Attributes:
        tol: largest entry of the KKT residual at the end, in scaled units and relative to 1 + |f_Y|; None for
            eps^(2/3) of the dtype, 4e-11 in float64.
        max_iter: largest number of iterations.
    """

    restarts: ClassVar[bool] = True

    tol: float | None = None
    max_iter: int = 200

    def solve(
        self, program: NonlinearProgram, start: torch.Tensor, dims: Dims, theta: Tensors, *, p: int, m: int, mu: float
    ) -> Iterate:
        """Solve; elements that do not converge keep their last iterate."""
        recorded = program.record(dims, start, theta)
        lam, found = program.least_squares_multipliers(recorded, p)
        if p:
            moved = feasibility_start(program, start, found, dims, theta)
            if moved is not None:
                start = moved
                lam, found = program.least_squares_multipliers(program.record(dims, start, theta), p)
        moved = steepest_descent_start(program, Point(start, lam, start.new_zeros(len(start), m)), found, dims, theta)
        if moved is not None:
            start = moved
            lam, found = program.least_squares_multipliers(program.record(dims, start, theta), p)
        guess = Point(start, lam, start.new_zeros(len(start), m))
        scales = ProblemScaling.at(guess, found)
        dims, theta = (0, 0, 0, 0, *dims), (*scales.tensors, *theta)
        solve = _ScaledSolve(scales.scale_program(program), dims, theta, mu / scales.f, self)
        solve.run(scales.scale_point(guess), scales.scale_derivatives(found))
        known = None if m or solve.known is None else scales.unscale_optimality(*solve.known)
        return Iterate(scales.unscale_point(solve.point), solve.count, known)


@final
class _ScaledSolve:
    """One solve in scaled units.

    Attributes:
        count: iterations, (batch,).
        known: (L_Y, h) at the end and its Jacobian, if all elements have stopped before the limit of iterations.
    """

    def __init__(
        self, program: NonlinearProgram, dims: Dims, theta: Tensors, target: torch.Tensor, options: InteriorPoint
    ) -> None:
        self._program, self._dims, self._theta, self._target, self._options = program, dims, theta, target, options
        self.count = torch.zeros(target.shape, dtype=torch.int64, device=target.device)
        self.known: tuple[torch.Tensor, torch.Tensor] | None = None

    def run(self, start: Point, found: ProgramDerivatives) -> None:
        """Iterate from a start with known derivatives."""
        options, y = self._options, start.y
        tol = torch.finfo(y.dtype).eps ** TOL_EXPONENT if options.tol is None else options.tol
        state = InteriorPointState.at(start, found, self._target)
        self._result = state
        rows = torch.arange(len(y), device=y.device)  # indices of the active elements
        here = self._theta
        recorded: RecordedValues | None = None
        for number in range(options.max_iter):
            if number:
                recorded = self._program.record(self._dims, state.point.y, here) if recorded is None else recorded
                found = recorded.derivatives(state.point.lam, state.point.mu)
            done = state.error(found, state.target) <= tol * (1.0 + found.slope.abs().amax(-1))
            done |= ~torch.isfinite(found.f) | state.stalled
            if bool(done.any()):
                self._store(rows, state, found)
                keep = torch.nonzero(~done).squeeze(-1)
                rows, state = rows[keep], state.rows(keep)
                if not len(rows):
                    return
                here = element_parameters(self._dims, self._theta, rows)
                found = ProgramDerivatives(**{name: value[keep] for name, value in vars(found).items()})
            self.count[rows] += 1
            state = state.with_reduced_barrier(found)
            state, recorded = interior_point_step(self._program, state, found, self._dims, here)
        self._result, self.known = self._result.replace_rows(rows, state), None

    def _store(self, rows: torch.Tensor, state: InteriorPointState, found: ProgramDerivatives) -> None:
        """Store the state of the active elements; those that continue are overwritten later."""
        value, matrix = found.optimality(state.point.lam)
        if len(rows) == len(self.count):
            self._result, self.known = state, (value, matrix)
        else:
            assert self.known is not None  # the first call was for all elements
            self._result = self._result.replace_rows(rows, state)
            self.known = (self.known[0].index_copy(0, rows, value), self.known[1].index_copy(0, rows, matrix))

    @property
    def point(self) -> Point:
        """The last iterate, with zero multipliers at inactive inequalities."""
        point = self._result.point
        # In scaled units either the slack or the multiplier of an inequality is close to zero.
        away = (point.mu < self._result.s) & (self._target == 0).unsqueeze(-1)
        return Point(point.y, point.lam, torch.where(away, 0.0, point.mu))
