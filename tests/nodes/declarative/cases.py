"""Nodes given by functions, at parameters where they are twice differentiable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from convexlayer.nodes import (
    AbstractNode,
    ArgmaxNode,
    ArgminNode,
    ConjugateGradients,
    EqualityNode,
    InequalityNode,
    LinearEqualityNode,
    LinearForm,
    MinimalResidual,
    NodeOptions,
    StationaryNode,
)

Tensors = tuple[torch.Tensor, ...]
Node = AbstractNode | LinearEqualityNode
SHAPES = [(4, 3), (3,)]


def objective(y: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Strictly convex, with all derivatives depending on both parameters."""
    return torch.logsumexp(A @ y, 0) + 0.5 * y.square().sum() + 0.1 * y.pow(4).sum() - b @ y


def sphere(y: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.stack([y.square().sum() - 1.0 - 0.1 * b[0] ** 2])


def bounds(y: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inequalities: a curved one that depends on the parameters, an active one and an inactive one."""
    return torch.stack([y.square().sum() - 0.09 - 0.01 * A[0, 0] ** 2, y[0] + 0.1, -y[1] - 10.0])


def plane(y: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.stack([y.sum() - 0.1 * b[1]])


def wave(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.sin(y + x) + 0.1 * y**2


def matrix_objective(y: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (A @ y).square().sum() + 0.5 * y.square().sum() + 0.25 * y.pow(4).sum() - (y @ torch.ones(2).to(y)) @ b


@dataclass(frozen=True)
class Case:
    """A node under test, and the shapes of its parameters."""

    make: Callable[[], Node]
    shapes: tuple[tuple[int, ...], ...] = ((4, 3), (3,))
    double_only: bool = False  # an iterative linear solver, accurate in float32 only to its own tolerance

    def tensors(self, batch: int | None = None, dtype: torch.dtype = torch.float64) -> Tensors:
        generator = torch.Generator().manual_seed(3)
        axis = () if batch is None else (batch,)
        drawn = [torch.randn((*axis, *shape), dtype=torch.float64, generator=generator) for shape in self.shapes]
        return tuple(t.to(dtype).requires_grad_() for t in drawn)


ONES, ONE = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
TIGHT = {"tol": 1e-14}

CASES = {
    "argmin": Case(lambda: ArgminNode(objective, (3,), SHAPES)),
    "argmin of a scalar": Case(lambda: ArgminNode(wave, (), [()]), shapes=((),)),
    "argmin of a matrix": Case(lambda: ArgminNode(matrix_objective, (3, 2), SHAPES)),
    "argmin by conjugate gradients": Case(
        lambda: ArgminNode(objective, (3,), SHAPES, options=NodeOptions(linear=ConjugateGradients(tol=1e-14))),
        double_only=True,
    ),
    "argmax": Case(lambda: ArgmaxNode(lambda y, A, b: -objective(y, A, b), (3,), SHAPES)),
    "stationary": Case(
        lambda: StationaryNode(wave, (), [()], options=NodeOptions(start=torch.tensor(1.5))), shapes=((),)
    ),
    "linear equality, null space": Case(lambda: LinearEqualityNode(objective, ONES, ONE, SHAPES)),
    "linear equality, KKT": Case(lambda: LinearEqualityNode(objective, ONES, ONE, SHAPES, form=LinearForm.KKT)),
    "equality": Case(
        lambda: EqualityNode(objective, sphere, (3,), SHAPES, options=NodeOptions(start=torch.tensor([0.1, 0.2, 0.3])))
    ),
    "equality by minimal residual": Case(
        lambda: EqualityNode(
            objective,
            sphere,
            (3,),
            SHAPES,
            options=NodeOptions(start=torch.tensor([0.1, 0.2, 0.3]), linear=MinimalResidual(tol=1e-14)),
        ),
        double_only=True,
    ),
    "inequality, active set": Case(lambda: InequalityNode(objective, bounds, (3,), SHAPES)),
    "inequality and equality": Case(lambda: InequalityNode(objective, bounds, (3,), SHAPES, h=plane)),
    "inequality, barrier": Case(lambda: InequalityNode(objective, bounds, (3,), SHAPES, t=50.0)),
    "inequality and equality, barrier": Case(lambda: InequalityNode(objective, bounds, (3,), SHAPES, h=plane, t=50.0)),
}
