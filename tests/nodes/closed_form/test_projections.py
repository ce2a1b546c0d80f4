"""Projections: known values, degenerate points and radii."""

from __future__ import annotations

import math

import pytest
import torch

from convexlayer.errors import ProblemError
from convexlayer.nodes import (
    project_l1_ball,
    project_l1_sphere,
    project_l2_ball,
    project_l2_sphere,
    project_linf_ball,
    project_linf_sphere,
    project_simplex,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp


def double(*values: float | list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_known_projections() -> None:
    torch.testing.assert_close(project_simplex(double(0.5, 0.5, -9.0)), double(0.5, 0.5, 0.0))
    torch.testing.assert_close(project_l1_ball(double(3.0, -1.0), 2.0), double(2.0, 0.0))
    torch.testing.assert_close(
        project_l1_sphere(double(0.2, -0.1, 0.0)), double(0.2, -0.1, 0.0) + double(1, -1, 1) * 0.7 / 3
    )
    torch.testing.assert_close(project_linf_sphere(double(0.2, -0.7)), double(0.2, -1.0))


def test_centre_of_the_sphere_is_rejected() -> None:
    with pytest.raises(ProblemError, match="in element 1"):
        project_l2_sphere(double([1.0, 0.0], [0.0, 0.0]))


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
def test_radius_must_be_positive_and_finite(radius: float) -> None:
    with pytest.raises(ProblemError, match="radius"):
        project_simplex(normal(3), radius)
    with pytest.raises(ProblemError, match="radius"):
        project_simplex(normal(2, 3), double(1.0, radius))


def test_constant_and_tensor_radius_agree() -> None:
    x = normal(4, 5)
    balls = (project_l1_ball, project_l2_ball, project_linf_ball)
    for project in (project_simplex, *balls, project_l1_sphere, project_l2_sphere, project_linf_sphere):
        torch.testing.assert_close(project(x, 1.3), project(x, double(1.3)[0]), rtol=0, atol=1e-15)


def test_small_radius_beside_large_entries_is_exact() -> None:
    y = project_simplex(double(1e17, 1e17 - 64.0, 0.0))
    torch.testing.assert_close(y, double(1.0, 0.0, 0.0))


def test_second_derivative_inside_a_ball_is_zero() -> None:
    x = torch.zeros(3, dtype=torch.float64)
    for project in (project_l1_ball, project_l2_ball, project_linf_ball):
        curvature = torch.func.hessian(lambda x, project=project: project(x, 2.0).square().sum())(x)
        torch.testing.assert_close(curvature, 2.0 * torch.eye(3).double())
