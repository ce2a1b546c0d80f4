"""Kinks, barriers, failed elements in a batch, vertices with many active constraints, and starts without curvature."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from convexlayer import FailedElementsError
from convexlayer.nodes import (
    ArgminNode,
    EqualityNode,
    FixedPointNode,
    InequalityNode,
    Kind,
    NodeOptions,
    RootNode,
)

D = torch.float64
NAN = NodeOptions(on_failure="nan", on_degenerate="report")
QUIET = NodeOptions(on_degenerate="report")

Function = Callable[..., torch.Tensor]


def double(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers if len(numbers) > 1 else numbers[0], dtype=D, requires_grad=True)


def test_points_outside_the_barrier_domain_are_no_solutions() -> None:
    """Stationary points of the barrier objective outside its domain, for an empty set and for a distant start."""
    empty = InequalityNode(lambda y, c: (y - c) ** 2, lambda y, c: torch.stack([1 - y, y + 1]), (), [()], t=10.0)
    with pytest.raises(FailedElementsError):
        empty(double(1.0))
    start = NodeOptions(start=torch.tensor([7.0, -7.0], dtype=D))
    ball = InequalityNode(
        lambda y, c: c @ y,
        lambda y, c: y.square().sum().reshape(1) - 1,
        (2,),
        [(2,)],
        h=lambda y, c: (y[1] - y[0]).reshape(1),
        t=10.0,
        options=start,
    )
    point, _ = ball.solve(double(1.0, 1.0))
    # On the line y0 = y1 = u the minimum of 20 u - log(1 - 2 u^2): 20 (1 - 2 u^2) + 4 u = 0.
    u = (1.0 - math.sqrt(201.0)) / 20.0
    assert point.y[0].item() == pytest.approx(u, abs=1e-9)
    assert bool((point.mu > 0).all())


@pytest.mark.parametrize(
    ("f", "minimum"),
    [(lambda y, b: -y.abs() + y**2 + 0 * b, 0.5), (lambda y, b: -torch.relu(y) + y**2 + 0 * b, 0.5)],
    ids=["abs", "relu"],
)
def test_start_at_a_kink_that_is_a_maximum_is_left(f: Function, minimum: float) -> None:
    y = ArgminNode(f, (), [()])(double(1.0))
    assert abs(y.item()) == pytest.approx(minimum, abs=1e-12)


def test_kink_of_the_objective_is_reported_without_a_jump_of_curvature() -> None:
    b = double(0.0, 3.0)
    soft = ArgminNode(lambda y, b: y.abs().sum() + 0.5 * (y - b).square().sum(), (2,), [(2,)], options=QUIET)
    point, report = soft.solve(b)
    torch.testing.assert_close(point.y.detach(), torch.tensor([0.0, 2.0], dtype=D))
    point.y.sum().backward()
    assert report.derivative is not None
    assert report.derivative.status == ("degenerate",)


NODES: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], float]] = {
    "argmin": (ArgminNode(lambda y, a, s: a.sqrt() * y**2 - y * s, (), [(), ()], options=NAN), 0.75),
    "root": (RootNode(lambda y, a, s: y * a.sqrt() - s, (), [(), ()], options=NAN), 1.5),
    "fixed point": (
        FixedPointNode(lambda x, a, s: 0.5 * x + s * a.sqrt(), (), [(), ()], on_failure="nan", on_degenerate="report"),
        6.0,
    ),
}


@pytest.mark.parametrize("name", NODES)
def test_nonfinite_elements_do_not_affect_shared_gradients(name: str) -> None:
    node, expected = NODES[name]
    a, s = double(1.0, 4.0, -1.0), double(1.0)
    y = node(a, s)
    assert y.isnan().tolist() == [False, False, True]
    y[:2].sum().backward()
    assert s.grad is not None
    assert a.grad is not None
    assert s.grad.item() == pytest.approx(expected)
    assert a.grad[2].item() == 0.0
    per_element = torch.func.vmap(torch.func.grad(lambda a, s: node(a, s)), in_dims=(0, None))(a.detach(), s.detach())
    torch.testing.assert_close(per_element, a.grad)


def test_all_elements_may_fail() -> None:
    node, _ = NODES["argmin"]
    s = double(1.0)
    node(double(-1.0, -2.0), s).nansum().backward()
    assert s.grad is not None
    assert s.grad.item() == 0.0


def test_element_with_nonfinite_constraints_fails_alone() -> None:
    node = EqualityNode(lambda y, a: y @ y, lambda y, a: (a * y.sum() - 1).reshape(1), (2,), [()], options=NAN)
    y = node(double(1.0, math.nan))
    torch.testing.assert_close(y[0].detach(), torch.tensor([0.5, 0.5], dtype=D))
    assert y[1].isnan().all()


def test_captured_tensors_are_detected_under_transforms() -> None:
    w, a = double(0.7), torch.randn(3, 2, dtype=D, generator=torch.Generator().manual_seed(0))
    node = ArgminNode(lambda y, a: (y - a * w).square().sum() + w * y.pow(4).sum(), (2,), [(2,)])
    (expected,) = torch.autograd.grad(node(a).sum(), w)
    (found,) = torch.autograd.grad(torch.func.vmap(node)(a).sum(), w)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("unit", [1e-10, 1.0, 1e14])
@pytest.mark.parametrize("length", [1e-6, 1.0, 1e6])
def test_start_without_curvature_is_left_in_any_units(unit: float, length: float) -> None:
    a = double(1.0)
    y = ArgminNode(lambda y, a: unit * (a * y / length + 0.1 * (y / length) ** 4), (), [()])(a)
    assert y.item() / length == pytest.approx(-(2.5 ** (1.0 / 3.0)), rel=1e-12)


@pytest.mark.parametrize("node", [EqualityNode, InequalityNode])
def test_start_without_curvature_under_constraints(node: type[EqualityNode] | type[InequalityNode]) -> None:
    y = node(lambda y, a: a * y.sum() + 0.1 * y.pow(4).sum(), lambda y, a: (y[0] - 2 * y[1]).reshape(1), (2,), [()])(
        double(1.0)
    )
    # y0 = 2 y1 = 2 u: 3 + 0.4 (16 + 1) u^3 = 0.
    u = -((3.0 / 6.8) ** (1.0 / 3.0))
    torch.testing.assert_close(y.detach(), torch.tensor([2 * u, u], dtype=D), rtol=0, atol=1e-10)


@pytest.mark.parametrize("power", [2, 4])
@pytest.mark.parametrize("kind", [EqualityNode, InequalityNode])
def test_linear_objective_on_a_ball_is_differentiable(
    kind: type[EqualityNode] | type[InequalityNode], power: int
) -> None:
    c = torch.randn(30, 3, dtype=D, generator=torch.Generator().manual_seed(1)).requires_grad_()
    node = kind(lambda y, c: c @ y, lambda y, c: (y.pow(power).sum() - 2.0).reshape(1), (3,), [(3,)])
    point, report = node.solve(c)
    (found,) = torch.autograd.grad(point.y[:, 0].sum(), c)
    assert report.derivative is not None
    assert report.derivative.trusted, report.reasons
    # y_j = -sign(c_j) (|c_j| / scale)^(1 / (power - 1)) with sum |y_j|^power = 2.
    size = c.abs() ** (1.0 / (power - 1))
    y = -c.sign() * size * (2.0 / size.pow(power).sum(-1, keepdim=True)) ** (1.0 / power)
    torch.testing.assert_close(point.y, y, rtol=0, atol=1e-9)
    (expected,) = torch.autograd.grad(y[:, 0].sum(), c)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_vertex_with_more_active_constraints_than_variables() -> None:
    node = InequalityNode(
        lambda y, c: c @ y,
        lambda y, c: torch.cat([y - 1, -y - 1, (-y.sum() - 2).reshape(1)]),
        (2,),
        [(2,)],
        options=QUIET,
    )
    point, report = node.solve(double(1.0, 2.0))
    torch.testing.assert_close(point.y.detach(), torch.tensor([-1.0, -1.0], dtype=D), rtol=0, atol=1e-8)
    point.y.sum().backward()
    assert report.derivative is not None
    assert report.derivative.status == ("degenerate",)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        A, c = torch.randn(4, 4, dtype=D, generator=generator), torch.randn(4, dtype=D, generator=generator)
        once, twice = (
            InequalityNode(lambda y, c: 0.5 * y @ y - c @ y, lambda y, c, A=A: A @ y - 0.3, (4,), [(4,)], options=QUIET)
            for A in (A, torch.cat([A, A]))
        )
        torch.testing.assert_close(once(c), twice(c), rtol=0, atol=1e-8)


def test_vertex_that_blocks_negative_curvature_is_a_solution() -> None:
    node = InequalityNode(lambda y, c: c * y[0] * y[1], lambda y, c: torch.cat([-y, y - 1]), (2,), [()], options=QUIET)
    point, report = node.solve(double(1.0))
    torch.testing.assert_close(point.y.detach(), torch.zeros(2, dtype=D), rtol=0, atol=1e-8)
    assert report.kind == (Kind.DEGENERATE,)


def test_dual_support_vector_machine() -> None:
    """A hundred bounds and one equality, with half of the variables at zero."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(100, 5, dtype=D, generator=generator)
    labels = (X[:, 0] + 0.3 * torch.randn(100, dtype=D, generator=generator)).sign()
    Q = labels.unsqueeze(1) * torch.exp(-0.1 * torch.cdist(X, X).square()) * labels
    node = InequalityNode(
        lambda a, C: 0.5 * a @ Q @ a + 0.25 / C * a.square().sum() - a.sum(),
        lambda a, C: -a,
        (100,),
        [()],
        h=lambda a, C: (labels @ a).reshape(1),
        options=NodeOptions(start=torch.ones(100, dtype=D)),
    )
    for C in (0.1, 10.0, 1000.0):
        c = double(C)
        point, report = node.solve(c)
        point.y.sum().backward()
        assert report.derivative is not None
        assert report.derivative.trusted, report.reasons
        with torch.no_grad():
            above, below = (node(c * (1 + step)).sum() for step in (1e-6, -1e-6))
        assert c.grad is not None
        assert c.grad.item() == pytest.approx(((above - below) / (2e-6 * C)).item(), rel=1e-4)
