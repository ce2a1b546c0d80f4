"""Kinds of stationary points, descent from saddles and maxima, and starts with vanishing derivatives."""

from __future__ import annotations

import pytest
import torch

from convexlayer import FailedElementsError
from convexlayer.nodes import (
    ArgmaxNode,
    ArgminNode,
    EqualityNode,
    Given,
    InequalityNode,
    Kind,
    NodeOptions,
    StationaryNode,
)

D = torch.float64


def double(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers if len(numbers) > 1 else numbers[0], dtype=D)


def quartic(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A maximum at 0 between two minima at (-6 x^2 +- sqrt(36 x^4 + 384 x)) / 8 x."""
    return x * y**4 + 2 * x**2 * y**3 - 12 * y**2


def test_start_at_a_maximum_is_left() -> None:
    point, report = ArgminNode(quartic, (), [()]).solve(double(1.0))
    minima = (double(-6.0, -6.0) + double(1.0, -1.0) * double(420.0).sqrt()) / 8.0
    assert float((point.y - minima).abs().min()) < 1e-14
    assert report.kind == (Kind.MINIMUM,)
    point, report = StationaryNode(quartic, (), [()]).solve(double(1.0))
    assert point.y.item() == 0.0
    assert report.kind == (Kind.MAXIMUM,)
    point, report = ArgmaxNode(quartic, (), [()]).solve(double(1.0))
    assert point.y.item() == 0.0
    assert report.kind == (Kind.MINIMUM,)  # of -f


def test_saddles_are_left_along_negative_curvature() -> None:
    def saddle(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y[0] ** 2 - y[1] ** 2 + x * y[1] ** 4

    x = torch.tensor([0.5, 2.0], dtype=D, requires_grad=True)
    point, report = ArgminNode(saddle, (2,), [()]).solve(x)
    torch.testing.assert_close(point.y[:, 1].abs(), (2.0 * x) ** -0.5, rtol=1e-12, atol=0)
    assert report.kind == (Kind.MINIMUM,) * 2
    _, report = StationaryNode(saddle, (2,), [()]).solve(x)
    assert report.kind == (Kind.SADDLE,) * 2


def test_higher_order_saddle_is_left() -> None:
    y = ArgminNode(lambda y, x: y**6 - x * y**4, (), [()])(double(1.0))
    torch.testing.assert_close(y.abs(), double(2.0 / 3.0).sqrt(), rtol=1e-13, atol=0)


def circle(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (y.square().sum() - 1.0).reshape(1)


def test_farthest_point_of_a_circle_is_not_a_minimum() -> None:
    x = torch.randn(50, 2, dtype=D, generator=torch.Generator().manual_seed(0))
    node = EqualityNode(lambda y, x: x @ y, circle, (2,), [(2,)], options=NodeOptions(start=lambda x: x / x.norm()))
    y, report = node.solve(x)
    torch.testing.assert_close(y.y, -x / x.norm(dim=-1, keepdim=True), rtol=0, atol=1e-12)
    assert set(report.kind) == {Kind.MINIMUM}


def test_saddle_on_active_inequalities_is_left() -> None:
    """-y0^2 on y1 >= x, -1 <= y0 <= 2: a start at y0 = 0 is stationary."""

    def f(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return -(y[0] ** 2) + (y[1] + 1.0) ** 2

    def g(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x - y[1], y[0] - 2.0, -1.0 - y[0]])

    point, report = InequalityNode(f, g, (2,), [()], options=NodeOptions(start=double(0.0, 3.0))).solve(double(1.0))
    assert float(point.y[0]) in (pytest.approx(2.0), pytest.approx(-1.0))
    assert point.y[1].item() == pytest.approx(1.0)
    assert report.kind == (Kind.MINIMUM,)


def test_given_solution_that_is_not_a_minimum_fails_with_its_kind() -> None:
    node = ArgminNode(quartic, (), [()], solver=Given(lambda x: 0.0))
    with pytest.raises(FailedElementsError, match="a maximum and no minimum"):
        node(double(1.0))


def test_start_without_curvature() -> None:
    x = torch.tensor([[1.0, -8.0, 1e6], [1e-9, 3.0, -1e-3]], dtype=D, requires_grad=True)
    y = ArgminNode(lambda y, x: y.pow(4).sum() - x @ y, (3,), [(3,)])(x)
    torch.testing.assert_close(y, x.sign() * (x.abs() / 4.0) ** (1.0 / 3.0), rtol=1e-10, atol=0)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, 1.0 / (12.0 * y.detach() ** 2), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_default_start_on_a_sphere(dtype: torch.dtype) -> None:
    """The constraint has zero gradient at the start 0."""
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=D).to(dtype).requires_grad_()
    unit = x / x.norm(dim=-1, keepdim=True)
    tol = 1e-12 if dtype == torch.float64 else 1e-5
    nearest = EqualityNode(lambda y, x: (y - x).square().sum(), circle, (3,), [(3,)])(x)
    torch.testing.assert_close(nearest, unit, rtol=0, atol=tol)
    found, expected = (torch.autograd.grad(v[:, 0].sum(), x, retain_graph=True)[0] for v in (nearest, unit))
    torch.testing.assert_close(found, expected, rtol=100 * tol, atol=100 * tol)
    linear = EqualityNode(lambda y, x: x @ y, circle, (3,), [(3,)])(x)
    torch.testing.assert_close(linear, -unit, rtol=0, atol=tol)
