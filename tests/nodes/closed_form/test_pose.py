"""Perspective-n-point: known poses, weights of zero and undetermined poses."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from convexlayer.errors import DerivativeError, ProblemError
from convexlayer.nodes import (
    perspective_n_point,
    rotation_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp


def double(*values: float | list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def views(n: int, R: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    X = normal(n, 3)
    Y = X @ R.mT + t
    return X, Y[..., :2] / Y[..., 2:]


def test_known_pose_is_recovered() -> None:
    R, t = rotation_of(2.0 * normal(50, 3)), double(0.3, -0.2, 7.0)
    X, x = views(10, R, t)
    found = perspective_n_point(X, x)
    torch.testing.assert_close(found, (R, t.expand(50, 3)), rtol=0, atol=1e-9)


def test_points_of_zero_weight_are_ignored() -> None:
    R, t = rotation_of(normal(3)), double(0.0, 0.0, 6.0)
    X, x = views(9, R, t)
    x[4] += 1.0
    w = torch.ones(9, dtype=torch.float64)
    w[4] = 0.0
    torch.testing.assert_close(perspective_n_point(X, x, w), (R, t), rtol=0, atol=1e-9)


def test_few_points_require_a_start() -> None:
    R, t = rotation_of(normal(3)), double(0.0, 0.0, 6.0)
    X, x = views(4, R, t)
    with pytest.raises(ProblemError, match="start"):
        perspective_n_point(X, x)
    near = rotation_of(double(0.05, -0.05, 0.02)) @ R, t + 0.1
    torch.testing.assert_close(perspective_n_point(X, x, start=near), (R, t), rtol=0, atol=1e-9)
    starts = vmap(lambda R, t: perspective_n_point(X, x, start=(R, t)))(near[0][None], near[1][None])
    torch.testing.assert_close(starts[0][0], R, rtol=0, atol=1e-9)


@pytest.mark.parametrize("start", [1.1 * torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, -1.0]))])
def test_a_start_must_be_a_rotation(start: torch.Tensor) -> None:
    """Steps turn the start, so a start that is stretched or reflected would stay so."""
    X, x = views(8, torch.eye(3, dtype=torch.float64), double(0.0, 0.0, 6.0))
    with pytest.raises(ProblemError, match="start: expected a rotation"):
        perspective_n_point(X, x, start=(start.double(), double(0.0, 0.0, 6.0)))


def test_a_start_in_float32_may_be_rounded() -> None:
    X, x = (t.float() for t in views(8, torch.eye(3, dtype=torch.float64), double(0.0, 0.0, 6.0)))
    near = rotation_of(torch.tensor([0.05, -0.05, 0.02]))
    R, _ = perspective_n_point(X, x, start=(near @ near, torch.tensor([0.1, 0.0, 6.0])))
    torch.testing.assert_close(R, torch.eye(3), rtol=0, atol=1e-4)


def test_too_few_points_have_no_derivative() -> None:
    R, t = rotation_of(normal(3)), double(0.0, 0.0, 6.0)
    X, x = views(2, R, t)
    x.requires_grad_()
    pose = perspective_n_point(X, x, start=(R, t))
    with pytest.raises(DerivativeError, match="not positive definite"):
        pose[1].sum().backward()
