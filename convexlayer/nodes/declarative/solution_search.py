"""Search for the solution of a node: forward solver, Newton polishing, second-order check, and restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, final

import torch

from convexlayer.nodes.autodiff.batch import (
    Batch,
    Dims,
    Shape,
    Tensors,
    element_parameters,
    repeat_elements,
)
from convexlayer.nodes.autodiff.captured_tensors import inspect_function
from convexlayer.nodes.autodiff.derivatives import inside_transform, matvec
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.initial_points import initial_points
from convexlayer.nodes.declarative.node_options import NodeOptions
from convexlayer.nodes.declarative.nonlinear_program import (
    KKTResidual,
    NonlinearProgram,
    Point,
    numerical_rank,
    variable_scales,
)
from convexlayer.nodes.declarative.ray_search import descend_along
from convexlayer.nodes.implicit.derivative_check import DerivativeCheck
from convexlayer.nodes.implicit.error_estimate import PolishedPoints, newton_update, polish, quasirandom_weights
from convexlayer.nodes.implicit.node_report import DegeneracyPolicy, NodeReport
from convexlayer.nodes.implicit.operator import Operator
from convexlayer.nodes.implicit.stationary_kind import Kind, classify_stationary_points

__all__ = ["SearchProblem", "SolutionSearch"]

MAX_RESTARTS = 4
"""Restarts of the solver from its last point; chosen so that the cases in tests/nodes/test_units.py are solved."""

MAX_FULL_STEPS = 20
"""Newton steps without line search, tried where the solver's line search has not converged."""

FULL_STEP_TOL = 1e-8
"""Relative Newton step at which these steps have converged."""


@final
@dataclass(frozen=True)
class SearchProblem:
    """Problem and options of a search.

    Attributes:
        program: the lower problem.
        conditions: the problem whose stationary points are sought: the program, or its log-barrier problem.
        solver: forward solver.
        options: options of the node.
        variable: shape of y.
        t: inverse barrier parameter; None without barrier.
        minimises: whether a solution must be a minimum; else any stationary point is one.
    """

    program: NonlinearProgram
    conditions: NonlinearProgram
    solver: AbstractForwardSolver
    options: NodeOptions
    variable: Shape
    t: float | None
    minimises: bool


@final
class SolutionSearch:
    """Forward pass of one call of a node.

    Args:
        problem: problem and options.
        batch: the parameters.
        seen: signatures of parameters for which the functions have been inspected before.

    Attributes:
        n: number of variables.
        p: number of equalities.
        m: number of inequalities whose multipliers are unknowns.
        inequalities: number of all inequalities.
        residual: the KKT residual.
        captured: leaves with requires_grad that the functions capture.
        tol: largest distance of a solution.
        report: filled by ``solve``.
        on_factor: called with K at the solution and its factor, if the derivative can reuse them.
    """

    def __init__(self, problem: SearchProblem, batch: Batch, seen: set[Any]) -> None:
        like = batch.tensors[0]
        self._program, self._conditions, self._solver = problem.program, problem.conditions, problem.solver
        self._options, self._variable, self._t = problem.options, problem.variable, problem.t
        self._minimises = problem.minimises
        self.n = prod(self._variable)
        y = like.new_zeros(1, self.n)
        (_, h, g), self.captured = inspect_function(
            self._program.evaluate, (0, *batch.dims), y, *batch.tensors, seen=seen
        )
        self.p, self.inequalities = h.shape[-1], g.shape[-1]
        self.m = 0 if self._t is not None else self.inequalities
        self.residual = KKTResidual(self._conditions, self.p, self.m)
        self.tol = self._options.tolerance(like.dtype)
        self._linear = self._options.linear.accurate()
        self.report, self._last, self._uninformed_start = NodeReport(), like.new_empty(0), False
        self.on_factor: Callable[[Operator, object], None] = lambda operator, factor: None

    def derivative_check(
        self, on_degenerate: DegeneracyPolicy, singular_message: Callable[[Operator, int], str]
    ) -> DerivativeCheck:
        """Create the check of the derivative's linear solves."""
        margin = self._activity_margin if self.m else None
        return DerivativeCheck(self.report, on_degenerate, self.tol, margin, singular_message)

    def solve(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Solve for z (batch, n + p + m); return it with a mask of the solved elements, and fill the report."""
        starts = initial_points(self._options.start, start, self._variable, dims, theta)
        size, k, _ = starts.shape
        theta_repeated = repeat_elements(dims, theta, k)
        first = starts.reshape(size * k, self.n)
        found, iterations = self._solve_and_polish(first, first, dims, theta_repeated)
        good = found.distance <= self.tol
        kinds, _ = self._curvature(found)
        minimum = (kinds == Kind.MINIMUM.code) | (kinds == Kind.UNKNOWN.code)
        # A default start with a gradient of exactly zero may lie on a kink that autograd does not see.
        self._uninformed_start = self._solver.restarts and start is None and not callable(self._options.start)
        settled = good & ((minimum & ~self._unmoved_default_start(found, iterations)) | (not self._minimises))
        if not bool(settled.all()):
            found, iterations, kinds, good = self._restart(found, iterations, settled, first, dims, theta_repeated)
        z, distance, flat = found.operator.z, found.distance, found.flat
        if k > 1:
            rows = self._select(z.reshape(size, k, -1), good.reshape(size, k), dims, theta)
            rows = rows + k * torch.arange(size, device=rows.device)
            z, distance, flat, iterations, kinds, good = (
                each[rows] for each in (z, distance, flat, iterations, kinds, good)
            )
        elif self._linear is self._options.linear:
            self.on_factor(found.operator, found.factor)
        self._last = z
        self.report.record(good, torch.isfinite(z).all(-1), distance, iterations, kinds, flat)
        return z, good

    def _solve_and_polish(
        self, start: torch.Tensor, origin: torch.Tensor, dims: Dims, theta: Tensors
    ) -> tuple[PolishedPoints, torch.Tensor]:
        """Run the solver and polish its points; ``origin`` is the start of the first search."""
        mu = 0.0 if self._t is None else 1.0 / self._t
        found = self._solver.solve(self._program, start, dims, theta, p=self.p, m=self.inequalities, mu=mu)
        point = found.point
        z = point.z if self._t is None else torch.cat([point.y, point.lam], -1)
        operator = Operator(self.residual, dims, z, theta, found.known)
        return self._polish(operator, origin, self._options.polish), found.iterations

    def _polish(self, operator: Operator, origin: torch.Tensor, steps: int) -> PolishedPoints:
        """Polish points; those outside the barrier's domain get an infinite distance."""
        points = polish(operator, self._linear, start=origin, steps=steps, tol=self.tol)
        if self._t is None or not self.inequalities:
            return points
        # Outside its domain the barrier may have stationary points too.
        _, _, g = self._program.values(operator.dims, points.operator.z[:, : self.n], operator.theta)
        return replace(points, distance=torch.where((g < 0).all(-1), points.distance, torch.inf))

    def _unmoved_default_start(self, found: PolishedPoints, iterations: torch.Tensor) -> torch.Tensor:
        """Mask of elements that the solver has left at a default start, (batch,)."""
        if not self._uninformed_start:
            return torch.zeros_like(iterations, dtype=torch.bool)
        return (iterations == 0) & (found.operator.value() == 0).all(-1)

    def _curvature(self, found: PolishedPoints) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify the points; return the kinds and directions of least curvature."""
        matrix = getattr(found.factor, "matrix", None)
        if matrix is None:
            unknown = torch.full(found.distance.shape, Kind.UNKNOWN.code, device=found.distance.device)
            return unknown, torch.zeros_like(found.operator.z[:, None, : self.n])
        jacobian = matrix[:, self.n :, : self.n]
        kinds, direction = classify_stationary_points(matrix[:, : self.n, : self.n], jacobian)
        kinds = torch.where(found.flat, Kind.DEGENERATE.code, kinds)
        return kinds, found.factor.right[:, None, : self.n] * direction

    def _restart(
        self,
        found: PolishedPoints,
        iterations: torch.Tensor,
        settled: torch.Tensor,
        origin: torch.Tensor,
        dims: Dims,
        theta: Tensors,
    ) -> tuple[PolishedPoints, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Continue from points that are not solutions, rescaled there, and from near those that are not minima.

        Returns:
            The points, the iterations, the kinds, and a mask of the solutions.
        """
        z, distance, counts = found.operator.z.clone(), found.distance.clone(), iterations.clone()
        flat = found.flat.clone()
        kinds, _ = self._curvature(found)
        good = settled.clone()
        rows = torch.nonzero(~settled).squeeze(-1)
        if len(rows) < len(z):
            some = Operator(self.residual, dims, z[rows], element_parameters(dims, theta, rows))
            found = self._polish(some, origin[rows], 0)
        restarts = MAX_RESTARTS if self._solver.restarts else 0
        for number in range(restarts + 1):
            row_theta = element_parameters(dims, theta, rows)
            if self._solver.restarts:
                found = self._full_newton_steps(found, origin[rows], dims, row_theta)
            near = found.distance <= self.tol
            kind, direction = self._curvature(found)
            kind = torch.where(near, kind, Kind.UNKNOWN.code)
            y, descends = found.operator.z[:, : self.n], torch.zeros_like(near)
            unmoved = self._unmoved_default_start(found, counts[rows])
            suspect = near & ((kind != Kind.MINIMUM.code) | unmoved) & (kind != Kind.UNKNOWN.code)
            if self._minimises and bool(suspect.any()):
                unmoved = unmoved & (kind == Kind.MINIMUM.code)
                away = torch.where(unmoved.unsqueeze(-1), quasirandom_weights(y), y - origin[rows])
                direction = torch.where((found.flat | unmoved)[:, None, None], away.unsqueeze(1), direction)
                for each in direction.unbind(1):
                    nearby, lower = descend_along(self._conditions, self._point(found), each, dims, row_theta)
                    lower = lower & suspect & ~descends
                    y, descends = torch.where(lower.unsqueeze(-1), nearby, y), descends | lower
                saddle = Kind.SADDLE.code
                kind = torch.where(descends & (kind != Kind.MAXIMUM.code), saddle, kind)
                if self.m:
                    # Negative curvature that leads nowhere down is barred by weakly active inequalities.
                    kind = torch.where(suspect & ~descends & (kind == saddle), Kind.DEGENERATE.code, kind)
            accepted = near & ~descends
            if self._minimises:
                accepted = accepted & (kind != Kind.SADDLE.code) & (kind != Kind.MAXIMUM.code)
            z[rows], distance[rows], kinds[rows], good[rows] = found.operator.z, found.distance, kind, accepted
            flat[rows] = found.flat
            remaining = torch.nonzero(~accepted & torch.isfinite(y).all(-1)).squeeze(-1)
            if not len(remaining):
                break
            rows, start = rows[remaining], y[remaining]
            if number < restarts:
                found, steps = self._solve_and_polish(start, origin[rows], dims, element_parameters(dims, theta, rows))
                counts[rows] += steps
        operator = Operator(self.residual, dims, z, theta)
        factor = self._linear.init(operator, symmetric=True)
        return PolishedPoints(operator, factor, distance, flat), counts, kinds, good

    def _full_newton_steps(
        self, found: PolishedPoints, origin: torch.Tensor, dims: Dims, theta: Tensors
    ) -> PolishedPoints:
        """Take full Newton steps from points that are not solutions, where they lead to a minimum that is no higher.

        In a long curved valley a line search on the objective would take a thousand short steps.
        """
        near = found.distance <= self.tol
        if bool(near.all()) or not self._minimises:
            return found
        operator, linear = found.operator, self._linear
        for _ in range(MAX_FULL_STEPS):
            factor = linear.init(operator, symmetric=True)
            move = linear.solve(factor, -operator.value(), transposed=False).solution
            operator = operator.at(torch.where(near.unsqueeze(-1), operator.z, newton_update(operator.z, move)))
            if bool((move.abs() <= FULL_STEP_TOL * operator.z.abs()).all()):
                break
        trial = self._polish(operator, origin, 1)
        kind, _ = self._curvature(trial)
        before, *_ = self._conditions.values(dims, found.operator.z[:, : self.n], theta)
        after, *_ = self._conditions.values(dims, trial.operator.z[:, : self.n], theta)
        lower = (after <= before) | (self.p + self.m > 0)
        low = (kind == Kind.MINIMUM.code) | (kind == Kind.DEGENERATE.code)
        good = ~near & (trial.distance <= self.tol) & low & lower
        if not bool(good.any()):
            return found
        both = torch.where(good.unsqueeze(-1), trial.operator.z, found.operator.z)
        return self._polish(operator.at(both), origin, 0)

    def _point(self, found: PolishedPoints) -> Point:
        return Point(*self.residual.split(found.operator.z))

    def dependent_equalities_message(self, batch: Batch) -> str:
        """Describe dependent equalities at the last point of the first failed element; empty if there are none."""
        if not self.p or inside_transform():
            return ""
        first = self.report.failed[0]
        parameters = element_parameters(batch.dims, tuple(t.detach() for t in batch.tensors), first)
        rows = torch.func.jacrev(self._program.h)(self._last[first, : self.n], *parameters)
        rank = numerical_rank(rows) if bool(torch.isfinite(rows).all()) else self.p
        if rank == self.p:
            return ""
        return (
            f". The gradients of the {self.p} equalities of element {first} are dependent (rank {rank}): drop the "
            "redundant ones, or make them consistent"
        )

    def barrier_multipliers(self, y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """Multipliers mu = -1 / (t g) of one element on the central path."""
        return -1.0 / ((self._t or 1.0) * self._program.g(y, *theta))

    def _activity_margin(self, operator: Operator) -> torch.Tensor:
        """Distance of each element from weak activity, (batch,).

        For each inequality, the larger of -g, relative to the change of g over the scales of the variables, and mu,
        relative to the slope of f that it balances.
        """
        point = Point(*self.residual.split(operator.z))
        found = self._program.derivatives(operator.dims, point, operator.theta)
        scales, mu = variable_scales(point.y, found), point.mu
        change = matvec(found.G.abs(), scales)
        slope_scale = matvec(found.hessian.abs(), scales) + found.slope.abs()
        each = found.G.abs() * scales.unsqueeze(1)
        balanced = matvec(each, scales * slope_scale)
        slack = found.g.abs() / torch.where(change > 0, change, 1.0)
        multiplier_size = mu * each.square().sum(-1) / torch.where(balanced > 0, balanced, 1.0)
        return torch.maximum(slack, multiplier_size).amin(-1)

    def _select(self, z: torch.Tensor, good: torch.Tensor, dims: Dims, theta: Tensors) -> torch.Tensor:
        """Select each element's solution among (batch, k, n) points; returns the index (batch,)."""
        size, k, _ = z.shape
        y = z[:, :, : self.n]
        f = torch.stack([self._program.values(dims, y[:, j], theta)[0] for j in range(k)], 1)
        best = torch.where(good, f, torch.inf).argmin(1)
        if self._options.choose is None:
            return best
        # Failed starts are replaced by the best one, so that only stationary points are offered.
        index = torch.where(good, torch.arange(k, device=z.device), best.unsqueeze(1))
        y = torch.take_along_dim(y, index.unsqueeze(-1), 1).reshape(size, k, *self._variable)
        f = torch.take_along_dim(f, index, 1)
        choice = torch.func.vmap(self._options.choose, in_dims=(0, 0, *dims))(y, f, *theta)
        return torch.take_along_dim(index, choice.reshape(size, 1), 1).squeeze(1)
