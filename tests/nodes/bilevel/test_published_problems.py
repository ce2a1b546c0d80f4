"""The KKT form on published bilevel problems, random quadratic programs and problems with closed-form solutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from convexlayer.gallery.softmax import in_ball, negative
from convexlayer.nodes import (
    ArgminNode,
    BilevelResult,
    Box,
    InequalityNode,
    InteriorPoint,
)
from convexlayer.nodes.bilevel import Stopped
from tests.nodes.bilevel.problems import D, bard_1988_1, bard_1988_2, bard_1988_3, bard_1991_1, solve, vector


@pytest.mark.parametrize(
    ("problem", "value", "theta"),
    [
        (bard_1988_1, 17.0, vector(1.0)),
        (bard_1988_2, -6600.0, None),
        (bard_1988_3, -12.6787109375, vector(0.0, 2.0)),
        (lambda: bard_1991_1("optimistic"), 2.0, vector(2.0)),
    ],
    ids=["1988, 1", "1988, 2", "1988, 3", "1991, 1"],
)
def test_published_optima(problem: Callable[[], BilevelResult], value: float, theta: torch.Tensor | None) -> None:
    result = problem()
    assert result.stopped is Stopped.STATIONARY
    assert result.value == pytest.approx(value, rel=1e-8)
    if theta is not None:
        torch.testing.assert_close(result.theta[0], theta, rtol=0, atol=1e-7)
    assert result.certificate is not None
    assert result.certificate.residual < 1e-9
    assert result.certificate.gap < 1e-7
    assert result.certificate.curvature >= 0


def test_local_optimum_is_found_from_a_nearby_start() -> None:
    """At x = 5 the lower problem of Bard (1988), example 1, has one feasible point; beyond, it is infeasible."""
    result = bard_1988_1(4.0)
    assert result.value == pytest.approx(25.0)
    torch.testing.assert_close(result.theta[0], vector(5.0))


@pytest.mark.parametrize("seed", [5, 15])
def test_random_quadratic_programs_are_solved_to_a_local_optimum(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    M, B, G, C, target = (
        torch.randn(*shape, dtype=D, generator=generator) for shape in ((3, 3), (3, 2), (4, 3), (4, 2), (3,))
    )
    Q = M @ M.T + 0.2 * torch.eye(3, dtype=D)
    lower = InequalityNode(
        lambda y, x: 0.5 * y @ Q @ y - (B @ x) @ y, lambda y, x: G @ y - 0.5 * C @ x - 0.5, (3,), [(2,)]
    )

    def upper(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y - 2 * target).square().sum(-1) + 0.05 * x.square().sum(-1)

    result = solve(upper, lower, torch.zeros(2, dtype=D), regulariser=Box(-3.0, 3.0))
    (x,) = result.theta
    torch.testing.assert_close(result.solution, lower(x), rtol=0, atol=1e-5)
    steps = torch.randn(60, 2, dtype=D, generator=generator) * torch.logspace(-5, -1, 60, dtype=D).unsqueeze(-1)
    beside = (x + steps).clamp(-3.0, 3.0)
    assert float(upper(lower(beside), beside).min()) >= result.value - 1e-8


def test_example_of_gould_section_5() -> None:
    generator = torch.Generator().manual_seed(2)
    A, b = torch.randn(3, 2, dtype=D, generator=generator), torch.randn(3, dtype=D, generator=generator)
    classes, angle = torch.eye(3, dtype=D), 2 * torch.pi / 3 * torch.arange(3, dtype=D)
    targets = torch.stack([torch.cos(angle), torch.sin(angle)], -1)
    lower = InequalityNode(
        lambda x, A, b: torch.stack([negative(x[i], A, b, classes[i]) for i in range(3)]).sum(),
        lambda x, A, b: torch.cat([in_ball(x[i]) for i in range(3)]),
        (3, 2),
        [(3, 2), (3,)],
    )
    result = solve(lambda x, A, b: 0.5 * (x - targets).square().sum(), lower, A, b)
    assert result.value < 1e-9  # the accuracy of the paper's gradient descent
    assert [tuple(part.shape) for part in result.theta] == [(3, 2), (3,)]
    torch.testing.assert_close(result.solution, lower(*result.theta), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"solver": InteriorPoint()}], ids=["SLSQP", "interior point"])
def test_linear_quadratic_problem_in_closed_form(options: dict[str, Any]) -> None:
    """The lower solution y = Q^-1 B x makes 1/2 |y - c|^2 + a/2 |x|^2 a least-squares problem in x."""
    generator = torch.Generator().manual_seed(0)
    M, B, c = (torch.randn(*shape, dtype=D, generator=generator) for shape in ((4, 4), (4, 3), (4,)))
    Q, a = M @ M.T + torch.eye(4, dtype=D), 0.3
    lower = ArgminNode(lambda y, x: 0.5 * y @ Q @ y - (B @ x) @ y, (4,), [(3,)])
    start = torch.zeros(3, dtype=D)
    result = solve(lambda y, x: 0.5 * (y - c).square().sum() + 0.5 * a * x.square().sum(), lower, start, **options)
    S = torch.linalg.solve(Q, B)
    x = torch.linalg.solve(S.T @ S + a * torch.eye(3, dtype=D), S.T @ c)
    torch.testing.assert_close(result.theta[0], x, rtol=0, atol=1e-8)
    torch.testing.assert_close(result.solution, S @ x, rtol=0, atol=1e-8)
    assert result.certificate is not None
    assert result.certificate.curvature == pytest.approx(float(torch.linalg.eigvalsh(Q)[0]))
