"""The contract of a node that is given by torch functions, and all that such nodes share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import final

import torch

from convexlayer.errors import FailedElementsError, ProblemError, ShapeError
from convexlayer.nodes.batch import Batch, Dims, Shape, Tensors
from convexlayer.nodes.certify import distance, polished, solved
from convexlayer.nodes.forward import AbstractForwardSolver
from convexlayer.nodes.implicit import Equation, solve_implicitly
from convexlayer.nodes.linear import AbstractLinearSolver, Dense, Operator
from convexlayer.nodes.nonlinear import Function, NonlinearProgram, Point
from convexlayer.nodes.report import NodeReport, OnDegenerate, OnFailure, Recorder
from convexlayer.solution import Status

__all__ = ["AbstractNode", "Choose", "NodeOptions", "Start", "shaped"]

Start = torch.Tensor | Callable[..., torch.Tensor] | None
"""Where the solver starts: (*variable) or several, (k, *variable); or a function of the parameters of one element that
gives either; or None for zeros."""

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
        tol: largest distance |z - z*| / (1 + |z|), as far as it can be estimated, at which a point counts as a
            solution; None for 1e-6 in float64, 1e-3 in float32.
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
    which torch.func.vmap batches: no data-dependent branches. The work is done in the dtype and on the device of the
    parameters. Works under torch.no_grad, torch.func (vmap, vjp, jvp, jacrev, jacfwd, hessian), gradcheck and
    gradgradcheck. Tensors with requires_grad that a function uses must be parameters.

    Args:
        program: the lower problem of one element.
        variable: shape of y.
        parameters: shapes of the parameters, -1 for any size.
        solver: solves the lower problem.
        t: the node gives the point of the central path with barrier parameter 1 / t; None for the solution.
        options: the rest; None for the defaults.
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
        self._program, self._variable, self.shapes = program, tuple(variable), [tuple(s) for s in parameters]
        self._solver, self._options, self._t = solver, options, t
        self._conditions = program if t is None else program.smoothed(t)
        self._on_failure, self._on_degenerate = OnFailure(options.on_failure), OnDegenerate(options.on_degenerate)

    @abstractmethod
    def _why_singular(self, operator: Operator, element: int) -> str:
        """What to say of a singular K."""

    def forward(self, *parameters: torch.Tensor, warm_start: torch.Tensor | None = None) -> torch.Tensor:
        """y (*variable), or (batch, *variable) if any parameter has a batch axis.

        Args:
            parameters: the parameters.
            warm_start: an earlier y, from which the solver starts instead.

        Raises:
            ShapeError: shapes or batch sizes do not fit.
            ProblemError: a function does not return what it should.
            FailedElementsError: elements without a stationary point, under ``on_failure="raise"``.
        """
        return self.solve(*parameters, warm_start=warm_start)[0].y

    def solve(self, *parameters: torch.Tensor, warm_start: torch.Tensor | None = None) -> tuple[Point, NodeReport]:
        """y and the multipliers, all differentiable, and the report, which the backward pass completes."""
        batch = Batch.of(self.shapes, parameters)
        call = _Call(self._program, self._conditions, self._solver, self._options, self._variable, self._t, batch)
        equation = Equation(
            call.residual,
            call.solve,
            self._options.linear,
            symmetric=True,
            judge=Recorder(call.report, self._on_degenerate, call.tol, call.margin, self._why_singular),
        )
        z = solve_implicitly(equation, batch, _warm(warm_start, self._variable, batch))
        operator = Operator(call.residual, batch.dims, z.detach(), tuple(t.detach() for t in batch.tensors))
        fine = solved(*distance(operator), call.tol).unsqueeze(-1)
        z = torch.where(fine, z, z.detach() if self._on_failure.choice == "keep" else torch.nan)
        n, p = call.n, call.p
        y, lam, mu = z[:, :n].reshape(-1, *self._variable), z[:, n : n + p], z[:, n + p :]
        if self._t is not None and call.inequalities:
            mu = torch.func.vmap(call.barrier_multipliers, in_dims=(0, *batch.dims))(z[:, :n], *batch.tensors)
        point = Point(batch.unbatched(y), batch.unbatched(lam), batch.unbatched(mu))
        if call.report.failed and self._on_failure.choice == "raise":
            message = self._on_failure.message(call.report, call.tol)
            raise FailedElementsError(message, indices=call.report.failed, outputs=point, report=call.report)
        return point, call.report


@final
class _Call:
    """One call: what is solved, and the report that is filled meanwhile."""

    def __init__(
        self,
        program: NonlinearProgram,
        conditions: NonlinearProgram,
        solver: AbstractForwardSolver,
        options: NodeOptions,
        variable: Shape,
        t: float | None,
        batch: Batch,
    ) -> None:
        like = batch.tensors[0]
        self._program, self._conditions, self._solver, self._options = program, conditions, solver, options
        self._variable, self._t = variable, t
        self.n = prod(variable)
        first = tuple(t[0] if dim == 0 else t for t, dim in zip(batch.tensors, batch.dims, strict=True))
        self.p, self.inequalities = program.sizes(like.new_zeros(self.n), *first)
        self.m = 0 if t is not None else self.inequalities
        self.residual = conditions.optimality(self.p, self.m)
        self.tol = options.tol if options.tol is not None else (1e-6 if like.dtype == torch.float64 else 1e-3)
        self.report = NodeReport()

    def solve(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> torch.Tensor:
        """z (batch, n + p + m); what was found about it is in the report."""
        starts = self._starts(start, dims, theta)
        size, k, _ = starts.shape
        many = tuple(t.repeat_interleave(k, 0) if dim == 0 else t for t, dim in zip(theta, dims, strict=True))
        flat = starts.reshape(size * k, self.n)
        mu = 0.0 if self._t is None else 1.0 / self._t
        try:
            found = self._solver.solve(self._program, flat, dims, many, p=self.p, m=self.inequalities, mu=mu)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise ProblemError(
                f"a function of the node cannot be batched by torch.func.vmap: {str(error).splitlines()[0]} Write it "
                "without data-dependent branches, .item() and in-place writes (torch.where selects)"
            ) from error
        point = found.point
        z = point.z if self._t is None else torch.cat([point.y, point.lam], -1)
        safe = torch.cat([flat, z.new_zeros(size * k, self.p + self.m)], -1)
        finite = torch.isfinite(z).all(-1)
        operator = Operator(self.residual, dims, torch.where(finite.unsqueeze(-1), z, safe), many)
        operator, estimate, residual = polished(
            operator, self._options.linear, symmetric=True, steps=self._options.polish
        )
        good = solved(estimate, residual, self.tol) & finite
        rows = self._chosen(operator.z.reshape(size, k, -1), good.reshape(size, k), dims, theta)
        rows = rows + k * torch.arange(size, device=rows.device)
        self.report.distance = torch.where(finite, estimate, torch.inf)[rows]
        self.report.iterations = found.iterations[rows]
        self.report.status = tuple(
            Status.OPTIMAL if is_good else Status.ITERATION_LIMIT if is_finite else Status.NUMERICAL_ERROR
            for is_good, is_finite in zip(good[rows].tolist(), finite[rows].tolist(), strict=True)
        )
        return operator.z[rows]

    def barrier_multipliers(self, y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """mu = -1 / (t g) of one element, where the barrier stands for the inequalities."""
        return -1.0 / ((self._t or 1.0) * self._program.g(y, *theta))

    def margin(self, operator: Operator) -> torch.Tensor:
        """The smallest |g + mu| / (1 + |z|) of each element, infinite without inequalities."""
        z = operator.z
        if not self.m:
            return torch.full_like(z[:, 0], torch.inf)
        _, _, g = self._program.values(operator.dims, z[:, : self.n], operator.theta)
        return (g + z[:, self.n + self.p :]).abs().amin(-1) / (1.0 + z.abs().amax(-1))

    def _starts(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> torch.Tensor:
        """(batch, k, n)."""
        size = next((t.shape[0] for t, dim in zip(theta, dims, strict=True) if dim == 0), 1)
        own = self._options.start
        if start is not None:
            return start.unsqueeze(1)
        if own is None:
            return theta[0].new_zeros(size, 1, self.n)
        if isinstance(own, torch.Tensor):
            given = own.to(theta[0]).unsqueeze(0)
        elif any(dim == 0 for dim in dims):
            given = torch.func.vmap(own, in_dims=dims)(*theta)
        else:
            given = own(*theta).unsqueeze(0)
        shape = tuple(given.shape[1:])
        if shape[len(shape) - len(self._variable) :] != self._variable or len(shape) > len(self._variable) + 1:
            raise ShapeError(f"expected a start of shape {self._variable}, or several behind one axis, got {shape}")
        several = len(shape) > len(self._variable)
        return given.reshape(given.shape[0], shape[0] if several else 1, self.n).expand(size, -1, -1).detach()

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


def _warm(warm_start: torch.Tensor | None, variable: Shape, batch: Batch) -> torch.Tensor | None:
    """An earlier y as (batch, n)."""
    if warm_start is None:
        return None
    if tuple(warm_start.shape) not in (variable, (batch.size, *variable)):
        raise ShapeError(f"warm_start: expected {variable} or {(batch.size, *variable)}, got {tuple(warm_start.shape)}")
    return warm_start.detach().to(batch.tensors[0]).expand(batch.size, *variable).reshape(batch.size, -1)


def shaped(function: Function, variable: Shape) -> Function:
    """A function of y (*variable) as one of the vector (n,)."""
    if len(variable) == 1:
        return function
    return lambda y, *theta: function(y.reshape(variable), *theta)
