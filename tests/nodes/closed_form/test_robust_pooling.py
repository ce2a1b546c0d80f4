"""Robust pooling: outliers, starts, degenerate minima and invalid scales."""

from __future__ import annotations

import pytest
import torch

from convexlayer.errors import DerivativeError, ProblemError
from convexlayer.nodes import (
    Huber,
    Quadratic,
    TruncatedQuadratic,
    Welsch,
    robust_pool,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp


def double(*values: float | list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_quadratic_penalty_gives_the_mean() -> None:
    x = normal(3, 7, 2)
    torch.testing.assert_close(robust_pool(x, Quadratic()), x.mean(-2), rtol=0, atol=1e-14)


@pytest.mark.parametrize("penalty", [Huber(), Welsch(), TruncatedQuadratic()])
def test_outlier_moves_the_mean_but_not_the_robust_pool(penalty: Huber | Welsch | TruncatedQuadratic) -> None:
    inliers = 0.1 * normal(20, 3)
    x = torch.cat([inliers, 50.0 + normal(5, 3)])
    assert (x.mean(0) - inliers.mean(0)).norm() > 10.0
    assert (robust_pool(x, penalty, 1.0) - inliers.mean(0)).norm() < 1.0


def test_start_selects_among_minima() -> None:
    x = double(0.0, 0.1, 10.0).unsqueeze(-1)
    near, far = (robust_pool(x, Welsch(), start=double(start)) for start in (0.0, 9.0))
    torch.testing.assert_close(far, double(10.0))
    torch.testing.assert_close(robust_pool(x, Welsch()), near)
    assert near < 0.2


def test_interval_of_minima_has_no_derivative() -> None:
    x = double(0.0, 10.0).unsqueeze(-1).requires_grad_()
    with pytest.raises(DerivativeError, match="not positive definite"):
        robust_pool(x, Huber()).sum().backward()


def test_equal_points_pool_to_themselves() -> None:
    x = torch.full((4, 2), 3.0, dtype=torch.float64)
    for penalty in (Quadratic(), Huber(), Welsch(), TruncatedQuadratic()):
        torch.testing.assert_close(robust_pool(x, penalty), x[0])


def test_nonpositive_scales_are_rejected() -> None:
    with pytest.raises(ProblemError, match="alpha"):
        robust_pool(normal(3, 1), Huber(), 0.0)
