"""Nodes with constant linear equalities, in the two forms of Gould et al. 2016, section 4.1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import final

import torch

from convexlayer.errors import ProblemError, ShapeError
from convexlayer.nodes.autodiff.batch import Batch, Shape, without_autocast
from convexlayer.nodes.declarative.argmin import ArgminNode
from convexlayer.nodes.declarative.equality import EqualityNode
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.initial_points import Start
from convexlayer.nodes.declarative.node_options import Choose, NodeOptions
from convexlayer.nodes.declarative.nonlinear_program import Function, Point, numerical_rank
from convexlayer.nodes.implicit.node_report import NodeReport
from convexlayer.runtime.graph_breaks import outside_graphs

__all__ = ["LinearEqualityNode", "LinearForm"]


class LinearForm(Enum):
    """Form in which a node with linear equalities is solved and differentiated.

    NULL_SPACE substitutes y = y0 + F z (lemma 4.1): n - m unknowns, and a reduced Hessian F'f_YY F that is definite at
    a minimum, so that conjugate gradients apply. KKT keeps y and the multipliers (lemma 4.2) and needs no basis F.
    """

    NULL_SPACE = "null_space"
    KKT = "kkt"


@final
class LinearEqualityNode(torch.nn.Module):
    """y(theta), a local minimum of f(y, theta) subject to A y = b, with A and b constant over all calls.

        dy/dtheta = -F (F'f_YY F)^-1 F'f_XY                                       NULL_SPACE, lemma 4.1
        dy/dtheta = (H^-1 A'(A H^-1 A')^-1 A H^-1 - H^-1) f_XY,    H = f_YY       KKT, lemma 4.2

    If A or b require grad they get gradients, by the KKT form whichever is requested, and can be trained. For A or b
    that differ between calls use ``EqualityNode`` with h = A y - b.

    Args:
        f: objective of one element, f(y, *parameters) -> a scalar; y has shape (n,).
        A: (m, n), of full row rank.
        b: (m,).
        parameters: shapes of the parameters, -1 for any size.
        form: null space or KKT.
        solver: forward solver; in the NULL_SPACE form it solves for z in y = y0 + F z.
        options: start (a y, which need not be feasible), choice, linear solver, tolerances, and failure policies.

    Attributes:
        A: as given.
        b: as given.
        y0: minimum-norm solution of A y = b, (n,), for the given A and b, in units of the variables that normalise the
            columns of A.
        F: basis of the null space of A, (n, n - m), orthonormal in these units.

    Raises:
        ShapeError: A and b do not fit.
        ProblemError: the rows of A are dependent.
    """

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
        constant_A = A.detach()
        size = torch.linalg.vector_norm(constant_A, dim=0)
        unit = 1.0 / torch.where(size > 0, size, 1.0)
        rank = numerical_rank(constant_A * unit)
        if rank < m:
            raise ProblemError(f"the {m} rows of A are dependent (rank {rank}): drop the redundant ones")
        if m >= n:
            raise ProblemError(f"{m} equalities leave no degree of freedom of {n} variables: solve A y = b instead")
        # Assigned as they are, so that torch.nn.Parameters become parameters of the node.
        self.A, self.b = A, b
        self._objective = f
        self._form = LinearForm.KKT if A.requires_grad or b.requires_grad else form
        orthogonal, _ = torch.linalg.qr((constant_A * unit).mT, mode="complete")
        self.F = unit.unsqueeze(-1) * orthogonal[:, m:]
        self._F_left_inverse = orthogonal[:, m:].mT / unit
        self._A_right_inverse = unit.unsqueeze(-1) * torch.linalg.pinv(constant_A * unit)
        self.y0 = self._A_right_inverse @ b.detach()
        options = options or NodeOptions()
        self._node: ArgminNode | EqualityNode
        if self._form is LinearForm.KKT:
            self._node = EqualityNode(f, _LinearEqualities(A, b), (n,), parameters, solver=solver, options=options)
            return
        choose = None if options.choose is None else _ReducedChoice(options.choose, self.y0, self.F)
        options = replace(options, start=self._reduce_start(options.start), choose=choose)
        self._node = ArgminNode(
            _ReducedObjective(f, self.y0, self.F), (n - m,), parameters, solver=solver, options=options
        )

    @outside_graphs
    def forward(self, *parameters: torch.Tensor, warm_start: torch.Tensor | None = None) -> torch.Tensor:
        """y (n,), or (batch, n) if any parameter has a batch axis; see ``AbstractNode.forward``."""
        return self.solve(*parameters, warm_start=warm_start)[0].y

    @outside_graphs
    def solve(self, *parameters: torch.Tensor, warm_start: torch.Tensor | None = None) -> tuple[Point, NodeReport]:
        """Return y and the multipliers, all differentiable, and the report, which backward passes complete."""
        if self._form is LinearForm.KKT:
            return self._node.solve(*parameters, warm_start=warm_start)
        start = None if warm_start is None else _reduce(warm_start, self.y0, self._F_left_inverse)
        point, report = self._node.solve(*parameters, warm_start=start)
        batch = Batch.of(self._node.shapes, parameters)
        with without_autocast(point.y):
            y = _lift(point.y, self.y0, self.F)
            # A'lam = -f_Y has a unique solution, because y is stationary along F.
            gradient = torch.func.grad(self._objective)
            if not batch.single:
                gradient = torch.func.vmap(gradient, in_dims=(0, *batch.dims))
            return Point(y, -gradient(y, *batch.tensors) @ self._A_right_inverse.to(y), point.mu), report

    def _reduce_start(self, start: Start) -> Start:
        if start is None:
            return None
        if isinstance(start, torch.Tensor):
            return _reduce(start, self.y0, self._F_left_inverse)
        return _ReducedStart(start, self.y0, self._F_left_inverse)


def _lift(z: torch.Tensor, y0: torch.Tensor, F: torch.Tensor) -> torch.Tensor:
    """y = y0 + F z."""
    return y0.to(z) + z @ F.to(z).mT


def _reduce(y: torch.Tensor, y0: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Least-squares z of y = y0 + F z, by the left inverse of F."""
    return (y - y0.to(y)) @ left.to(y).mT


@final
@dataclass(frozen=True)
class _LinearEqualities:
    """A y - b."""

    A: torch.Tensor
    b: torch.Tensor

    def __call__(self, y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return self.A.to(y) @ y - self.b.to(y)


@final
@dataclass(frozen=True)
class _ReducedObjective:
    """f as a function of z."""

    function: Function
    y0: torch.Tensor
    F: torch.Tensor

    def __call__(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return self.function(_lift(z, self.y0, self.F), *theta)


@final
@dataclass(frozen=True)
class _ReducedChoice:
    """The function ``choose`` of the options, called with points z."""

    choose: Choose
    y0: torch.Tensor
    F: torch.Tensor

    def __call__(self, z: torch.Tensor, values: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return self.choose(_lift(z, self.y0, self.F), values, *theta)


@final
@dataclass(frozen=True)
class _ReducedStart:
    """The start function of the options, returning z."""

    start: Callable[..., torch.Tensor]
    y0: torch.Tensor
    left: torch.Tensor

    def __call__(self, *theta: torch.Tensor) -> torch.Tensor:
        return _reduce(self.start(*theta), self.y0, self.left)
