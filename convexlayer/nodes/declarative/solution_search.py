"""How a node finds its outputs: the solver, Newton steps, the check of what kind of point it is, and further tries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, final

import torch

from convexlayer.nodes.autodiff.batch import Batch, Dims, Shape, Tensors, element, repeated, take
from convexlayer.nodes.autodiff.derivatives import inside_transform, times
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.initial_points import starts_of
from convexlayer.nodes.declarative.node_options import NodeOptions
from convexlayer.nodes.declarative.nonlinear_program import NonlinearProgram, Optimality, Point, lengths, rank_of
from convexlayer.nodes.declarative.ray_search import downhill
from convexlayer.nodes.implicit.equation import examined
from convexlayer.nodes.implicit.error_estimate import Iterates, certified, irregular_weights, stepped
from convexlayer.nodes.implicit.node_report import NodeReport, OnDegenerate, Recorder
from convexlayer.nodes.implicit.operator import Operator
from convexlayer.nodes.implicit.stationary_kind import Kind, kind_of

__all__ = ["Search", "Task"]

RESTARTS = 4
"""How often a search goes on from where it ended without a solution."""

LEAPS = 20
"""Newton steps without a line search, where one with it has not come to an end."""


@final
@dataclass(frozen=True)
class Task:
    """What a node searches for.

    Attributes:
        program: the lower problem.
        conditions: the problem whose stationary points are its outputs: the program, or its barrier problem.
        solver: solves it.
        options: of the node.
        variable: shape of y.
        t: of the barrier, or None.
        minimises: whether an output must be a minimum, and not any stationary point.
    """

    program: NonlinearProgram
    conditions: NonlinearProgram
    solver: AbstractForwardSolver
    options: NodeOptions
    variable: Shape
    t: float | None
    minimises: bool


@final
class Search:
    """One call of a node: what is solved, and the report that is filled meanwhile.

    Args:
        task: what is searched for.
        batch: the parameters.
        known: for what parameters the functions have been examined before.

    Attributes:
        n: number of variables.
        p: number of equalities.
        m: number of inequalities whose multipliers are unknowns too.
        inequalities: number of all.
        residual: of the optimality conditions.
        captured: leaves with requires_grad that the functions use.
        tol: distance of a solution.
        report: filled by ``solve``.
        keep: told of the factor of K at the solution.
    """

    def __init__(self, task: Task, batch: Batch, known: set[Any]) -> None:
        like = batch.tensors[0]
        self._program, self._conditions, self._solver = task.program, task.conditions, task.solver
        self._options, self._variable, self._t = task.options, task.variable, task.t
        self._minimises = task.minimises
        self.n = prod(self._variable)
        y = like.new_zeros(1, self.n)
        (_, h, g), self.captured = examined(self._program.checked, (0, *batch.dims), y, *batch.tensors, known=known)
        self.p, self.inequalities = h.shape[-1], g.shape[-1]
        self.m = 0 if self._t is not None else self.inequalities
        self.residual = Optimality(self._conditions, self.p, self.m)
        self.tol = self._options.tolerance(like.dtype)
        self._linear = self._options.linear.accurate()
        self.report, self._last, self._blind = NodeReport(), like.new_empty(0), False
        self.keep: Callable[[Operator, object], None] = lambda operator, factor: None

    def judge(self, on_degenerate: OnDegenerate, why_singular: Callable[[Operator, int], str]) -> Recorder:
        """Who is told of the derivative's linear solves."""
        return Recorder(self.report, on_degenerate, self.tol, self._margin if self.m else None, why_singular)

    def solve(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """z (batch, n + p + m), and what is solved; what was found about it is in the report."""
        starts = starts_of(self._options.start, start, self._variable, dims, theta)
        size, k, _ = starts.shape
        many = repeated(dims, theta, k)
        first = starts.reshape(size * k, self.n)
        found, iterations = self._searched(first, first, dims, many)
        good = found.distance <= self.tol
        kinds, _ = self._curvature(found)
        plain = (kinds == Kind.MINIMUM.code) | (kinds == Kind.UNKNOWN.code)
        # At a start that knows nothing of the solution, and has a gradient of exactly zero, there may be a kink that
        # autograd does not see.
        self._blind = self._solver.restarts and start is None and not callable(self._options.start)
        settled = good & ((plain & ~self._still(found, iterations)) | (not self._minimises))
        if not bool(settled.all()):
            found, iterations, kinds, good = self._again(found, iterations, settled, first, dims, many)
        z, distance, flat = found.operator.z, found.distance, found.flat
        if k > 1:
            rows = self._chosen(z.reshape(size, k, -1), good.reshape(size, k), dims, theta)
            rows = rows + k * torch.arange(size, device=rows.device)
            z, distance, flat, iterations, kinds, good = (
                each[rows] for each in (z, distance, flat, iterations, kinds, good)
            )
        elif self._linear is self._options.linear:
            self.keep(found.operator, found.factor)
        self._last = z
        self.report.fill(good, torch.isfinite(z).all(-1), distance, iterations, kinds, flat)
        return z, good

    def _searched(
        self, start: torch.Tensor, origin: torch.Tensor, dims: Dims, theta: Tensors
    ) -> tuple[Iterates, torch.Tensor]:
        """The solver's points after polishing, and its iterations; ``origin`` is where the first search began."""
        mu = 0.0 if self._t is None else 1.0 / self._t
        found = self._solver.solve(self._program, start, dims, theta, p=self.p, m=self.inequalities, mu=mu)
        point = found.point
        z = point.z if self._t is None else torch.cat([point.y, point.lam], -1)
        operator = Operator(self.residual, dims, z, theta, found.known)
        return self._certified(operator, origin, self._options.polish), found.iterations

    def _certified(self, operator: Operator, origin: torch.Tensor, steps: int) -> Iterates:
        """The points after so many Newton steps, those beyond a barrier infinitely far from a solution."""
        points = certified(operator, self._linear, start=origin, steps=steps, tol=self.tol)
        if self._t is None or not self.inequalities:
            return points
        # Beyond the barrier its gradient is zero somewhere too.
        _, _, g = self._program.values(operator.dims, points.operator.z[:, : self.n], operator.theta)
        return replace(points, distance=torch.where((g < 0).all(-1), points.distance, torch.inf))

    def _still(self, found: Iterates, iterations: torch.Tensor) -> torch.Tensor:
        """Where the search has not left a start that knows nothing of the solution, (batch,)."""
        if not self._blind:
            return torch.zeros_like(iterations, dtype=torch.bool)
        return (iterations == 0) & (found.operator.value() == 0).all(-1)

    def _curvature(self, found: Iterates) -> tuple[torch.Tensor, torch.Tensor]:
        matrix = getattr(found.factor, "matrix", None)
        if matrix is None:
            unknown = torch.full(found.distance.shape, Kind.UNKNOWN.code, device=found.distance.device)
            return unknown, torch.zeros_like(found.operator.z[:, None, : self.n])
        jacobian = matrix[:, self.n :, : self.n]
        kinds, direction = kind_of(matrix[:, : self.n, : self.n], jacobian)
        kinds = torch.where(found.flat, Kind.DEGENERATE.code, kinds)
        return kinds, found.factor.right[:, None, : self.n] * direction

    def _again(
        self,
        found: Iterates,
        iterations: torch.Tensor,
        settled: torch.Tensor,
        origin: torch.Tensor,
        dims: Dims,
        theta: Tensors,
    ) -> tuple[Iterates, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Go on where no solution was found, in units of the point reached, and from beside points that are no minima.

        Returns:
            The points, the iterations, their kinds, and which are solutions.
        """
        z, distance, counts = found.operator.z.clone(), found.distance.clone(), iterations.clone()
        flat = found.flat.clone()
        kinds, _ = self._curvature(found)
        good = settled.clone()
        rows = torch.nonzero(~settled).squeeze(-1)
        if len(rows) < len(z):
            some = Operator(self.residual, dims, z[rows], take(dims, theta, rows))
            found = self._certified(some, origin[rows], 0)
        restarts = RESTARTS if self._solver.restarts else 0
        for number in range(restarts + 1):
            here = take(dims, theta, rows)
            if self._solver.restarts:
                found = self._leapt(found, origin[rows], dims, here)
            near = found.distance <= self.tol
            kind, direction = self._curvature(found)
            kind = torch.where(near, kind, Kind.UNKNOWN.code)
            y, falls = found.operator.z[:, : self.n], torch.zeros_like(near)
            still = self._still(found, counts[rows])
            known = near & ((kind != Kind.MINIMUM.code) | still) & (kind != Kind.UNKNOWN.code)
            if self._minimises and bool(known.any()):
                still = still & (kind == Kind.MINIMUM.code)
                away = torch.where(still.unsqueeze(-1), irregular_weights(y), y - origin[rows])
                direction = torch.where((found.flat | still)[:, None, None], away.unsqueeze(1), direction)
                for each in direction.unbind(1):
                    beside, lower = downhill(self._conditions, self._point(found), each, dims, here)
                    lower = lower & known & ~falls
                    y, falls = torch.where(lower.unsqueeze(-1), beside, y), falls | lower
                saddle = Kind.SADDLE.code
                kind = torch.where(falls & (kind != Kind.MAXIMUM.code), saddle, kind)
                if self.m:
                    # Weakly active inequalities bar the ways down.
                    kind = torch.where(known & ~falls & (kind == saddle), Kind.DEGENERATE.code, kind)
            fine = near & ~falls
            if self._minimises:
                fine = fine & (kind != Kind.SADDLE.code) & (kind != Kind.MAXIMUM.code)
            z[rows], distance[rows], kinds[rows], good[rows] = found.operator.z, found.distance, kind, fine
            flat[rows] = found.flat
            more = torch.nonzero(~fine & torch.isfinite(y).all(-1)).squeeze(-1)
            if not len(more):
                break
            rows, start = rows[more], y[more]
            if number < restarts:
                found, steps = self._searched(start, origin[rows], dims, take(dims, theta, rows))
                counts[rows] += steps
        operator = Operator(self.residual, dims, z, theta)
        factor = self._linear.init(operator, symmetric=True)
        return Iterates(operator, factor, distance, flat), counts, kinds, good

    def _leapt(self, found: Iterates, origin: torch.Tensor, dims: Dims, theta: Tensors) -> Iterates:
        """Where points are no solutions, whole Newton steps from there if they lead to a minimum that is no higher.

        In a long curved valley a line search on the objective takes a thousand short steps instead.
        """
        near = found.distance <= self.tol
        if bool(near.all()) or not self._minimises:
            return found
        operator, linear = found.operator, self._linear
        for _ in range(LEAPS):
            factor = linear.init(operator, symmetric=True)
            move = linear.solve(factor, -operator.value(), transposed=False).solution
            operator = operator.at(torch.where(near.unsqueeze(-1), operator.z, stepped(operator.z, move)))
            if bool((move.abs() <= 1e-8 * operator.z.abs()).all()):
                break
        there = self._certified(operator, origin, 1)
        kind, _ = self._curvature(there)
        before, *_ = self._conditions.values(dims, found.operator.z[:, : self.n], theta)
        after, *_ = self._conditions.values(dims, there.operator.z[:, : self.n], theta)
        lower = (after <= before) | (self.p + self.m > 0)
        low = (kind == Kind.MINIMUM.code) | (kind == Kind.DEGENERATE.code)
        good = ~near & (there.distance <= self.tol) & low & lower
        if not bool(good.any()):
            return found
        both = torch.where(good.unsqueeze(-1), there.operator.z, found.operator.z)
        return self._certified(operator.at(both), origin, 0)

    def _point(self, found: Iterates) -> Point:
        return Point(*self.residual.split(found.operator.z))

    def dependence(self, batch: Batch) -> str:
        """What to say of dependent constraints at the end of the first element that has failed."""
        if not self.p or inside_transform():
            return ""
        first = self.report.failed[0]
        one = element(batch.dims, tuple(t.detach() for t in batch.tensors), first)
        rows = torch.func.jacrev(self._program.h)(self._last[first, : self.n], *one)
        rank = rank_of(rows) if bool(torch.isfinite(rows).all()) else self.p
        if rank == self.p:
            return ""
        return (
            f". The gradients of the {self.p} equalities of element {first} are dependent (rank {rank}): drop the "
            "redundant ones, or make them consistent"
        )

    def barrier_multipliers(self, y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """mu = -1 / (t g) of one element, where the barrier stands for the inequalities."""
        return -1.0 / ((self._t or 1.0) * self._program.g(y, *theta))

    def _margin(self, operator: Operator) -> torch.Tensor:
        """How far each element is from weak activity.

        An inequality is as far as the larger of -g, relative to what g changes over the lengths of the variables, and
        mu, relative to the slopes of f that it holds up.
        """
        point = Point(*self.residual.split(operator.z))
        found = self._program.quantities(operator.dims, point, operator.theta)
        far, mu = lengths(point.y, found), point.mu
        change = times(found.G.abs(), far)
        work = times(found.hessian.abs(), far) + found.slope.abs()
        each = found.G.abs() * far.unsqueeze(1)
        held = times(each, far * work)
        slack = found.g.abs() / torch.where(change > 0, change, 1.0)
        force = mu * each.square().sum(-1) / torch.where(held > 0, held, 1.0)
        return torch.maximum(slack, force).amin(-1)

    def _chosen(self, z: torch.Tensor, good: torch.Tensor, dims: Dims, theta: Tensors) -> torch.Tensor:
        """The index (batch,) of each element's solution among (batch, k, n) points."""
        size, k, _ = z.shape
        y = z[:, :, : self.n]
        f = torch.stack([self._program.values(dims, y[:, j], theta)[0] for j in range(k)], 1)
        best = torch.where(good, f, torch.inf).argmin(1)
        if self._options.choose is None:
            return best
        # A start that led nowhere stands for the best one, so that the choice is among stationary points only.
        index = torch.where(good, torch.arange(k, device=z.device), best.unsqueeze(1))
        y = torch.take_along_dim(y, index.unsqueeze(-1), 1).reshape(size, k, *self._variable)
        f = torch.take_along_dim(f, index, 1)
        choice = torch.func.vmap(self._options.choose, in_dims=(0, 0, *dims))(y, f, *theta)
        return torch.take_along_dim(index, choice.reshape(size, 1), 1).squeeze(1)
