"""FixedPointNode: the limit, or an iterate, of an algorithm as a differentiable function of its parameters.

An algorithm may have a differentiable step although the problem that it solves is not smooth (``bregman`` and
``splitting``). Its fixed point x = A(x, theta) stands for the solution then, or its n-th iterate does. Ochs, Ranftl,
Brox and Pock (2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from convexlayer.errors import FailedElementsError, ShapeError
from convexlayer.nodes.autodiff.batch import Batch, Shape, first_iterates, without_autocast
from convexlayer.nodes.autodiff.derivatives import translated
from convexlayer.nodes.fixed_point.differentiation import AbstractDerivative, Implicit, Step
from convexlayer.nodes.implicit.node_report import NodeReport, OnDegenerate, OnFailure

__all__ = ["FixedPointNode"]


@final
class FixedPointNode(torch.nn.Module):
    """theta -> fixed point, or iterate, of x -> step(x, *theta), with derivatives.

        node = FixedPointNode(ForwardBackward(torch.func.grad(f), 0.1, SimplexEntropy()), (3,), [(3,)],
                              start=torch.full((3,), 1 / 3))
        x = node(theta)          # theta (3,) or (batch, 3)

    Works under torch.func (vmap, jvp, vjp, jacrev, jacfwd) and gradcheck; twice differentiable but for ``ForwardMode``.

    Args:
        step: one step of the algorithm for one element, a torch function.
        variable: shape of x.
        parameters: shapes of the parameters of one element, -1 for any size.
        start: first iterate, of x's shape; zeros unless given.
        derivative: how far to iterate and how to differentiate: ``Implicit``, ``Unrolled`` or ``ForwardMode``.
        on_failure: what to do when an element does not converge: ``raise`` a FailedElementsError that carries the
            others, fill its output with ``nan``, or ``keep`` the last finite iterate. Gradients of elements without a
            solution are zero but for ``keep``.
        on_degenerate: what to do when an implicit derivative may not exist or is inaccurate, as that of a truncated
            series: ``warn`` (once a node), ``report`` only, or ``raise`` a DerivativeError.

    Raises:
        ProblemError: a choice is unknown.
        ShapeError: the start does not have x's shape.
    """

    def __init__(
        self,
        step: Step,
        variable: Shape,
        parameters: Sequence[Shape],
        *,
        start: torch.Tensor | None = None,
        derivative: AbstractDerivative | None = None,
        on_failure: str = "raise",
        on_degenerate: str = "warn",
    ) -> None:
        super().__init__()
        self._on_failure, self._on_degenerate = OnFailure(on_failure), OnDegenerate(on_degenerate)
        if start is not None and tuple(start.shape) != tuple(variable):
            raise ShapeError(f"start: expected the shape of the variable, {tuple(variable)}, got {tuple(start.shape)}")
        self.step, self._variable, self.shapes = step, tuple(variable), [tuple(shape) for shape in parameters]
        self._derivative = Implicit() if derivative is None else derivative
        self.register_buffer("_start", torch.zeros(self._variable) if start is None else start.detach().clone())
        self._start: torch.Tensor

    @property
    def forgets_start(self) -> bool:
        """Whether the output does not depend on where the iteration starts, so that a warm start only saves steps."""
        return self._derivative.forgets_start

    @torch.compiler.disable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def forward(self, *theta: torch.Tensor, warm_start: torch.Tensor | None = None) -> torch.Tensor:
        """The fixed point; see ``solve``."""
        return self.solve(*theta, warm_start=warm_start)[0]

    @torch.compiler.disable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def solve(self, *theta: torch.Tensor, warm_start: torch.Tensor | None = None) -> tuple[torch.Tensor, NodeReport]:
        """Iterate.

        Args:
            theta: one tensor a parameter, of its shape or with one leading batch axis.
            warm_start: first iterate of this call, as the solution at parameters near by; of x's shape, or that behind
                a batch axis.

        Returns:
            The point, with the batch axis if any parameter had it, and the report.

        Raises:
            ShapeError: shapes or batch sizes do not fit.
            FailedElementsError: elements that did not converge, under ``on_failure="raise"``.
        """
        batch = Batch.of(self.shapes, theta)
        with without_autocast(batch.tensors[0] if batch.tensors else self._start):
            return self._solve(batch, warm_start)

    def _solve(self, batch: Batch, warm_start: torch.Tensor | None) -> tuple[torch.Tensor, NodeReport]:
        cold = self._start.to(batch.tensors[0]) if batch.tensors else self._start
        first = first_iterates(warm_start, self._variable, batch)
        if first is None:
            first = cold.expand(batch.size, *self._variable).reshape(batch.size, -1)
        flat, keep = _Flat(self.step, self._variable), self._on_failure.choice == "keep"
        try:
            x, solved, report = self._derivative.run(flat, batch, first, self._on_degenerate, keep=keep)
        except RuntimeError as error:
            raise translated(error) or error from error
        if not report.all_solved and self._on_failure.choice != "keep":
            x = torch.where(solved.unsqueeze(-1), x, torch.nan)
        output = batch.unbatched(x.reshape(x.shape[0], *self._variable))
        if not report.all_solved and self._on_failure.choice == "raise":
            failed = report.failed
            named = ", ".join(f"{i} ({report.status[i]})" for i in failed[:8])
            raise FailedElementsError(
                f"{len(failed)} of {len(report.status)} elements did not converge: {named}; residuals up to "
                f"{report.distance.max().item():.1e}. Take smaller steps, more of them (max_iter), or a coarser tol; "
                "on_failure='keep' gives the last iterate",
                indices=failed,
                outputs=(output,),
                report=report,
            )
        return output, report


@final
class _Flat:
    """The step on vectors, (n,) -> (n,)."""

    def __init__(self, step: Step, variable: Shape) -> None:
        self._step, self._variable = step, variable

    def __call__(self, x: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        moved = self._step(x.reshape(self._variable), *theta)
        if tuple(moved.shape) != self._variable:
            raise ShapeError(f"step: expected an iterate of shape {self._variable}, got {tuple(moved.shape)}")
        return moved.reshape(-1)
