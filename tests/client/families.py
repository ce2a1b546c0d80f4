"""Problems on which the remote layer is compared with the local one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import torch


@dataclass(frozen=True)
class Family:
    """A problem with a distribution of its parameters.

    Attributes:
        problem: The problem.
        parameters: Its parameters.
        outputs: Variables and dual variables.
        draw: Draws one value per parameter, of the shape of the parameter.
        gp: Whether it is a geometric program.
    """

    problem: cp.Problem
    parameters: list[cp.Parameter]
    outputs: list[cp.Variable]
    draw: Callable[[np.random.Generator], list[Any]]
    gp: bool = False

    def tensors(self, seed: int, batched: tuple[bool, ...] | None = None, batch: int = 3) -> list[torch.Tensor]:
        """Draw leaf tensors that require gradients; ``batched`` says which have a batch axis."""
        rng = np.random.default_rng(seed)
        elements = [self.draw(rng) for _ in range(batch)]
        has_axis = batched or (False,) * len(self.parameters)
        values = [
            np.stack([element[i] for element in elements]) if stacked else np.asarray(elements[0][i])
            for i, stacked in enumerate(has_axis)
        ]
        return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


def quadratic() -> Family:
    x = cp.Variable(5, name="x")
    L, q, b = cp.Parameter((5, 5), name="L"), cp.Parameter(5, name="q"), cp.Parameter(3, name="b")
    G = np.random.default_rng(1).standard_normal((3, 5))
    constraints = [G @ x <= b, cp.sum(x) == 1]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(L @ x) + q @ x), constraints)
    duals = [constraint.dual_variables[0] for constraint in constraints]

    def draw(rng: np.random.Generator) -> list[Any]:
        return [rng.standard_normal((5, 5)) + 3 * np.eye(5), rng.standard_normal(5), rng.random(3)]

    return Family(problem, [L, q, b], [x, *duals], draw)


def second_order() -> Family:
    x = cp.Variable(4, name="x")
    A, b, radius = cp.Parameter((3, 4)), cp.Parameter(3), cp.Parameter(pos=True)
    cone = cp.SOC(radius, x)
    problem = cp.Problem(cp.Minimize(cp.norm(A @ x - b) + 0.1 * cp.sum_squares(x)), [cone])

    def draw(rng: np.random.Generator) -> list[Any]:
        return [rng.standard_normal((3, 4)), 5 * rng.standard_normal(3), 0.5 + rng.random()]

    return Family(problem, [A, b, radius], [x, *cone.dual_variables], draw)


def semidefinite() -> Family:
    X = cp.Variable((3, 3), symmetric=True, name="X")
    C = cp.Parameter((3, 3), symmetric=True, name="C")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [X >> 0, cp.trace(X) == 1])

    def draw(rng: np.random.Generator) -> list[Any]:
        half = rng.standard_normal((3, 3))
        return [half + half.T]

    return Family(problem, [C], [X, problem.constraints[1].dual_variables[0]], draw)


def exponential() -> Family:
    x = cp.Variable(4, name="x")
    c, mean = cp.Parameter(4, name="c"), cp.Parameter(name="mean")
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(x)) + c @ x), [cp.sum(x) == 1, np.arange(4.0) @ x == mean])

    def draw(rng: np.random.Generator) -> list[Any]:
        return [rng.standard_normal(4), 1 + rng.random()]

    return Family(problem, [c, mean], [x], draw)


def geometric() -> Family:
    w, h, d = (cp.Variable(pos=True, name=name) for name in "whd")
    wall, floor = cp.Parameter(pos=True, name="wall"), cp.Parameter(pos=True, name="floor")
    constraints = [2 * (h * w + h * d) <= wall, w * d <= floor, h <= 2 * w, d <= 2 * w]
    problem = cp.Problem(cp.Maximize(h * w * d), constraints)

    def draw(rng: np.random.Generator) -> list[Any]:
        return [100 + 10 * rng.random(), 8 + rng.random()]

    return Family(problem, [wall, floor], [w, h, d], draw, gp=True)


FAMILIES = {family.__name__: family for family in (quadratic, second_order, semidefinite, exponential, geometric)}
