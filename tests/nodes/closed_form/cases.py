"""Closed forms as functions of tensors, at inputs where they are twice differentiable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from convexlayer.nodes import (
    AbstractPenalty,
    Huber,
    PseudoHuber,
    Quadratic,
    TruncatedQuadratic,
    Welsch,
    eigen_decomposition,
    least_squares,
    nearest_simplex_etf,
    optimal_transport,
    orthogonal_procrustes,
    perspective_n_point,
    project_l1_ball,
    project_l1_sphere,
    project_l2_ball,
    project_l2_sphere,
    project_linf_ball,
    project_linf_sphere,
    project_simplex,
    robust_pool,
    rotation_of,
    weighted_least_squares,
)

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Form:
    """A closed form under test.

    Attributes:
        function: tensors -> a tensor or several.
        inputs: makes the tensors of one element, float64.
        tolerance: relative error of float32 results against float64.
    """

    function: Callable[..., torch.Tensor | Tensors]
    inputs: Callable[[torch.Generator], Tensors]
    tolerance: float = 1e-4

    def tensors(self, batch: int | None = None) -> Tensors:
        generator = torch.Generator().manual_seed(0)
        if batch is None:
            return tuple(t.requires_grad_() for t in self.inputs(generator))
        rows = [self.inputs(generator) for _ in range(batch)]
        return tuple(torch.stack(column).requires_grad_() for column in zip(*rows, strict=True))

    def outputs(self, *inputs: torch.Tensor) -> Tensors:
        found = self.function(*inputs)
        return found if isinstance(found, tuple) else (found,)


def normal(*shape: int) -> Callable[[torch.Generator], torch.Tensor]:
    return lambda generator: torch.randn(shape, dtype=torch.float64, generator=generator)


def positive(*shape: int) -> Callable[[torch.Generator], torch.Tensor]:
    return lambda generator: 0.5 + torch.rand(shape, dtype=torch.float64, generator=generator)


def several(*makers: Callable[[torch.Generator], torch.Tensor]) -> Callable[[torch.Generator], Tensors]:
    return lambda generator: tuple(maker(generator) for maker in makers)


def scaled(factor: float) -> Callable[[torch.Generator], Tensors]:
    """Points and a radius of about one."""
    return lambda generator: (factor * normal(5)(generator), positive()(generator))


def with_outliers(d: int) -> Callable[[torch.Generator], Tensors]:
    def make(generator: torch.Generator) -> Tensors:
        x = normal(7, d)(generator)
        x[0] += 5.0
        return x, positive()(generator)

    return make


def views(generator: torch.Generator) -> Tensors:
    X = normal(8, 3)(generator)
    Y = X @ rotation_of(normal(3)(generator)).T + torch.tensor([0.2, -0.1, 6.0], dtype=torch.float64)
    return X, Y[:, :2] / Y[:, 2:] + 0.02 * normal(8, 2)(generator), positive(8)(generator)


def transported(M: torch.Tensor, r: torch.Tensor, c: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """r and c from logarithms, scaled to equal sums."""
    return optimal_transport(M, r.softmax(-1), c.softmax(-1), gamma, tol=1e-13)


def pooled(penalty: AbstractPenalty, x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return robust_pool(x, penalty, alpha)


def near(A: torch.Tensor, B: torch.Tensor, previous: torch.Tensor, proximal: torch.Tensor) -> torch.Tensor:
    return orthogonal_procrustes(A, B, previous=previous, proximal=proximal)


def scaled_etf(means: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return nearest_simplex_etf(means, scale=scale)


def of_least_norm(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return least_squares(A, b, rcond=1e-10, on_degenerate="raise")


FORMS: dict[str, Form] = {
    "least squares": Form(least_squares, several(normal(7, 3), normal(7))),
    "weighted least squares": Form(weighted_least_squares, several(normal(7, 3), normal(7), positive(7))),
    "least norm of wide": Form(of_least_norm, several(normal(3, 6), normal(3))),
    "eigen": Form(eigen_decomposition, several(normal(4, 4)), 1e-3),
    "eigen top 2": Form(lambda X: eigen_decomposition(X, 2), several(normal(4, 4)), 1e-3),
    "transport": Form(transported, several(normal(3, 5), normal(3), normal(5), positive())),
    "transport tall": Form(transported, several(normal(4, 2), normal(4), normal(2), positive())),
    "transport uniform": Form(optimal_transport, several(normal(4, 4))),
    "procrustes": Form(orthogonal_procrustes, several(normal(4, 6), normal(4, 6))),
    "procrustes rotation": Form(
        lambda A, B: orthogonal_procrustes(A, B, rotation=True), several(normal(3, 6), normal(3, 6)), 1e-3
    ),
    "procrustes columns": Form(orthogonal_procrustes, several(normal(4, 6), normal(2, 6))),
    "procrustes near another": Form(near, several(normal(4, 6), normal(2, 6), normal(4, 2), positive())),
    "simplex etf": Form(nearest_simplex_etf, several(normal(4, 5)), 1e-3),
    "simplex etf of a scale": Form(scaled_etf, several(normal(6, 4), positive()), 1e-3),
    "pnp": Form(perspective_n_point, views),
    **{
        f"pool {type(penalty).__name__} {d}": Form(partial(pooled, penalty), with_outliers(d))
        for penalty in (Quadratic(), PseudoHuber(), Huber(), Welsch(), TruncatedQuadratic())
        for d in (1, 3)
    },
    **{
        f"{function.__name__} of {factor}": Form(function, scaled(factor))
        for function in (
            project_simplex,
            project_l1_ball,
            project_l1_sphere,
            project_l2_ball,
            project_l2_sphere,
            project_linf_ball,
            project_linf_sphere,
        )
        for factor in (0.1, 3.0)
    },
}  # fmt: skip
