"""Nodes with fixed linear equalities, in the two forms of Gould et al. 2016, section 4.1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import final

import torch

from convexlayer.errors import ProblemError, ShapeError
from convexlayer.nodes.argmin import ArgminNode
from convexlayer.nodes.batch import Shape
from convexlayer.nodes.equality import EqualityNode
from convexlayer.nodes.forward import AbstractForwardSolver
from convexlayer.nodes.node import NodeOptions, Start
from convexlayer.nodes.nonlinear import Function, Point
from convexlayer.nodes.report import NodeReport

__all__ = ["LinearEqualityNode", "LinearForm"]


class LinearForm(Enum):
    """How a node with linear equalities is solved and differentiated.

    NULL_SPACE substitutes y = y0 + F z (lemma 4.1): n - m unknowns, and a Hessian F'f_YY F that is definite at a
    minimum, so that conjugate gradients apply. KKT keeps y and the multipliers (lemma 4.2), which needs no basis F.
    """

    NULL_SPACE = "null_space"
    KKT = "kkt"


@final
class LinearEqualityNode(torch.nn.Module):
    """y(theta), a local minimum of f(y, theta) on A y = b, with A and b fixed.

        y' = -F (F'f_YY F)^-1 F'f_XY                                       NULL_SPACE, lemma 4.1
        y' = (H^-1 A'(A H^-1 A')^-1 A H^-1 - H^-1) f_XY,    H = f_YY       KKT, lemma 4.2

    Where A or b are parameters too, use ``EqualityNode`` with h = A y - b.

    Args:
        f: objective of one element, f(y, *parameters) -> a scalar; y has shape (n,).
        A: (m, n), of full row rank.
        b: (m,).
        parameters: shapes of the parameters, -1 for any size.
        form: which of the two.
        solver: finds the minimum; with NULL_SPACE it gives z of y = y0 + F z.
        options: start (a y, which need not be feasible), choice, linear solver, tolerances, and what to do about
            failures.

    Attributes:
        y0: the solution of A y = b of minimum norm, (n,).
        F: an orthonormal basis of the null space of A, (n, n - m).

    Raises:
        ShapeError: A and b do not fit.
        ProblemError: the rows of A are dependent.
    """

    y0: torch.Tensor
    F: torch.Tensor

    def __init__(
        self,
        f: Function,
        A: torch.Tensor,
        b: torch.Tensor,
        parameters: Sequence[Shape],
        *,
        form: LinearForm = LinearForm.NULL_SPACE,
        solver: AbstractForwardSolver | None = None,
        options: NodeOptions | None = None,
    ) -> None:
        super().__init__()
        if A.ndim != 2 or b.shape != A.shape[:1]:
            raise ShapeError(f"expected A (m, n) and b (m,), got {tuple(A.shape)} and {tuple(b.shape)}")
        m, n = A.shape
        rank = int(torch.linalg.matrix_rank(A))
        if rank < m:
            raise ProblemError(f"the {m} rows of A are dependent (rank {rank}): drop the redundant ones")
        if m >= n:
            raise ProblemError(f"{m} equalities leave nothing of {n} variables to choose: solve A y = b instead")
        self._objective, self._form, self._A = f, form, A.detach()
        orthogonal, _ = torch.linalg.qr(self._A.mT, mode="complete")
        self.F = orthogonal[:, m:]
        self.y0 = torch.linalg.pinv(self._A) @ b.detach()
        offset = b.detach()
        options = options or NodeOptions()
        self._node: ArgminNode | EqualityNode
        if form is LinearForm.KKT:
            self._node = EqualityNode(
                f, lambda y, *theta: self._A.to(y) @ y - offset.to(y), (n,), parameters, solver=solver, options=options
            )
        else:
            choose = options.choose
            options = replace(
                options,
                start=self._reduced_start(options.start),
                choose=None if choose is None else lambda z, values, *theta: choose(self._lift(z), values, *theta),
            )
            self._node = ArgminNode(
                lambda z, *theta: f(self._lift(z), *theta), (n - m,), parameters, solver=solver, options=options
            )

    def forward(self, *parameters: torch.Tensor, warm_start: torch.Tensor | None = None) -> torch.Tensor:
        """y (n,), or (batch, n) if any parameter has a batch axis; see ``AbstractNode.forward``."""
        return self.solve(*parameters, warm_start=warm_start)[0].y

    def solve(self, *parameters: torch.Tensor, warm_start: torch.Tensor | None = None) -> tuple[Point, NodeReport]:
        """y and the multipliers, all differentiable, and the report, which the backward pass completes."""
        if self._form is LinearForm.KKT:
            return self._node.solve(*parameters, warm_start=warm_start)
        start = None if warm_start is None else self._reduce(warm_start)
        point, report = self._node.solve(*parameters, warm_start=start)
        y = self._lift(point.y)
        # A'lam = -f_Y has one solution, because y is stationary along F.
        slope = torch.func.grad(self._objective)
        if y.ndim == 2:
            own = [t.ndim - len(shape) for t, shape in zip(parameters, self._node.shapes, strict=True)]
            slope = torch.func.vmap(slope, in_dims=(0, *(0 if extra else None for extra in own)))
        lam = -slope(y, *parameters) @ torch.linalg.pinv(self._A).to(y)
        return Point(y, lam, point.mu), report

    def _lift(self, z: torch.Tensor) -> torch.Tensor:
        return self.y0.to(z) + z @ self.F.to(z).mT

    def _reduce(self, y: torch.Tensor) -> torch.Tensor:
        return (y - self.y0.to(y)) @ self.F.to(y)

    def _reduced_start(self, start: Start) -> Start:
        if start is None:
            return None
        if isinstance(start, torch.Tensor):
            return self._reduce(start)
        function = start
        return lambda *theta: self._reduce(function(*theta))
