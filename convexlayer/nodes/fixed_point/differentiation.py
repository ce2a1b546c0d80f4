"""Differentiation of fixed-point iterations: implicit, unrolled (reverse mode) or in forward mode.

Reference: Ochs, Ranftl, Brox and Pock 2016, sections 4.2 to 4.4; equations are numbered as there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch.autograd import forward_ad

from convexlayer.arguments import INTEGER, check_integer, check_kind, check_number
from convexlayer.errors import DerivativeError, ProblemError
from convexlayer.nodes.autodiff.batch import Batch, Dims, Tensors
from convexlayer.nodes.autodiff.captured_tensors import inspect_function
from convexlayer.nodes.autodiff.derivatives import apply_batched, inside_transform
from convexlayer.nodes.autodiff.first_order import attach_jacobian
from convexlayer.nodes.implicit.dense_lu import Dense
from convexlayer.nodes.implicit.derivative_check import DerivativeCheck
from convexlayer.nodes.implicit.equation import Equation, solve_implicitly
from convexlayer.nodes.implicit.error_estimate import rounding_error
from convexlayer.nodes.implicit.krylov import GMRES
from convexlayer.nodes.implicit.node_report import DegeneracyPolicy, NodeReport
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, AbstractResidual, Operator

__all__ = ["PEAK_DECAY", "AbstractDerivative", "ForwardMode", "Implicit", "Step", "Unrolled"]

PEAK_DECAY = 0.9
"""Decay per step of the largest earlier magnitude of a component, which convergence is relative to."""

MAX_DENSE_UNKNOWNS = 32
"""Number of unknowns up to which ``Dense`` is the default linear solver, above which ``GMRES`` is."""

TOL_FACTOR = 100.0
"""Default tolerance of a fixed point, in multiples of eps of the dtype; trades steps for accuracy."""

Step = Callable[..., torch.Tensor]
"""(x, *theta) of one element -> the next iterate, of x's shape, in torch operations that vmap can batch."""


class AbstractDerivative(ABC):
    """Number of iterations, and how their result is differentiated.

    Attributes:
        forgets_start: whether the result is independent of the start.
    """

    forgets_start: ClassVar[bool]

    @abstractmethod
    def run(
        self, step: Step, batch: Batch, start: torch.Tensor, on_degenerate: DegeneracyPolicy, *, keep_unconverged: bool
    ) -> tuple[torch.Tensor, torch.Tensor, NodeReport]:
        """Iterate from start (batch, n) with a step on vectors (n,).

        Args:
            step: one step.
            batch: the parameters.
            start: the first iterates.
            on_degenerate: policy for derivatives that may not exist.
            keep_unconverged: whether to differentiate iterates that have not converged too.

        Returns:
            x (batch, n), differentiable in theta; the mask of the differentiable elements, (batch,); and the report.
        """


@final
@dataclass(frozen=True)
class Implicit(AbstractDerivative):
    """Iterate to convergence, and differentiate the fixed-point equation x = A(x, theta), eq. 11.

        theta_bar = A_theta' u,    (I - A_x)' u = x_bar          (bars: cotangents)

    No iterate is stored. If the step is only Lipschitz, A_x is the derivative that autograd computes, and the formula
    holds wherever the step is differentiable at the fixed point.

    Attributes:
        linear: solver of the unsymmetric linear system: ``Dense()``, which also detects singular systems, or the
            iterative ``GMRES()`` and ``Neumann(terms)``; None for ``Dense()`` up to 32 unknowns, ``GMRES()`` above.
        tol: converged when |A(x) - x| <= tol |A(x)| in every component, or at rounding; None for 100 eps of the dtype.
            For components that converge to zero, earlier magnitudes count in the place of |A(x)|, decaying by 0.9 per
            step.
        max_iter: largest number of steps.
    """

    forgets_start: ClassVar[bool] = True

    linear: AbstractLinearSolver | None = None
    tol: float | None = None
    max_iter: int = 10_000

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ProblemError: the tolerance or the number of steps is negative or not a number.
        """
        if self.tol is not None:
            check_number("tol", self.tol, least=0)
        check_integer("max_iter", self.max_iter, least=0)

    def run(
        self, step: Step, batch: Batch, start: torch.Tensor, on_degenerate: DegeneracyPolicy, *, keep_unconverged: bool
    ) -> tuple[torch.Tensor, torch.Tensor, NodeReport]:
        """Iterate and attach the implicit derivative."""
        report = NodeReport()
        residual = _FixedPointResidual(step)

        def solver(given: torch.Tensor | None, dims: Dims, theta: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
            assert given is not None  # solve_implicitly passes the start
            x, solved = self._iterate(residual, given, dims, theta, report)
            return x, torch.isfinite(report.distance) if keep_unconverged else solved

        _, captured = inspect_function(step, (0, *batch.dims), start, *batch.tensors)
        recorder = DerivativeCheck(report, on_degenerate, self._tolerance(start), None, _singular_message)
        linear = self.linear or (Dense() if start.shape[-1] <= MAX_DENSE_UNKNOWNS else GMRES())
        x, solved = solve_implicitly(Equation(residual, solver, linear, recorder), batch, start, captured)
        return x, solved, report

    def _tolerance(self, x: torch.Tensor) -> float:
        return TOL_FACTOR * torch.finfo(x.dtype).eps if self.tol is None else self.tol

    def _iterate(
        self, residual: _FixedPointResidual, start: torch.Tensor, dims: Dims, theta: Tensors, report: NodeReport
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tol = self._tolerance(start)
        size = max([start.shape[0], *(t.shape[0] for t, dim in zip(theta, dims, strict=True) if dim is not None)])
        x = start.expand(size, *start.shape[1:])
        peak = x.abs()
        iterations = torch.full((size,), self.max_iter, dtype=torch.int64, device=x.device)
        solved = finished = torch.zeros(size, dtype=torch.bool, device=x.device)
        next_roundoff_check = 0  # first step of the next check against rounding
        for number in range(self.max_iter + 1):
            next_x = apply_batched(residual.step, (0, *dims), x, *theta)
            change, length = (next_x - x).abs(), next_x.abs()
            peak = torch.maximum(PEAK_DECAY * peak, length)
            small = change <= tol * peak  # false for NaN
            good = small.all(-1) if tol < torch.inf else torch.isfinite(next_x).all(-1)
            if number >= next_roundoff_check and not bool(good.all()):
                near = change.amax(-1) <= tol * length.amax(-1)
                if bool((near & ~good).any()):
                    small = small | (change <= rounding_error(Operator(residual, dims, x, theta)))
                    good, next_roundoff_check = good | small.all(-1), 2 * number + 1
            ended = good | ~torch.isfinite(change).all(-1)
            if number == self.max_iter or bool((ended | finished).all()):
                iterations = torch.where(finished | ~ended, iterations, number)
                solved = torch.where(finished, solved, good)
                break
            if bool((ended | finished).any()):
                # Converged elements stop, so that a result does not depend on the rest of the batch.
                iterations = torch.where(finished | ~ended, iterations, number)
                solved, finished = torch.where(finished, solved, good), finished | ended
                x = torch.where(finished.unsqueeze(-1), x, next_x)
            else:
                x = next_x
        report.record(solved, torch.isfinite(change).all(-1), _relative_change(x, next_x), iterations)
        return x, solved


@final
@dataclass(frozen=True)
class Unrolled(AbstractDerivative):
    """A fixed number of steps, differentiated by reverse mode, eq. 9 and algorithm 1.

    The derivative of the iterate is exact. Each differentiated step stores its intermediate results.

    Attributes:
        iterations: number of steps, at least one.
        back_iterations: number of last steps that are differentiated; None for all. ``Implicit(Neumann(terms))`` is the
            same truncation with all derivatives at the last iterate.
        average: return the mean of start and iterates (the ergodic sequence, section 5.2) instead of the last iterate.
    """

    forgets_start: ClassVar[bool] = False

    iterations: int
    back_iterations: int | None = None
    average: bool = False

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ProblemError: a number is out of range.
        """
        check_integer("iterations", self.iterations, least=1)
        if self.back_iterations is not None:
            check_kind("back_iterations", self.back_iterations, INTEGER, "an integer, or None")
            if not 0 <= self.back_iterations <= self.iterations:
                raise ProblemError(
                    f"back_iterations: expected 0 to {self.iterations}, the iterations, got {self.back_iterations}"
                )

    def run(
        self, step: Step, batch: Batch, start: torch.Tensor, on_degenerate: DegeneracyPolicy, *, keep_unconverged: bool
    ) -> tuple[torch.Tensor, torch.Tensor, NodeReport]:
        """Iterate under autograd, or under the active transform."""
        lockstep = torch.func.vmap(step, in_dims=(0, *batch.dims))
        constant = tuple(tensor.detach() for tensor in batch.tensors)
        back = self.iterations if self.back_iterations is None else self.back_iterations
        x = before = start
        total = start
        for number in range(self.iterations):
            before = x
            x = lockstep(x, *(constant if number < self.iterations - back else batch.tensors))
            if self.average:
                total = total + x
        report = NodeReport.of_iterates(self.iterations, _relative_change(before.detach(), x.detach()))
        return total / (self.iterations + 1) if self.average else x, report.solved, report


@final
@dataclass(frozen=True)
class ForwardMode(AbstractDerivative):
    """A fixed number of steps that propagate dx/dtheta, eq. 8; for few parameters.

    Memory grows with n times the number of parameters, not with the iterations. It is differentiable once.

    Attributes:
        iterations: number of steps, at least one.
    """

    forgets_start: ClassVar[bool] = False

    iterations: int

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ProblemError: the number is out of range.
        """
        check_integer("iterations", self.iterations, least=1)

    def run(
        self, step: Step, batch: Batch, start: torch.Tensor, on_degenerate: DegeneracyPolicy, *, keep_unconverged: bool
    ) -> tuple[torch.Tensor, torch.Tensor, NodeReport]:
        """Iterate with tangents, and attach the Jacobians."""

        def last(first: torch.Tensor, *theta: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
            x = before = first
            for _ in range(self.iterations):
                before, x = x, step(x, *theta)
            return x, (x, _relative_change(before, x))

        constant = tuple(tensor.detach() for tensor in batch.tensors)
        if inspect_function(step, (0, *batch.dims), start, *constant)[1]:
            raise ProblemError(
                "the step captures a tensor with requires_grad that is not a parameter, which ForwardMode does not "
                "differentiate: pass it as a parameter, or use Unrolled or Implicit"
            )
        moving = [i for i, tensor in enumerate(batch.tensors) if _needs_tangent(tensor)]
        dims = (0, *batch.dims)
        try:
            if moving:
                every = tuple(i + 1 for i in moving)
                jacobian = torch.func.vmap(torch.func.jacfwd(last, argnums=every, has_aux=True), in_dims=dims)
                jacobians, (x, change) = jacobian(start, *constant)
            else:
                jacobians, (x, change) = (), torch.func.vmap(last, in_dims=dims)(start, *constant)[1]
        except RuntimeError as error:
            if "forward mode" not in str(error).lower():
                raise
            raise DerivativeError(
                "ForwardMode cannot run inside torch.autograd.forward_ad: use torch.func.jvp, or Unrolled, which is "
                "forward mode there"
            ) from error
        for one, i in zip(jacobians, moving, strict=True):
            tensor, dim = batch.tensors[i], batch.dims[i]
            x = attach_jacobian(x, one.reshape(*x.shape, -1), tensor.reshape(*tensor.shape[: dim is not None], -1))
        report = NodeReport.of_iterates(self.iterations, change)
        return x, report.solved, report


def _needs_tangent(tensor: torch.Tensor) -> bool:
    return tensor.requires_grad or inside_transform() or forward_ad.unpack_dual(tensor).tangent is not None


def _relative_change(x: torch.Tensor, next_x: torch.Tensor) -> torch.Tensor:
    """|A(x) - x| / |A(x)| in the maximum norm along the last axis."""
    size = next_x.abs().amax(-1)
    return (next_x - x).abs().amax(-1) / torch.where(size > 0, size, 1.0)


@final
class _FixedPointResidual(AbstractResidual):
    """x - A(x, theta)."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return z - self.step(z, *theta)


def _singular_message(operator: Operator, index: int) -> str:
    return (
        "I - dA/dx is singular at the fixed point, which is not isolated or lies on the boundary of a Bregman "
        "distance's domain. A loss in the unique part still has a derivative, which GMRES() computes; Unrolled "
        "differentiates any iterate"
    )
