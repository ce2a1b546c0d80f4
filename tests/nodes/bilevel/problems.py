"""Bilevel problems of the literature in KKT form, and helpers of the tests."""

from __future__ import annotations

from typing import Any

import torch

from convexlayer.nodes import (
    KKT,
    BilevelResult,
    Box,
    InequalityNode,
    solve_bilevel,
)

D = torch.float64


def vector(*entries: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=D)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


def solve(upper: Any, lower: Any, *theta: torch.Tensor, **options: Any) -> BilevelResult:
    return solve_bilevel(upper, lower, theta, method=KKT(**options), progress=False)


def bard_1988_1(start: float = 1.0) -> BilevelResult:
    """Bard (1988), example 1: 17 at x = 1, y = 0."""
    lower = InequalityNode(
        lambda y, x: (y[0] - 1) ** 2 - 1.5 * x[0] * y[0],
        lambda y, x: torch.stack([3 - 3 * x[0] + y[0], x[0] - 0.5 * y[0] - 4, x[0] + y[0] - 7, -y[0]]),
        (1,),
        [(1,)],
    )
    return solve(
        lambda y, x: (x[0] - 5) ** 2 + (2 * y[0] + 1) ** 2, lower, vector(start), regulariser=Box(0.0, torch.inf)
    )


def bard_1988_2() -> BilevelResult:
    """Bard (1988), example 2: -6600, at x = (7, 3, 12, 18), y = (0, 10, 30, 0) and elsewhere."""
    limits, targets = vector(20, 20, 40, 40), vector(4, 13, 35, 2)

    def g(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        used = torch.stack(
            [
                0.4 * y[0] + 0.7 * y[1],
                0.6 * y[0] + 0.3 * y[1],
                0.4 * y[2] + 0.7 * y[3],
                0.6 * y[2] + 0.3 * y[3],
            ]
        )
        return torch.cat([used - x, -y, y - limits])

    def upper(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return -(200 - y[0] - y[2]) * (y[0] + y[2]) - (160 - y[1] - y[3]) * (y[1] + y[3])

    def constraints(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x - vector(10, 5, 15, 20), x.sum().reshape(1) - 40])

    lower = InequalityNode(lambda y, x: (y - targets).square().sum(), g, (4,), [(4,)])
    return solve(upper, lower, vector(5, 5, 15, 15), regulariser=Box(0.0), constraints=constraints)


def bard_1988_3() -> BilevelResult:
    """Bard (1988), example 3: -12.6787 at x = (0, 2), y = (1.875, 0.90625)."""
    lower = InequalityNode(
        lambda y, x: 2 * x[0] ** 2 + y[0] ** 2 - 5 * y[1],
        lambda y, x: torch.cat(
            [
                torch.stack(
                    [
                        -3 - (x[0] ** 2 - 2 * x[0] + x[1] ** 2 - 2 * y[0] + y[1]),
                        4 - (x[1] + 3 * y[0] - 4 * y[1]),
                    ]
                ),
                -y,
            ]
        ),
        (2,),
        [(2,)],
    )
    return solve(
        lambda y, x: -(x[0] ** 2) - 3 * x[1] - 4 * y[0] + y[1] ** 2,
        lower,
        vector(0.0, 1.0),
        regulariser=Box(0.0),
        constraints=lambda y, x: (x[0] ** 2 + 2 * x[1] - 4).reshape(1),
    )


def bard_1991_1(choice: str) -> BilevelResult:
    """Bard (1991), example 1: 2 at x = 2, y = (6, 0), where all y >= 0 with y_1 + y_2 = 6 are lower solutions."""
    lower = InequalityNode(
        lambda y, x: 2 * y[0] + x[0] * y[1],
        lambda y, x: torch.cat([(x[0] + 4 - y.sum()).reshape(1), -y]),
        (2,),
        [(1,)],
    )
    return solve(lambda y, x: x[0] + y[1], lower, vector(3.0), regulariser=Box(2.0, 4.0), choice=choice)
