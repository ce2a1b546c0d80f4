"""How far an algorithm is iterated, and how what comes out is differentiated: implicitly, unrolled, or forward.

Ochs, Ranftl, Brox and Pock (2016), sections 4.2 to 4.4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar, final

import torch

from convexlayer.errors import DerivativeError, ProblemError
from convexlayer.nodes.batch import Batch, Dims, Tensors
from convexlayer.nodes.implicit import Equation, solve_implicitly
from convexlayer.nodes.linear import AbstractLinearSolver, Dense, Operator
from convexlayer.nodes.report import NodeReport, OnDegenerate, Recorder
from convexlayer.nodes.tangents import attach
from convexlayer.solution import Status

__all__ = ["AbstractDerivative", "ForwardMode", "Implicit", "Step", "Unrolled"]

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
        self, step: Step, batch: Batch, start: torch.Tensor, on_degenerate: OnDegenerate
    ) -> tuple[torch.Tensor, NodeReport]:
        """Iterate from start (batch, n) with a step on vectors (n,); gives x (batch, n), differentiable in theta."""

    @abstractmethod
    def masked(self, step: Step, batch: Batch, x: torch.Tensor) -> torch.Tensor:
        """The points x (batch, n) that ``run`` gave, NaN and constant where they are no solutions."""


@final
@dataclass(frozen=True)
class Implicit(AbstractDerivative):
    """Iterate to convergence, and differentiate the fixed-point equation there, eq. 11.

        theta cotangent = A_theta' u,    (I - A_x)' u = x cotangent.

    Nothing of the iterations is kept. Where the step is Lipschitz only, A_x is what autograd makes of it, and the
    formula holds wherever the step is differentiable at the fixed point.

    Attributes:
        linear: solves the linear system, which is not symmetric: ``Dense()``, or ``Neumann(terms)`` by products alone.
        tol: converged when |A(x) - x| <= tol (1 + |x|); unless given, 100 times the precision of the dtype.
        max_iter: the most steps.
    """

    forgets_start: ClassVar[bool] = True

    linear: AbstractLinearSolver = field(default_factory=Dense)
    tol: float | None = None
    max_iter: int = 10_000

    def run(
        self, step: Step, batch: Batch, start: torch.Tensor, on_degenerate: OnDegenerate
    ) -> tuple[torch.Tensor, NodeReport]:
        """Iterate and attach the implicit derivative."""
        report = NodeReport()

        def solver(given: torch.Tensor | None, dims: Dims, theta: Tensors) -> torch.Tensor:
            assert given is not None  # below
            return self._iterate(step, given, dims, theta, report)

        def residual(x: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
            return x - step(x, *theta)

        recorder = Recorder(report, on_degenerate, self._tolerance(start), _no_margin, _why_singular)
        equation = Equation(residual, solver, self.linear, symmetric=False, judge=recorder)
        return solve_implicitly(equation, batch, start), report

    def masked(self, step: Step, batch: Batch, x: torch.Tensor) -> torch.Tensor:
        """NaN where the residual exceeds the tolerance; measured anew, for under vmap the report has other axes."""
        constant = tuple(tensor.detach() for tensor in batch.tensors)
        change = _change(x.detach(), torch.func.vmap(step, in_dims=(0, *batch.dims))(x.detach(), *constant))
        return torch.where((change <= self._tolerance(x)).unsqueeze(-1), x, torch.nan)

    def _tolerance(self, x: torch.Tensor) -> float:
        return 100 * torch.finfo(x.dtype).eps if self.tol is None else self.tol

    def _iterate(self, step: Step, start: torch.Tensor, dims: Dims, theta: Tensors, report: NodeReport) -> torch.Tensor:
        lockstep = torch.func.vmap(step, in_dims=(0, *dims))
        tol = self._tolerance(start)
        x = start.clone()
        size = max([start.shape[0], *(t.shape[0] for t, dim in zip(theta, dims, strict=True) if dim is not None)])
        if start.shape[0] != size:
            x = start.expand(size, *start.shape[1:])
        residual = torch.full((size,), torch.inf, dtype=x.dtype, device=x.device)
        iterations = torch.zeros(size, dtype=torch.int64, device=x.device)
        resting = torch.zeros(size, dtype=torch.bool, device=x.device)
        for _ in range(self.max_iter + 1):
            moved = lockstep(x, *theta)
            finite = torch.isfinite(moved).all(-1)
            residual = torch.where(resting, residual, torch.where(finite, _change(x, moved), torch.inf))
            # An element that has converged rests, so that it does not depend on the company it keeps.
            resting = resting | (residual <= tol) | ~finite | (iterations == self.max_iter)
            if bool(resting.all()):
                break
            x = torch.where(resting.unsqueeze(-1), x, moved)
            iterations = iterations + ~resting
        report.status = tuple(
            Status.OPTIMAL if number <= tol else Status.ITERATION_LIMIT if isfinite(number) else Status.NUMERICAL_ERROR
            for number in residual.tolist()
        )
        report.iterations, report.distance = iterations, residual
        return x


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
        self, step: Step, batch: Batch, start: torch.Tensor, on_degenerate: OnDegenerate
    ) -> tuple[torch.Tensor, NodeReport]:
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
        report = _fixed_number(self.iterations, batch.size, _change(before.detach(), x.detach()))
        return total / (self.iterations + 1) if self.average else x, report

    def masked(self, step: Step, batch: Batch, x: torch.Tensor) -> torch.Tensor:
        """The points as they are: as many steps as asked for are a solution."""
        return x


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
        self, step: Step, batch: Batch, start: torch.Tensor, on_degenerate: OnDegenerate
    ) -> tuple[torch.Tensor, NodeReport]:
        """Iterate with tangents, and attach the Jacobians."""

        def last(first: torch.Tensor, *theta: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
            x = before = first
            for _ in range(self.iterations):
                before, x = x, step(x, *theta)
            return x, (x, _change(before, x))

        constant = tuple(tensor.detach() for tensor in batch.tensors)
        every = tuple(range(1, len(constant) + 1))
        jacobian = torch.func.vmap(torch.func.jacfwd(last, argnums=every, has_aux=True), in_dims=(0, *batch.dims))
        try:
            jacobians, (x, change) = jacobian(start, *constant)
        except RuntimeError as error:
            if "forward mode" not in str(error).lower():
                raise
            raise DerivativeError(
                "ForwardMode cannot run inside torch.autograd.forward_ad: use torch.func.jvp, or Unrolled, which is "
                "forward mode there"
            ) from error
        for one, tensor, dim in zip(jacobians, batch.tensors, batch.dims, strict=True):
            x = attach(x, one.reshape(*x.shape, -1), tensor.reshape(*tensor.shape[: dim is not None], -1))
        return x, _fixed_number(self.iterations, batch.size, change)

    def masked(self, step: Step, batch: Batch, x: torch.Tensor) -> torch.Tensor:
        """The points as they are: as many steps as asked for are a solution."""
        return x


def _change(x: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """|A(x) - x| / (1 + |x|) along the last axis."""
    return torch.linalg.vector_norm(moved - x, dim=-1) / (1 + torch.linalg.vector_norm(x, dim=-1))


def _fixed_number(iterations: int, size: int, change: torch.Tensor) -> NodeReport:
    """What there is to say of iterates that are what was asked for, wherever they are."""
    return NodeReport((Status.OPTIMAL_INACCURATE,) * size, change, torch.full((size,), iterations))


def _no_margin(operator: Operator) -> torch.Tensor:
    """Nothing is known of where the derivative of the step jumps; the recorder looks for jumps itself."""
    return torch.full_like(operator.z[..., 0], torch.inf)


def _why_singular(operator: Operator, element: int) -> str:
    return (
        "I - dA/dx is singular at the fixed point: it is not isolated, or lies on the boundary of a Bregman distance's "
        "domain; Unrolled has a derivative there"
    )


def _at_least_one(iterations: int) -> None:
    if iterations < 1:
        raise ProblemError(f"iterations: expected at least one, got {iterations}")
