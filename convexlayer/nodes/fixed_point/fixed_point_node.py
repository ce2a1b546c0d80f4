"""FixedPointNode: the fixed point, or an iterate, of an algorithm as a differentiable function of its parameters.

An algorithm may have a differentiable step although the problem it solves is not smooth (``bregman``, ``splitting``).
The solution is then differentiated as the fixed point x = A(x, theta), or approximated by its n-th iterate.

Reference: Ochs, Ranftl, Brox and Pock, Techniques for gradient-based bilevel optimization with non-smooth lower level
problems, 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from convexlayer.arguments import MAX_LISTED
from convexlayer.errors import FailedElementsError, ShapeError
from convexlayer.nodes.autodiff.batch import Batch, Shape, flatten_warm_start, without_autocast
from convexlayer.nodes.autodiff.derivatives import vmap_error
from convexlayer.nodes.fixed_point.differentiation import AbstractDerivative, Implicit, Step
from convexlayer.nodes.implicit.node_report import DegeneracyPolicy, FailurePolicy, NodeReport
from convexlayer.runtime.graph_breaks import outside_graphs

__all__ = ["FixedPointNode"]


@final
class FixedPointNode(torch.nn.Module):
    """theta -> fixed point, or iterate, of x -> step(x, *theta).

        node = FixedPointNode(ForwardBackward(torch.func.grad(f), 0.1, SimplexEntropy()), (3,), [(3,)],
                              start=torch.full((3,), 1 / 3))
        x = node(theta)          # theta (3,) or (batch, 3)

    Supports torch.func (vmap, jvp, vjp, jacrev, jacfwd) and gradcheck; twice differentiable except with
    ``ForwardMode``.

    Args:
        step: one step of the algorithm for one element, a torch function.
        variable: shape of x.
        parameters: shapes of the parameters of one element, -1 for any size.
        start: first iterate, of x's shape; None for zeros.
        derivative: number of iterations and how they are differentiated: ``Implicit`` (the default), ``Unrolled`` or
            ``ForwardMode``.
        on_failure: policy for elements that do not converge: ``raise`` a FailedElementsError that carries the others,
            fill their outputs with ``nan``, or ``keep`` the last finite iterate. Gradients of elements without a
            solution are zero, except under ``keep``.
        on_degenerate: policy for implicit derivatives that may not exist or are inaccurate, such as that of a truncated
            series: ``warn`` (once per node), ``report`` only, or ``raise`` a DerivativeError.

    Raises:
        ProblemError: a policy is unknown.
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
        self._on_failure, self._on_degenerate = FailurePolicy(on_failure), DegeneracyPolicy(on_degenerate)
        if start is not None and tuple(start.shape) != tuple(variable):
            raise ShapeError(f"start: expected the shape of the variable, {tuple(variable)}, got {tuple(start.shape)}")
        self.step, self._variable, self.shapes = step, tuple(variable), [tuple(shape) for shape in parameters]
        self._derivative = Implicit() if derivative is None else derivative
        self.register_buffer("_start", torch.zeros(self._variable) if start is None else start.detach().clone())
        self._start: torch.Tensor

    @property
    def forgets_start(self) -> bool:
        """Whether the output is independent of the start, so that a warm start only saves steps."""
        return self._derivative.forgets_start

    @outside_graphs
    def forward(self, *theta: torch.Tensor, warm_start: torch.Tensor | None = None) -> torch.Tensor:
        """Return the fixed point or iterate; see ``solve``."""
        return self.solve(*theta, warm_start=warm_start)[0]

    @outside_graphs
    def solve(self, *theta: torch.Tensor, warm_start: torch.Tensor | None = None) -> tuple[torch.Tensor, NodeReport]:
        """Iterate.

        Args:
            theta: the parameters, each of its shape or with one leading batch axis.
            warm_start: first iterate of this call, such as the solution at nearby parameters; of x's shape, or with a
                batch axis.

        Returns:
            The point, with a batch axis if any parameter had one, and the report.

        Raises:
            ShapeError: shapes or batch sizes do not fit.
            FailedElementsError: elements did not converge, under ``on_failure="raise"``.
        """
        batch = Batch.of(self.shapes, theta)
        with without_autocast(batch.tensors[0] if batch.tensors else self._start):
            return self._solve(batch, warm_start)

    def _solve(self, batch: Batch, warm_start: torch.Tensor | None) -> tuple[torch.Tensor, NodeReport]:
        default_start = self._start.to(batch.tensors[0]) if batch.tensors else self._start
        first = flatten_warm_start(warm_start, self._variable, batch)
        if first is None:
            first = default_start.expand(batch.size, *self._variable).reshape(batch.size, -1)
        flat, keep_unconverged = _FlatStep(self.step, self._variable), self._on_failure.choice == "keep"
        try:
            x, solved, report = self._derivative.run(
                flat, batch, first, self._on_degenerate, keep_unconverged=keep_unconverged
            )
        except RuntimeError as error:
            raise vmap_error(error) or error from error
        if not report.all_solved and self._on_failure.choice != "keep":
            x = torch.where(solved.unsqueeze(-1), x, torch.nan)
        output = batch.unbatched(x.reshape(x.shape[0], *self._variable))
        if not report.all_solved and self._on_failure.choice == "raise":
            failed = report.failed
            listed = ", ".join(f"{i} ({report.status[i]})" for i in failed[:MAX_LISTED])
            raise FailedElementsError(
                f"{len(failed)} of {len(report.status)} elements did not converge: {listed}"
                f"{' ...' if len(failed) > MAX_LISTED else ''}; residuals up to "
                f"{report.distance.max().item():.1e}. Use smaller steps, more of them (max_iter), or a larger tol; "
                "on_failure='keep' returns the last iterate",
                indices=failed,
                outputs=(output,),
                report=report,
            )
        return output, report


@final
class _FlatStep:
    """The step on flat vectors, (n,) -> (n,)."""

    def __init__(self, step: Step, variable: Shape) -> None:
        self._step, self._variable = step, variable

    def __call__(self, x: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        moved = self._step(x.reshape(self._variable), *theta)
        if tuple(moved.shape) != self._variable:
            raise ShapeError(f"step: expected an iterate of shape {self._variable}, got {tuple(moved.shape)}")
        return moved.reshape(-1)
