"""How far an algorithm is iterated, and how what comes out is differentiated: implicitly, unrolled, or forward.

Ochs, Ranftl, Brox and Pock (2016), sections 4.2 to 4.4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch.autograd import forward_ad

from convexlayer.errors import DerivativeError, ProblemError
from convexlayer.nodes.batch import Batch, Dims, Tensors
from convexlayer.nodes.calculus import batched, inside_transform
from convexlayer.nodes.implicit import Equation, captured_by, solve_implicitly
from convexlayer.nodes.linear import AbstractLinearSolver, AbstractResidual, Dense, Operator
from convexlayer.nodes.report import NodeReport, OnDegenerate, Recorder
from convexlayer.nodes.tangents import attach

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
    ) -> tuple[torch.Tensor, torch.Tensor, NodeReport]:
        """Iterate from start (batch, n) with a step on vectors (n,).

        Returns:
            x (batch, n), differentiable in theta; which elements are solutions, (batch,); and the report.
        """


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
    ) -> tuple[torch.Tensor, torch.Tensor, NodeReport]:
        """Iterate and attach the implicit derivative."""
        report = NodeReport()
        residual = _Change(step)

        def solver(given: torch.Tensor | None, dims: Dims, theta: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
            assert given is not None  # below
            return self._iterate(step, given, dims, theta, report)

        captured = captured_by([lambda: step(start[0], *batch.first(tuple(t.detach() for t in batch.tensors)))])
        recorder = Recorder(report, on_degenerate, self._tolerance(start), _no_margin, _why_singular)
        x, solved = solve_implicitly(Equation(residual, solver, self.linear, recorder), batch, start, captured)
        return x, solved, report

    def _tolerance(self, x: torch.Tensor) -> float:
        return 100 * torch.finfo(x.dtype).eps if self.tol is None else self.tol

    def _iterate(
        self, step: Step, start: torch.Tensor, dims: Dims, theta: Tensors, report: NodeReport
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tol = self._tolerance(start)
        x = start.clone()
        size = max([start.shape[0], *(t.shape[0] for t, dim in zip(theta, dims, strict=True) if dim is not None)])
        if start.shape[0] != size:
            x = start.expand(size, *start.shape[1:])
        residual = torch.full((size,), torch.inf, dtype=x.dtype, device=x.device)
        iterations = torch.zeros(size, dtype=torch.int64, device=x.device)
        resting = torch.zeros(size, dtype=torch.bool, device=x.device)
        for _ in range(self.max_iter + 1):
            moved = batched(step, (0, *dims), x, *theta)
            change = _change(x, moved)
            residual = torch.where(resting, residual, change.nan_to_num(torch.inf, torch.inf))
            # An element that has converged rests, so that it does not depend on the company it keeps.
            resting = resting | ~(residual > tol) | torch.isinf(residual) | (iterations == self.max_iter)
            if bool(resting.all()):
                break
            x = torch.where(resting.unsqueeze(-1), x, moved)
            iterations = iterations + ~resting
        solved = residual <= tol
        report.fill(solved, torch.isfinite(residual), residual, iterations)
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
        self, step: Step, batch: Batch, start: torch.Tensor, on_degenerate: OnDegenerate
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
        self, step: Step, batch: Batch, start: torch.Tensor, on_degenerate: OnDegenerate
    ) -> tuple[torch.Tensor, torch.Tensor, NodeReport]:
        """Iterate with tangents, and attach the Jacobians."""

        def last(first: torch.Tensor, *theta: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
            x = before = first
            for _ in range(self.iterations):
                before, x = x, step(x, *theta)
            return x, (x, _change(before, x))

        constant = tuple(tensor.detach() for tensor in batch.tensors)
        if captured_by([lambda: step(start[0], *batch.first(constant))]):
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
    """|A(x) - x| / (1 + |x|) along the last axis."""
    return torch.linalg.vector_norm(moved - x, dim=-1) / (1 + torch.linalg.vector_norm(x, dim=-1))


@final
class _Change(AbstractResidual):
    """x - A(x, theta)."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return z - self._step(z, *theta)


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
