"""How far an algorithm is iterated, and how what comes out is differentiated: implicitly, unrolled, or forward.

Ochs, Ranftl, Brox and Pock (2016), sections 4.2 to 4.4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch.autograd import forward_ad

from convexlayer.errors import DerivativeError, ProblemError
from convexlayer.nodes.autodiff.batch import Batch, Dims, Tensors
from convexlayer.nodes.autodiff.derivatives import batched, inside_transform
from convexlayer.nodes.autodiff.first_order import attach
from convexlayer.nodes.implicit.dense_lu import Dense
from convexlayer.nodes.implicit.equation import Equation, examined, solve_implicitly
from convexlayer.nodes.implicit.error_estimate import rounding
from convexlayer.nodes.implicit.krylov import GMRES
from convexlayer.nodes.implicit.node_report import NodeReport, OnDegenerate, Recorder
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, AbstractResidual, Operator

__all__ = ["FORGETTING", "AbstractDerivative", "ForwardMode", "Implicit", "Step", "Unrolled"]

FORGETTING = 0.9
"""By this factor an earlier value of a component counts less with every step as a measure of its size."""

FEW_UNKNOWNS = 32
"""Up to so many a matrix is formed unless another linear solver is given."""

Step = Callable[..., torch.Tensor]
"""(x, *theta) -> the next iterate, of x's shape; one element, in torch operations that vmap can batch."""


class AbstractDerivative(ABC):
    """How far to iterate, and how to differentiate what comes out.

    Attributes:
        forgets_start: whether what comes out does not depend on the start.
    """

    forgets_start: ClassVar[bool]

    @abstractmethod
    def run(
        self, step: Step, batch: Batch, start: torch.Tensor, on_degenerate: OnDegenerate, *, keep: bool
    ) -> tuple[torch.Tensor, torch.Tensor, NodeReport]:
        """Iterate from start (batch, n) with a step on vectors (n,).

        Args:
            step: one step.
            batch: the parameters.
            start: the first iterates.
            on_degenerate: told of derivatives that may not exist.
            keep: whether iterates that have not converged are differentiated too.

        Returns:
            x (batch, n), differentiable in theta; which elements are, (batch,); and the report.
        """


@final
@dataclass(frozen=True)
class Implicit(AbstractDerivative):
    """Iterate to convergence, and differentiate the fixed-point equation there, eq. 11.

        theta cotangent = A_theta' u,    (I - A_x)' u = x cotangent.

    Nothing of the iterations is kept. Where the step is Lipschitz only, A_x is what autograd makes of it, and the
    formula holds wherever the step is differentiable at the fixed point.

    Attributes:
        linear: solves the linear system, which is not symmetric: ``Dense()``, which also tells where it is singular, or
            by products alone ``GMRES()`` or ``Neumann(terms)``; None for ``Dense()`` up to 32 unknowns, ``GMRES()``
            beyond.
        tol: converged when |A(x) - x| <= tol |A(x)| in every component, or as small as rounding lets it be; unless
            given, 100 times the precision of the dtype. For one that goes to zero its earlier values count too, 0.9
            times less with every step.
        max_iter: the most steps.
    """

    forgets_start: ClassVar[bool] = True

    linear: AbstractLinearSolver | None = None
    tol: float | None = None
    max_iter: int = 10_000

    def run(
        self, step: Step, batch: Batch, start: torch.Tensor, on_degenerate: OnDegenerate, *, keep: bool
    ) -> tuple[torch.Tensor, torch.Tensor, NodeReport]:
        """Iterate and attach the implicit derivative."""
        report = NodeReport()
        residual = _Change(step)

        def solver(given: torch.Tensor | None, dims: Dims, theta: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
            assert given is not None  # below
            x, solved = self._iterate(residual, given, dims, theta, report)
            return x, torch.isfinite(report.distance) if keep else solved

        _, captured = examined(step, (0, *batch.dims), start, *batch.tensors)
        recorder = Recorder(report, on_degenerate, self._tolerance(start), None, _why_singular)
        linear = self.linear or (Dense() if start.shape[-1] <= FEW_UNKNOWNS else GMRES())
        x, solved = solve_implicitly(Equation(residual, solver, linear, recorder), batch, start, captured)
        return x, solved, report

    def _tolerance(self, x: torch.Tensor) -> float:
        return 100 * torch.finfo(x.dtype).eps if self.tol is None else self.tol

    def _iterate(
        self, residual: _Change, start: torch.Tensor, dims: Dims, theta: Tensors, report: NodeReport
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tol = self._tolerance(start)
        size = max([start.shape[0], *(t.shape[0] for t, dim in zip(theta, dims, strict=True) if dim is not None)])
        x = start.expand(size, *start.shape[1:])
        peak = x.abs()
        iterations = torch.full((size,), self.max_iter, dtype=torch.int64, device=x.device)
        solved = resting = torch.zeros(size, dtype=torch.bool, device=x.device)
        look = 0  # no sooner is rounding looked at again
        for number in range(self.max_iter + 1):
            moved = batched(residual.step, (0, *dims), x, *theta)
            change, length = (moved - x).abs(), moved.abs()
            peak = torch.maximum(FORGETTING * peak, length)
            small = change <= tol * peak  # false for NaN
            good = small.all(-1) if tol < torch.inf else torch.isfinite(moved).all(-1)
            if number >= look and not bool(good.all()):
                near = change.amax(-1) <= tol * length.amax(-1)
                if bool((near & ~good).any()):
                    small = small | (change <= rounding(Operator(residual, dims, x, theta)))
                    good, look = good | small.all(-1), 2 * number + 1
            ended = good | ~torch.isfinite(change).all(-1)
            if number == self.max_iter or bool((ended | resting).all()):
                iterations = torch.where(resting | ~ended, iterations, number)
                solved = torch.where(resting, solved, good)
                break
            if bool((ended | resting).any()):
                # An element that has converged rests, so that it does not depend on the company it keeps.
                iterations = torch.where(resting | ~ended, iterations, number)
                solved, resting = torch.where(resting, solved, good), resting | ended
                x = torch.where(resting.unsqueeze(-1), x, moved)
            else:
                x = moved
        report.fill(solved, torch.isfinite(change).all(-1), _change(x, moved), iterations)
        return x, solved


@final
@dataclass(frozen=True)
class Unrolled(AbstractDerivative):
    """A fixed number of steps, differentiated one by one in reverse, eq. 9 and algorithm 1.

    The derivative is that of the iterate, exactly. Each step that is differentiated keeps its intermediate results.

    Attributes:
        iterations: the number of steps, at least one.
        back_iterations: how many of them, from the last, are differentiated; all unless given. For the same truncation
            with all derivatives taken at the last iterate see ``Implicit(Neumann(terms))``.
        average: give the mean of start and iterates (the ergodic sequence, section 5.2) instead of the last iterate.
    """

    forgets_start: ClassVar[bool] = False

    iterations: int
    back_iterations: int | None = None
    average: bool = False

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ProblemError: a number is out of range.
        """
        _at_least_one(self.iterations)
        if self.back_iterations is not None and not 0 <= self.back_iterations <= self.iterations:
            raise ProblemError(
                f"back_iterations: expected 0 to {self.iterations}, the iterations, got {self.back_iterations}"
            )

    def run(
        self, step: Step, batch: Batch, start: torch.Tensor, on_degenerate: OnDegenerate, *, keep: bool
    ) -> tuple[torch.Tensor, torch.Tensor, NodeReport]:
        """Iterate under autograd, or whatever transform is at work."""
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
        report = NodeReport.of_iterates(self.iterations, _change(before.detach(), x.detach()))
        return total / (self.iterations + 1) if self.average else x, report.solved, report


@final
@dataclass(frozen=True)
class ForwardMode(AbstractDerivative):
    """A fixed number of steps, with dx/dtheta carried along, eq. 8.

    Memory does not grow with the iterations, but with n times the number of parameters: for few parameters. It cannot
    be differentiated twice.

    Attributes:
        iterations: the number of steps, at least one.
    """

    forgets_start: ClassVar[bool] = False

    iterations: int

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ProblemError: the number is out of range.
        """
        _at_least_one(self.iterations)

    def run(
        self, step: Step, batch: Batch, start: torch.Tensor, on_degenerate: OnDegenerate, *, keep: bool
    ) -> tuple[torch.Tensor, torch.Tensor, NodeReport]:
        """Iterate with tangents, and attach the Jacobians."""

        def last(first: torch.Tensor, *theta: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
            x = before = first
            for _ in range(self.iterations):
                before, x = x, step(x, *theta)
            return x, (x, _change(before, x))

        constant = tuple(tensor.detach() for tensor in batch.tensors)
        if examined(step, (0, *batch.dims), start, *constant)[1]:
            raise ProblemError(
                "the step uses a tensor with requires_grad that is no parameter, which ForwardMode does not "
                "differentiate: pass it as a parameter, or take Unrolled or Implicit"
            )
        moving = [i for i, tensor in enumerate(batch.tensors) if _differentiated(tensor)]
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
            x = attach(x, one.reshape(*x.shape, -1), tensor.reshape(*tensor.shape[: dim is not None], -1))
        report = NodeReport.of_iterates(self.iterations, change)
        return x, report.solved, report


def _differentiated(tensor: torch.Tensor) -> bool:
    return tensor.requires_grad or inside_transform() or forward_ad.unpack_dual(tensor).tangent is not None


def _change(x: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """The largest |A(x) - x| along the last axis, relative to the largest |A(x)|."""
    size = moved.abs().amax(-1)
    return (moved - x).abs().amax(-1) / torch.where(size > 0, size, 1.0)


@final
class _Change(AbstractResidual):
    """x - A(x, theta)."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return z - self.step(z, *theta)


def _why_singular(operator: Operator, element: int) -> str:
    return (
        "I - dA/dx is singular at the fixed point, which is not isolated or lies on the boundary of a Bregman "
        "distance's domain. A loss in what is unique still has a derivative, which GMRES() finds; Unrolled has one of "
        "every iterate"
    )


def _at_least_one(iterations: int) -> None:
    if iterations < 1:
        raise ProblemError(f"iterations: expected at least one, got {iterations}")
