"""Invariance to units of objectives, variables and constraints: no wrong point is optimal, no wrong gradient ok."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

from convexlayer import FailedElementsError
from convexlayer.nodes import (
    AbstractNode,
    ArgmaxNode,
    ArgminNode,
    EqualityNode,
    FixedPointNode,
    GivenBatch,
    InequalityNode,
    Kind,
    LinearEqualityNode,
    LinearForm,
    NodeOptions,
    StationaryNode,
)

D = torch.float64
N, DRAWS = 3, 72
SHAPES = [(), (N,), (3,), (4, N), (N,)]

Function = Callable[..., torch.Tensor]


def energy(u: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Strictly convex, with all derivatives depending on both parameters."""
    return torch.logsumexp(A @ u, 0) + 0.5 * u.square().sum() + 0.1 * u.pow(4).sum() - b @ u


def f(y: torch.Tensor, unit: torch.Tensor, s: torch.Tensor, c: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
    return unit * energy(y / s, *theta)


def minus_f(y: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
    return -f(y, *theta)


def sphere(
    y: torch.Tensor, unit: torch.Tensor, s: torch.Tensor, c: torch.Tensor, A: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    return c[:1] * ((y / s).square().sum() - 1.0 - 0.1 * b[0] ** 2)


def plane(
    y: torch.Tensor, unit: torch.Tensor, s: torch.Tensor, c: torch.Tensor, A: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    return c[:1] * ((y / s).sum() - 0.1 * b[1])


def bounds(
    y: torch.Tensor, unit: torch.Tensor, s: torch.Tensor, c: torch.Tensor, A: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    u = y / s
    return c * torch.stack([u.square().sum() - 0.09 - 0.01 * A[0, 0] ** 2, u[0] + 0.1, -u[1] - 10.0])


NODES: dict[str, AbstractNode] = {
    "argmin": ArgminNode(f, (N,), SHAPES),
    "argmax": ArgmaxNode(minus_f, (N,), SHAPES),
    "stationary": StationaryNode(f, (N,), SHAPES),
    "sphere": EqualityNode(f, sphere, (N,), SHAPES),
    "plane": EqualityNode(f, plane, (N,), SHAPES),
    "inequalities": InequalityNode(f, bounds, (N,), SHAPES),
    "inequalities and plane": InequalityNode(f, bounds, (N,), SHAPES, h=plane),
}


def draw(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Objective units of 1e-9 to 1e9, variable units of 1e-6 to 1e6, constraint units of 1e-4 to 1e4; A and b."""
    generator = torch.Generator().manual_seed(seed)

    def power(reach: float, *shape: int) -> torch.Tensor:
        return 10.0 ** (reach * (2.0 * torch.rand(*shape, generator=generator, dtype=D) - 1.0))

    A = torch.randn(DRAWS, 4, N, generator=generator, dtype=D)
    b = torch.randn(DRAWS, N, generator=generator, dtype=D)
    return tuple(t.to(dtype) for t in (power(9, DRAWS), power(6, DRAWS, N), power(4, DRAWS, 3), A, b))


@pytest.mark.filterwarnings("ignore:the derivative of")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NODES)
def test_solutions_and_gradients_are_equivariant_to_units(name: str, dtype: torch.dtype) -> None:
    node = NODES[name]
    unit, s, c, A, b = draw(len(name), dtype)
    A, b = A.requires_grad_(), b.requires_grad_()
    y, report = node.solve(unit, s, c, A, b)
    u = y.y.double() / s.double()
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=D)
    found = torch.autograd.grad((u * weight).sum(), (A, b))
    plain = torch.ones(DRAWS, dtype=D), torch.ones(DRAWS, N, dtype=D), torch.ones(DRAWS, 3, dtype=D)
    exact = tuple(t.detach().double().requires_grad_() for t in (A, b))
    # Started at the solution in plain units, since a sphere may have several minima.
    v, plain_report = node.solve(*plain, *exact, warm_start=u.detach())
    expected = torch.autograd.grad((v.y * weight).sum(), exact)
    tight = dtype == torch.float64
    off = (u - v.y).detach().abs().amax(-1) / v.y.detach().abs().amax(-1)
    assert float(off.max()) < (1e-9 if tight else 1e-3)
    assert report.derivative is not None
    assert plain_report.derivative is not None
    sure = torch.tensor([word == "ok" for word in report.derivative.status])
    assert plain_report.derivative.trusted
    assert float(sure.double().mean()) > (0.999 if tight else 0.9)
    for mine, theirs in zip(found, expected, strict=True):
        error = (mine.double() - theirs).flatten(1).abs().amax(-1) / theirs.flatten(1).abs().amax(-1)
        assert float(error[sure].max()) < (1e-8 if tight else 2e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", LinearForm)
def test_linear_equalities_in_any_units(form: LinearForm, dtype: torch.dtype) -> None:
    units, sizes, rows, As, bs = draw(7, torch.float64)
    for unit, s, c, A, b in zip(units[:12], sizes, rows, As, bs, strict=False):

        def objective(
            y: torch.Tensor, A: torch.Tensor, b: torch.Tensor, unit: torch.Tensor = unit, s: torch.Tensor = s
        ) -> torch.Tensor:
            return unit.to(y) * energy(y / s.to(y), A, b)

        ones = torch.ones(1, N, dtype=D)
        node = LinearEqualityNode(objective, c[0] * ones / s, 0.3 * c[:1], SHAPES[3:], form=form)
        plain = LinearEqualityNode(energy, ones, torch.full((1,), 0.3, dtype=D), SHAPES[3:], form=form)
        given = tuple(t.to(dtype).requires_grad_() for t in (A, b))
        exact = tuple(t.detach().double().requires_grad_() for t in given)
        u, v = (node(*given).double() / s), plain(*exact)
        tol = 1e-9 if dtype == torch.float64 else 1e-3
        torch.testing.assert_close(u, v, rtol=tol, atol=tol)
        found, expected = torch.autograd.grad(u.sum() + u[0], given), torch.autograd.grad(v.sum() + v[0], exact)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=30 * tol, atol=30 * tol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fixed_points_in_any_units(dtype: torch.dtype) -> None:
    """Gradient steps on the energy, with variables in different units, one of which converges to zero."""

    def step(y: torch.Tensor, s: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        u = y / s
        moved = u - 0.1 * torch.func.grad(energy)(u, A, b)
        return s * torch.cat([moved[:2], 0.5 * u[2:]])

    _, s, _, A, b = draw(11, dtype)
    node = FixedPointNode(step, (N,), SHAPES[1:2] + SHAPES[3:], start=torch.ones(N))
    given = tuple(t.requires_grad_() for t in (A, b))
    exact = tuple(t.detach().double().requires_grad_() for t in given)
    start = s.expand(DRAWS, N)
    u = node(s, *given, warm_start=start).double() / s.double()
    v = node(torch.ones(DRAWS, N, dtype=D), *exact)
    tol = 1e-9 if dtype == torch.float64 else 3e-4
    torch.testing.assert_close(u, v, rtol=tol, atol=tol)
    found, expected = torch.autograd.grad(u[:, :2].sum(), given), torch.autograd.grad(v[:, :2].sum(), exact)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=100 * tol, atol=100 * tol)


def test_inequality_is_active_under_a_small_objective() -> None:
    x = torch.tensor([3.0, -7.0], dtype=D, requires_grad=True)
    node = InequalityNode(lambda y, x: 1e-9 * (y - x).square().sum(), lambda y, x: -y, (2,), [(2,)])
    y, report = node.solve(x)
    torch.testing.assert_close(y.y, torch.tensor([3.0, 0.0], dtype=D), rtol=0, atol=1e-15)
    torch.testing.assert_close(y.mu, torch.tensor([0.0, 1.4e-8], dtype=D), rtol=1e-12, atol=0)
    y.y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([1.0, 0.0], dtype=D), rtol=0, atol=1e-14)
    assert report.derivative is not None
    assert report.derivative.trusted


def test_small_objective_is_minimised_in_float32() -> None:
    x = torch.tensor([3.0, -7.0])
    y = ArgminNode(lambda y, x: 1e-6 * (y - x).square().sum(), (2,), [(2,)])(x)
    torch.testing.assert_close(y, x)


def test_large_block_does_not_mask_errors_of_a_small_one() -> None:
    """A block without a minimum beside one of 1e12 times its size, and one that a given solver leaves unsolved."""

    def blocks(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return 1e12 * (y[0] - x).square() + 1.0 / y[1]

    start = NodeOptions(start=torch.tensor([0.0, 1.0], dtype=D))
    with pytest.raises(FailedElementsError, match="iteration_limit"):
        ArgminNode(blocks, (2,), [()], options=start)(torch.tensor(2.0, dtype=D))

    def apart(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return 1e12 * (y[0] - x).square() + 1e-12 * (y[1] - 1e-3 * x).square()

    half = GivenBatch(lambda x: torch.stack([x, 2e-3 * x], -1))
    with pytest.raises(FailedElementsError, match="iteration_limit"):
        ArgminNode(apart, (2,), [()], solver=half, options=NodeOptions(polish=0))(torch.tensor([2.0], dtype=D))
    y = ArgminNode(apart, (2,), [()])(torch.tensor(2.0, dtype=D))
    torch.testing.assert_close(y, torch.tensor([2.0, 2e-3], dtype=D), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "function",
    [lambda y, x: x / y, lambda y, x: -x * torch.log(y), lambda y, x: x * torch.exp(-y), lambda y, x: x * y**3],
    ids=["1/y", "-log y", "exp(-y)", "y^3"],
)
def test_functions_without_minimum_are_not_optimal(function: Function) -> None:
    for first in (0.5, 1.0, 30.0):
        node = ArgminNode(function, (), [()], options=NodeOptions(start=torch.tensor(first, dtype=D)))
        with pytest.raises(FailedElementsError, match="iteration_limit"):
            node(torch.tensor(1.0, dtype=D))


@pytest.mark.parametrize("steepness", [1e2, 1e5, 1e9])
def test_long_curved_valley_is_followed_to_its_end(steepness: float) -> None:
    """Rosenbrock's function with minimum (x, x^2)."""

    def valley(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (x - y[0]) ** 2 + steepness * (y[1] - y[0] ** 2) ** 2

    x = torch.tensor(1.0, dtype=D, requires_grad=True)
    y = ArgminNode(valley, (2,), [()], options=NodeOptions(start=torch.tensor([-1.2, 1.0], dtype=D)))(x)
    torch.testing.assert_close(y, torch.tensor([1.0, 1.0], dtype=D), rtol=0, atol=1e-9)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, torch.tensor(3.0, dtype=D), rtol=1e-6, atol=0)


def test_minima_with_vanishing_curvature_are_found_without_derivative() -> None:
    x = torch.tensor(1.0, dtype=D, requires_grad=True)
    node = ArgminNode(lambda y, x: x * y**4, (), [()], options=NodeOptions(start=torch.tensor(1.0, dtype=D)))
    point, report = node.solve(x)
    assert abs(point.y.item()) < 1e-6
    assert report.kind == (Kind.DEGENERATE,)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        point.y.backward()
    assert "singular" in str(caught[0].message)
    assert report.derivative is not None
    assert report.derivative.status == ("degenerate",)
