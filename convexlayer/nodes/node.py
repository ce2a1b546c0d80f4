"""The contract of a node that is given by torch functions, and all that such nodes share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, final

import torch

from convexlayer.errors import FailedElementsError, ProblemError
from convexlayer.nodes.batch import Batch, Dims, Shape, Tensors, first_iterates, without_autocast
from convexlayer.nodes.calculus import inside_transform
from convexlayer.nodes.certify import Iterates, certified
from convexlayer.nodes.curvature import KINDS, Kind, kind_of
from convexlayer.nodes.forward import AbstractForwardSolver, take
from convexlayer.nodes.implicit import Equation, examined, solve_implicitly
from convexlayer.nodes.linear import AbstractLinearSolver, Dense, Operator
from convexlayer.nodes.nonlinear import Function, NonlinearProgram, Optimality, Point, lengths, rank_of
from convexlayer.nodes.rays import downhill
from convexlayer.nodes.report import NodeReport, OnDegenerate, OnFailure, Recorder
from convexlayer.nodes.starts import Start, starts_of

__all__ = ["AbstractNode", "Choose", "NodeOptions", "shaped"]

RESTARTS = 4
"""How often a search goes on from where it ended without a solution."""

LEAPS = 20
"""Newton steps without a line search, where one with it has not come to an end."""

Choose = Callable[..., torch.Tensor]
"""(y (k, *variable), f (k,), *theta) -> the index of the stationary point that is wanted, of one element."""


@final
@dataclass(frozen=True)
class NodeOptions:
    """What all nodes that are given by functions can be told.

    Attributes:
        start: where the solver starts.
        choose: which of the points found from several starts is the solution; by default the one with the smallest
            objective. Starts from which no stationary point was found do not take part.
        linear: solves the linear systems of the derivative, ``Dense()`` by default.
        polish: at most so many steps of Newton's method after the solver.
        tol: largest relative error of a component of y and the multipliers, as far as the Newton step tells it, at
            which a point counts as a solution; None for 1e-6 in float64, 1e-3 in float32.
        on_failure: what to do when an element has no solution: ``raise`` a FailedElementsError that carries the others,
            return ``nan`` for it, or ``keep`` the last iterate. The gradients of such elements are zero.
        on_degenerate: what to do when a derivative may not exist or is inaccurate: ``warn`` (once a node), ``report``
            only, or ``raise`` a DerivativeError.
    """

    start: Start = None
    choose: Choose | None = None
    linear: AbstractLinearSolver = field(default_factory=Dense)
    polish: int = 3
    tol: float | None = None
    on_failure: str = "raise"
    on_degenerate: str = "warn"


class AbstractNode(torch.nn.Module, ABC):
    """theta -> y, a stationary point of a lower problem, differentiable as often as its functions allow.

        node = ArgminNode(f, variable=(3,), parameters=[(4, 3), (4,)])
        y = node(A, b)

    Each parameter has its own shape or one leading batch axis; the two mix by broadcasting, and the gradient of a
    shared parameter is the sum over the batch. The functions are torch functions of one element, f(y, *parameters),
    which torch.func.vmap batches: no data-dependent branches. The work is done in the dtype, float32 or float64, and on
    the device of the parameters. Works under torch.no_grad, autocast, torch.func (vmap, vjp, jvp, jacrev, jacfwd,
    hessian), gradcheck and gradgradcheck; torch.compile breaks its graph around it; a node pickles if its functions do.

    Other tensors with requires_grad that a function uses, as the weights of a module, get their first derivatives too.
    A function that is a torch.nn.Module becomes a submodule of the node.

    Args:
        program: the lower problem of one element.
        variable: shape of y.
        parameters: shapes of the parameters, -1 for any size.
        solver: solves the lower problem.
        t: the node gives the point of the central path with barrier parameter 1 / t; None for the solution.
        options: the rest; None for the defaults.

    Attributes:
        program: as given.
        variable: as given.
        shapes: of the parameters.
        solver: as given.
        options: as given, or the defaults.
        t: as given.
    """

    def __init__(
        self,
        program: NonlinearProgram,
        variable: Shape,
        parameters: Sequence[Shape],
        solver: AbstractForwardSolver,
        options: NodeOptions | None,
        *,
        t: float | None = None,
    ) -> None:
        super().__init__()
        options = options or NodeOptions()
        if not parameters:
            raise ProblemError("expected at least one parameter shape: a node is a function of its parameters")
        if t is not None and not t > 0:
            raise ProblemError(f"t must be positive, got {t}")
        self.program, self.variable, self.shapes = program, tuple(variable), [tuple(s) for s in parameters]
        self.solver, self.options, self.t = solver, options, t
        self._conditions = program if t is None else program.smoothed(t)
        self._on_failure, self._on_degenerate = OnFailure(options.on_failure), OnDegenerate(options.on_degenerate)
        self._known: set[Any] = set()
        for name, function in program.functions.items():
            while not isinstance(function, torch.nn.Module) and hasattr(function, "function"):
                function = function.function
            if isinstance(function, torch.nn.Module):
                self.add_module(name, function)

    minimises: ClassVar[bool] = True
    """Whether a solution must be a minimum, and not any stationary point."""

    @abstractmethod
    def _why_singular(self, operator: Operator, element: int) -> str:
        """What to say of a singular K."""

    @torch.compiler.disable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def forward(self, *parameters: torch.Tensor, warm_start: torch.Tensor | None = None) -> torch.Tensor:
        """y (*variable), or (batch, *variable) if any parameter has a batch axis.

        Args:
            parameters: the parameters.
            warm_start: an earlier y, from which the solver starts instead; one of another batch size, as the last batch
                of a DataLoader has it, is left out with a warning.

        Raises:
            ShapeError: shapes or batch sizes do not fit.
            ProblemError: a function does not return what it should.
            FailedElementsError: elements without a stationary point, under ``on_failure="raise"``.
        """
        return self.solve(*parameters, warm_start=warm_start)[0].y

    @torch.compiler.disable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def solve(self, *parameters: torch.Tensor, warm_start: torch.Tensor | None = None) -> tuple[Point, NodeReport]:
        """y and the multipliers, all differentiable, and the report, which the backward pass completes."""
        batch = Batch.of(self.shapes, parameters)
        with without_autocast(batch.tensors[0]):
            return self._solve(batch, warm_start)

    def _solve(self, batch: Batch, warm_start: torch.Tensor | None) -> tuple[Point, NodeReport]:
        start = first_iterates(warm_start, self.variable, batch)
        call = _Call(self, batch)
        equation = Equation(
            call.residual, call.solve, self.options.linear, call.judge(self._on_degenerate, self._why_singular)
        )
        call.keep = equation.keep
        z, fine = solve_implicitly(equation, batch, start, call.captured)
        if not call.report.all_solved:
            z = torch.where(fine.unsqueeze(-1), z, z.detach() if self._on_failure.choice == "keep" else torch.nan)
        n, p = call.n, call.p
        y, lam, mu = z[:, :n].reshape(-1, *self.variable), z[:, n : n + p], z[:, n + p :]
        if self.t is not None and call.inequalities:
            mu = torch.func.vmap(call.barrier_multipliers, in_dims=(0, *batch.dims))(z[:, :n], *batch.tensors)
        point = Point(batch.unbatched(y), batch.unbatched(lam), batch.unbatched(mu))
        if self._on_failure.choice == "raise" and not call.report.all_solved:
            message = self._on_failure.message(call.report, call.tol) + call.dependence(batch)
            raise FailedElementsError(message, indices=call.report.failed, outputs=point, report=call.report)
        return point, call.report


@final
class _Call:
    """One call: what is solved, and the report that is filled meanwhile."""

    def __init__(self, node: AbstractNode, batch: Batch) -> None:
        like = batch.tensors[0]
        self._program, self._conditions, self._solver = node.program, node._conditions, node.solver
        self._options, self._variable, self._t = node.options, node.variable, node.t
        self._minimises = node.minimises
        self.n = prod(self._variable)
        y = like.new_zeros(1, self.n)
        (_, h, g), self.captured = examined(
            self._program.checked, (0, *batch.dims), y, *batch.tensors, known=node._known
        )
        self.p, self.inequalities = h.shape[-1], g.shape[-1]
        self.m = 0 if self._t is not None else self.inequalities
        self.residual = Optimality(self._conditions, self.p, self.m)
        own = 1e-6 if like.dtype == torch.float64 else 1e-3
        self.tol = own if self._options.tol is None else self._options.tol
        self.report, self.last = NodeReport(), like.new_empty(0)
        self.keep: Callable[[Operator, object], None] = lambda operator, factor: None

    def judge(self, on_degenerate: OnDegenerate, why_singular: Callable[[Operator, int], str]) -> Recorder:
        """Who is told of the derivative's linear solves."""
        return Recorder(self.report, on_degenerate, self.tol, self.margin, why_singular)

    def solve(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """z (batch, n + p + m), and what is solved; what was found about it is in the report."""
        starts = starts_of(self._options.start, start, self._variable, dims, theta)
        size, k, _ = starts.shape
        many = (
            tuple(t.repeat_interleave(k, 0) if dim == 0 else t for t, dim in zip(theta, dims, strict=True))
            if k > 1
            else theta
        )
        flat = starts.reshape(size * k, self.n)
        found, iterations = self._searched(flat, flat, dims, many)
        good = found.distance <= self.tol
        kinds, _ = self._curvature(found)
        plain = (kinds == KINDS.index(Kind.MINIMUM)) | (kinds == KINDS.index(Kind.UNKNOWN))
        if not bool((good & (plain | (not self._minimises))).all()):
            found, iterations, kinds, good = self._again(found, iterations, flat, dims, many)
        z, distance, flat = found.operator.z, found.distance, found.flat
        if k > 1:
            rows = self._chosen(z.reshape(size, k, -1), good.reshape(size, k), dims, theta)
            rows = rows + k * torch.arange(size, device=rows.device)
            z, distance, flat, iterations, kinds, good = (
                each[rows] for each in (z, distance, flat, iterations, kinds, good)
            )
        else:
            self.keep(found.operator, found.factor)
        self.last = z
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
        linear = self._options.linear.accurate()
        return certified(operator, linear, start=origin, steps=self._options.polish, tol=self.tol), found.iterations

    def _curvature(self, found: Iterates) -> tuple[torch.Tensor, torch.Tensor]:
        matrix = getattr(found.factor, "matrix", None)
        if matrix is None:
            unknown = torch.full(found.distance.shape, KINDS.index(Kind.UNKNOWN), device=found.distance.device)
            return unknown, torch.zeros_like(found.operator.z[:, : self.n])
        jacobian = matrix[:, self.n :, : self.n]
        kinds, direction = kind_of(matrix[:, : self.n, : self.n], jacobian)
        kinds = torch.where(found.flat, KINDS.index(Kind.DEGENERATE), kinds)
        return kinds, found.factor.right[:, : self.n] * direction

    def _again(
        self, found: Iterates, iterations: torch.Tensor, origin: torch.Tensor, dims: Dims, theta: Tensors
    ) -> tuple[Iterates, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Go on where no solution was found, in units of the point reached, and from beside points that are no minima.

        Returns:
            The points, the iterations, their kinds, and which are solutions.
        """
        z, distance, counts = found.operator.z.clone(), found.distance.clone(), iterations.clone()
        flat = found.flat.clone()
        kinds = torch.full_like(iterations, KINDS.index(Kind.UNKNOWN))
        good = torch.zeros_like(distance, dtype=torch.bool)
        rows = torch.arange(len(z), device=z.device)
        for number in range(RESTARTS + 1 if self._solver.restarts else 1):
            here = take(dims, theta, rows)
            if self._solver.restarts:
                found = self._leapt(found, origin[rows], dims, here)
            near = found.distance <= self.tol
            kind, direction = self._curvature(found)
            kind = torch.where(near, kind, KINDS.index(Kind.UNKNOWN))
            y, falls = found.operator.z[:, : self.n], torch.zeros_like(near)
            known = (kind != KINDS.index(Kind.MINIMUM)) & (kind != KINDS.index(Kind.UNKNOWN))
            if self._minimises and bool(known.any()):
                direction = torch.where(found.flat.unsqueeze(-1), y - origin[rows], direction)
                beside, falls = downhill(self._conditions, self._point(found), direction, dims, here)
                falls = falls & known
                kind = torch.where(falls & (kind == KINDS.index(Kind.DEGENERATE)), KINDS.index(Kind.SADDLE), kind)
                y = torch.where(falls.unsqueeze(-1), beside, y)
            fine = near & ~falls
            if self._minimises:
                fine = fine & (kind != KINDS.index(Kind.SADDLE)) & (kind != KINDS.index(Kind.MAXIMUM))
            z[rows], distance[rows], kinds[rows], good[rows] = found.operator.z, found.distance, kind, fine
            flat[rows] = found.flat
            more = torch.nonzero(~fine & torch.isfinite(y).all(-1)).squeeze(-1)
            if not len(more):
                break
            rows, start = rows[more], y[more]
            if number < RESTARTS and self._solver.restarts:
                found, steps = self._searched(start, origin[rows], dims, take(dims, theta, rows))
                counts[rows] += steps
        operator = Operator(self.residual, dims, z, theta)
        factor = self._options.linear.init(operator, symmetric=True)
        return Iterates(operator, factor, distance, flat), counts, kinds, good

    def _leapt(self, found: Iterates, origin: torch.Tensor, dims: Dims, theta: Tensors) -> Iterates:
        """Where points are no solutions, whole Newton steps from there if they lead to a minimum that is no higher.

        In a long curved valley a line search on the objective takes a thousand short steps instead.
        """
        near = found.distance <= self.tol
        if bool(near.all()) or not self._minimises:
            return found
        operator, linear = found.operator, self._options.linear.accurate()
        for _ in range(LEAPS):
            factor = linear.init(operator, symmetric=True)
            move = linear.solve(factor, -operator.value(), transposed=False).solution
            operator = operator.at(torch.where(near.unsqueeze(-1), operator.z, operator.z + move))
            if bool((move.abs() <= 1e-8 * operator.z.abs()).all()):
                break
        there = certified(operator, linear, start=origin, steps=1, tol=self.tol)
        kind, _ = self._curvature(there)
        before, *_ = self._conditions.values(dims, found.operator.z[:, : self.n], theta)
        after, *_ = self._conditions.values(dims, there.operator.z[:, : self.n], theta)
        lower = (after <= before) | (self.p + self.m > 0)
        low = (kind == KINDS.index(Kind.MINIMUM)) | (kind == KINDS.index(Kind.DEGENERATE))
        good = ~near & (there.distance <= self.tol) & low & lower
        if not bool(good.any()):
            return found
        return certified(
            operator.at(torch.where(good.unsqueeze(-1), there.operator.z, found.operator.z)),
            linear,
            start=origin,
            steps=0,
            tol=self.tol,
        )

    def _point(self, found: Iterates) -> Point:
        return Point(*self.residual.split(found.operator.z))

    def dependence(self, batch: Batch) -> str:
        """What to say of dependent constraints at the end of the first element that has failed."""
        if not self.p or inside_transform():
            return ""
        element = self.report.failed[0]
        y, theta = self.last[element, : self.n], tuple(t.detach() for t in batch.tensors)
        one = tuple(t[element] if dim == 0 else t for t, dim in zip(theta, batch.dims, strict=True))
        rows = torch.func.jacrev(self._program.h)(y, *one)
        rank = rank_of(rows) if bool(torch.isfinite(rows).all()) else self.p
        if rank == self.p:
            return ""
        return (
            f". The gradients of the {self.p} equalities of element {element} are dependent (rank {rank}): drop the "
            "redundant ones, or make them consistent"
        )

    def barrier_multipliers(self, y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """mu = -1 / (t g) of one element, where the barrier stands for the inequalities."""
        return -1.0 / ((self._t or 1.0) * self._program.g(y, *theta))

    def margin(self, operator: Operator) -> torch.Tensor:
        """How far each element is from weak activity, infinite without inequalities.

        An inequality is as far as the larger of -g, relative to what g changes over the lengths of the variables, and
        mu, relative to the slopes of f that it holds up.
        """
        z = operator.z
        if not self.m:
            return torch.full_like(z[:, 0], torch.inf)
        point = Point(*self.residual.split(z))
        found = self._program.quantities(operator.dims, point, operator.theta)
        far, mu = lengths(point.y, found), point.mu
        change = (found.G.abs() @ far.unsqueeze(-1)).squeeze(-1)
        work = (found.hessian.abs() @ far.unsqueeze(-1)).squeeze(-1) + found.slope.abs()
        each = found.G.abs() * far.unsqueeze(1)
        held = (each @ (far * work).unsqueeze(-1)).squeeze(-1)
        slack = found.g.abs() / torch.where(change > 0, change, 1.0)
        force = mu * each.square().sum(-1) / torch.where(held > 0, held, 1.0)
        return torch.maximum(slack, force).amin(-1)

    def _chosen(self, z: torch.Tensor, good: torch.Tensor, dims: Dims, theta: Tensors) -> torch.Tensor:
        """The index (batch,) of each element's solution among (batch, k, n) points."""
        size, k, _ = z.shape
        if k == 1:
            return torch.zeros(size, dtype=torch.int64, device=z.device)
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


def shaped(function: Function, variable: Shape) -> Function:
    """A function of y (*variable) as one of the vector (n,)."""
    return function if len(variable) == 1 else _Shaped(function, variable)


@final
class _Shaped:
    """A function of y, called with the vector (n,)."""

    def __init__(self, function: Function, variable: Shape) -> None:
        self.function, self._variable = function, variable

    def __call__(self, y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return self.function(y.reshape(self._variable), *theta)
