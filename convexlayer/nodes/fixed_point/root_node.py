"""RootNode: a root y(theta) of R(y, theta) = 0, differentiated by the implicit function theorem.

dy/dtheta = -R_y^-1 R_theta        (Dini's theorem; Gould, slides on differentiable optimisation, 2026)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, final

import torch

from convexlayer.arguments import check_integer
from convexlayer.errors import FailedElementsError, ProblemError
from convexlayer.nodes.autodiff.batch import (
    Batch,
    Dims,
    Shape,
    Tensors,
    flatten_warm_start,
    repeat_elements,
    without_autocast,
)
from convexlayer.nodes.autodiff.captured_tensors import inspect_function
from convexlayer.nodes.declarative.initial_points import initial_points
from convexlayer.nodes.declarative.node import flat_function
from convexlayer.nodes.declarative.node_options import NodeOptions
from convexlayer.nodes.declarative.nonlinear_program import Function
from convexlayer.nodes.implicit.derivative_check import DerivativeCheck
from convexlayer.nodes.implicit.equation import Equation, Solution, solve_implicitly
from convexlayer.nodes.implicit.error_estimate import polish
from convexlayer.nodes.implicit.newton import TOL_EXPONENT, newton
from convexlayer.nodes.implicit.node_report import DegeneracyPolicy, FailurePolicy, NodeReport
from convexlayer.nodes.implicit.operator import AbstractResidual, Operator
from convexlayer.runtime.graph_breaks import outside_graphs

__all__ = ["RootNode"]


@final
class RootNode(torch.nn.Module):
    """theta -> y with R(y, theta) = 0, the root to which Newton's method converges from the start.

        circle = RootNode(lambda y, x: x**2 + y**2 - 1, (), [()], options=NodeOptions(start=torch.tensor(1.0)))
        y = circle(torch.tensor(0.6))          # 0.8, with dy/dx = -x / y = -0.75

    Requirements on functions and parameters, and supported transforms, are those of ``AbstractNode``.

    Args:
        residual: R of one element, R(y, *parameters) of y's shape.
        variable: shape of y; () for a scalar.
        parameters: shapes of the parameters, -1 for any size.
        options: start, linear solver (for unsymmetric systems: ``Dense()``, ``GMRES()``), tolerances, and failure
            policies. Of several starts the first that converges is taken, unless ``choose`` selects another, which
            receives |R| in the place of f.
        max_iter: largest number of Newton iterations.

    Raises:
        ProblemError: there are no parameters, a policy is unknown, or ``max_iter`` is negative.
    """

    def __init__(
        self,
        residual: Function,
        variable: Shape,
        parameters: Sequence[Shape],
        *,
        options: NodeOptions | None = None,
        max_iter: int = 100,
    ) -> None:
        super().__init__()
        if not parameters:
            raise ProblemError("expected at least one parameter shape: a node is a function of its parameters")
        check_integer("max_iter", max_iter, least=0)
        options = options or NodeOptions()
        self.residual, self._variable, self.shapes = residual, tuple(variable), [tuple(s) for s in parameters]
        self._options, self._max_iter = options, max_iter
        self._seen: set[Any] = set()
        self._on_failure = FailurePolicy(options.on_failure)
        self._on_degenerate = DegeneracyPolicy(options.on_degenerate)

    @outside_graphs
    def forward(self, *parameters: torch.Tensor, warm_start: torch.Tensor | None = None) -> torch.Tensor:
        """Return y (*variable), or (batch, *variable) if any parameter has a batch axis.

        Args:
            parameters: the parameters.
            warm_start: an earlier y that replaces the start; one of another batch size is ignored with a warning.

        Raises:
            ShapeError: shapes or batch sizes do not fit.
            ProblemError: the residual does not have y's shape, or cannot be batched.
            FailedElementsError: elements have no root, under ``on_failure="raise"``.
        """
        return self.solve(*parameters, warm_start=warm_start)[0]

    @outside_graphs
    def solve(
        self, *parameters: torch.Tensor, warm_start: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, NodeReport]:
        """Return y and the report, which backward passes complete."""
        batch = Batch.of(self.shapes, parameters)
        with without_autocast(batch.tensors[0]):
            return self._solve(batch, warm_start)

    def _solve(self, batch: Batch, warm_start: torch.Tensor | None) -> tuple[torch.Tensor, NodeReport]:
        residual, report = _Residual(flat_function(self.residual, self._variable), prod(self._variable)), NodeReport()
        like = batch.tensors[0]
        zero = like.new_zeros(1, prod(self._variable))
        _, captured = inspect_function(residual, (0, *batch.dims), zero, *batch.tensors, seen=self._seen)
        tol = self._options.tolerance(like.dtype)
        recorder = DerivativeCheck(report, self._on_degenerate, tol, None, _singular_message)
        solver = partial(self._search, residual, report, tol)
        start = flatten_warm_start(warm_start, self._variable, batch)
        equation = Equation(residual, solver, self._options.linear, recorder)
        y, solved = solve_implicitly(equation, batch, start, captured)
        y = self._on_failure.masked(y, solved, report)
        output = batch.unbatched(y.reshape(-1, *self._variable))
        if self._on_failure.choice == "raise" and not report.all_solved:
            message = self._on_failure.message(report, tol)
            raise FailedElementsError(message, indices=report.failed, outputs=(output,), report=report)
        return output, report

    def _search(
        self,
        residual: AbstractResidual,
        report: NodeReport,
        tol: float,
        warm: torch.Tensor | None,
        dims: Dims,
        theta: Tensors,
    ) -> Solution:
        """Find roots (batch, n); returns them and the mask of those that converged."""
        starts = initial_points(self._options.start, warm, self._variable, dims, theta)
        size, k, n = starts.shape
        theta_repeated = repeat_elements(dims, theta, k)
        flat, linear = starts.reshape(size * k, n), self._options.linear.accurate()
        precision = torch.finfo(flat.dtype).eps ** TOL_EXPONENT
        operator, count = newton(
            Operator(residual, dims, flat, theta_repeated), linear, tol=precision, max_iter=self._max_iter
        )
        found = polish(operator, linear, start=flat, steps=self._options.polish, tol=tol)
        converged = (found.distance <= tol).reshape(size, k)
        rows = converged.int().argmax(-1)
        if self._options.choose is not None and k > 1:
            y = found.operator.z.reshape(size, k, *self._variable)
            left = torch.linalg.vector_norm(found.operator.value(), dim=-1).reshape(size, k)
            left = torch.where(converged, left, torch.inf)
            rows = torch.func.vmap(self._options.choose, in_dims=(0, 0, *dims))(y, left, *theta).reshape(size)
        rows = rows + k * torch.arange(size, device=rows.device)
        z = found.operator.z[rows]
        report.record(
            converged.reshape(-1)[rows],
            torch.isfinite(z).all(-1),
            found.distance[rows],
            count[rows],
            flat=found.flat[rows],
        )
        return z, converged.reshape(-1)[rows]


@final
class _Residual(AbstractResidual):
    """R of flat vectors (n,)."""

    def __init__(self, function: Function, n: int) -> None:
        self._function, self._n = function, n

    def __call__(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        value = self._function(z, *theta)
        if not isinstance(value, torch.Tensor) or value.numel() != self._n or value.dtype != z.dtype:
            received = (
                f"{tuple(value.shape)} in {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
            )
            raise ProblemError(
                f"expected the residual of one element as {self._n} numbers in {z.dtype}, got {received}"
            )
        return value.reshape(-1)


def _singular_message(operator: Operator, index: int) -> str:
    return "dR/dy is singular at the root: it is a multiple root, or not isolated"
