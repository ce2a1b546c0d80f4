"""A problem of the suite: a CVXPY problem, the distribution of its parameters, and its matrices if it is a QP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import torch

__all__ = ["QP", "Draw", "Problem", "QPForm", "Tensors"]

Tensors = tuple[torch.Tensor, ...]
Draw = Callable[[np.random.Generator], list[Any]]


@dataclass(frozen=True, eq=False)
class QP:
    """minimize 1/2 x'Px + q'x subject to Gx <= h, Ax = b; each tensor with a batch axis, or shared by the batch.

    Attributes:
        P: (B, n, n) or (n, n).
        q: (B, n).
        G: (B, m, n) or (m, n).
        h: (B, m) or (m,).
        A: (B, p, n) or (p, n); p may be 0.
        b: (B, p) or (p,).
    """

    P: torch.Tensor
    q: torch.Tensor
    G: torch.Tensor
    h: torch.Tensor
    A: torch.Tensor
    b: torch.Tensor

    def expanded(self) -> QP:
        """The same QP with a batch axis in every tensor."""
        batch = self.q.shape[0]

        def wide(t: torch.Tensor, axes: int) -> torch.Tensor:
            return t if t.ndim > axes else t.expand(batch, *t.shape)

        P, G, A = (wide(matrix, 2) for matrix in (self.P, self.G, self.A))
        q, h, b = (wide(vector, 1) for vector in (self.q, self.h, self.b))
        return QP(P, q, G, h, A, b)


@dataclass(frozen=True, eq=False)
class QPForm:
    """A problem as a hand-written QP, for peers that take matrices.

    Attributes:
        data: parameters (B, *shape) -> QP, by differentiable torch operations.
        outputs: x (B, n) -> the variables, each (B, *shape).
        fixed_matrices: whether P, G and A are independent of the parameters.
    """

    data: Callable[..., QP]
    outputs: Callable[[torch.Tensor], Tensors]
    fixed_matrices: bool = False


@dataclass(frozen=True, eq=False)
class Problem:
    """A problem of the suite.

    Attributes:
        name: name on the command line and in the tables.
        problem: the CVXPY problem.
        parameters: all of its parameters, in the order of ``draw``.
        variables: the variables that are returned and differentiated.
        draw: random generator -> one value per parameter.
        qp: its QP form, if it is a QP small enough for dense matrices.
        unsupported: contestants that do not support it, with the reason.
        gp: whether it is a geometric program.
    """

    name: str
    problem: cp.Problem
    parameters: list[cp.Parameter]
    variables: list[cp.Variable]
    draw: Draw
    qp: QPForm | None = None
    unsupported: tuple[tuple[str, str], ...] = ()
    gp: bool = False

    def theta(self, batch: int, *, seed: int) -> Tensors:
        """A random batch of parameters, each (batch, *shape), leaf tensors that require gradients."""
        rng = np.random.default_rng(seed)
        rows = [self.draw(rng) for _ in range(batch)]
        columns = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
        return tuple(torch.from_numpy(column).requires_grad_() for column in columns)

    def cotangents(self, batch: int) -> Tensors:
        """Fixed cotangents of the outputs, each (batch, *shape): the loss is their inner product with the outputs."""
        rng = np.random.default_rng(99)
        return tuple(torch.from_numpy(rng.standard_normal((batch, *variable.shape))) for variable in self.variables)

    def symmetrised(self, gradients: Tensors) -> Tensors:
        """Gradients with symmetric parameters' gradients symmetrised: only their symmetric part is determined."""
        return tuple(
            0.5 * (g + g.mT) if parameter.is_symmetric() and g.ndim == 3 and g.shape[-1] > 1 else g
            for parameter, g in zip(self.parameters, gradients, strict=True)
        )
