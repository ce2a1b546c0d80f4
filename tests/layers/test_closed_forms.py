"""Problems with closed-form solution maps: values, Jacobians and kinks to 1e-8 or better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from convexlayer import ConvexLayer

TIGHT: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8}
Tensors = tuple[torch.Tensor, ...]


def same_map(layer: ConvexLayer, formula: Callable[..., Tensors], *tensors: torch.Tensor) -> None:
    """Compare values and all Jacobians with those of the formula by torch."""
    positions = tuple(range(len(tensors)))
    torch.testing.assert_close(layer(*tensors), formula(*tensors), **TIGHT)
    expected = torch.func.jacrev(formula, argnums=positions)(*tensors)
    torch.testing.assert_close(torch.func.jacrev(layer, argnums=positions)(*tensors), expected, **TIGHT)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entropy_layer(n: int) -> ConvexLayer:
    x, c = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Maximize(c @ x + cp.sum(cp.entr(x))), [cp.sum(x) == 1])
    return ConvexLayer(problem, [c], [x], on_degenerate="raise")


def test_softmax() -> None:
    """argmax c'x - sum x log x over sum x = 1 is p = softmax(c), with Jacobian diag(p) - pp'."""
    c = 2.0 * numbers(6)
    layer, p = entropy_layer(6), torch.softmax(c, 0)
    torch.testing.assert_close(layer(c)[0], p, **TIGHT)
    jacobian = torch.func.jacrev(lambda v: layer(v)[0])(c)
    torch.testing.assert_close(jacobian, torch.diag(p) - torch.outer(p, p), **TIGHT)


def test_softmax_of_small_probabilities() -> None:
    """Exponential blocks far from their vertex: probabilities down to 1e-6, each to 1e-8 of the largest."""
    c = torch.tensor([0.0, -3.0, -7.0, -14.0], dtype=torch.float64)
    layer, p = entropy_layer(4), torch.softmax(c, 0)
    torch.testing.assert_close(layer(c)[0], p, **TIGHT)
    jacobian = torch.func.jacrev(lambda v: layer(v)[0])(c)
    torch.testing.assert_close(jacobian, torch.diag(p) - torch.outer(p, p), **TIGHT)


@pytest.mark.parametrize("start", [1.3, 0.4, -0.9])
def test_positive_mean(start: float) -> None:
    """Gould et al. 2016, (65)-(66) and (72): argmin sum_i (h_i(x) - y)^2 over y >= 0 is g = max(0, mean h_i(x)), and
    g' = mean h_i'(x) where g > 0, 0 where g = 0 < |mean|.
    """
    y, h = cp.Variable(), cp.Parameter(3)
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(h - y)), [y >= 0]), [h], [y], on_degenerate="raise")
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    (value,) = layer(torch.stack([x, torch.sin(2 * x), x**3 - 0.2]))
    mean = np.mean([start, np.sin(2 * start), start**3 - 0.2])
    slope = np.mean([1.0, 2 * np.cos(2 * start), 3 * start**2]) if mean > 0 else 0.0
    value.backward()
    np.testing.assert_allclose([value.item(), x.grad.item()], [max(0.0, mean), slope], **TIGHT)


LAMBDA, B = 1.5, 2.0


def nonnegative_least_squares(on_degenerate: str = "raise") -> ConvexLayer:
    x, theta = cp.Variable(), cp.Parameter()
    objective = cp.Minimize(LAMBDA / 2 * cp.square(theta * x - B) + 0.5 * cp.square(x))
    return ConvexLayer(cp.Problem(objective, [x >= 0]), [theta], [x], on_degenerate=on_degenerate)


def test_nonnegative_least_squares() -> None:
    """Ochs et al. 2016, section 7, (17): argmin lambda/2 (theta x - b)^2 + x^2/2 over x >= 0 is
    max(0, lambda theta b / (1 + lambda theta^2)); for the loss (x - g)^2 / 2 the derivative is
    lambda b (1 - lambda theta^2) / (1 + lambda theta^2)^2 (x - g) where theta b > 0, and 0 where theta b < 0.
    """
    theta = torch.tensor([0.3, 1.7, -0.4, 0.01, -3.0], dtype=torch.float64, requires_grad=True)
    (x,) = nonnegative_least_squares()(theta)
    t, goal = theta.detach().numpy(), 0.7
    square = 1 + LAMBDA * t**2
    expected = np.maximum(0.0, LAMBDA * t * B / square)
    np.testing.assert_allclose(x.detach(), expected, **TIGHT)
    (0.5 * (x - goal) ** 2).sum().backward()
    slope = np.where(t > 0, LAMBDA * B * (1 - LAMBDA * t**2) / square**2, 0.0)
    np.testing.assert_allclose(theta.grad, slope * (expected - goal), **TIGHT)


def test_nonnegative_least_squares_at_its_kink() -> None:
    """At theta = 0 Clarke's derivative of the solution map is [0, lambda b], and the report is degenerate."""
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (x,), report = nonnegative_least_squares("report").solve(theta)
    x.backward()
    assert abs(x.item()) < 1e-8
    assert -1e-8 <= theta.grad.item() <= LAMBDA * B + 1e-8
    assert report.derivative.status == ("degenerate",)


def sparsemax(z: torch.Tensor) -> torch.Tensor:
    """max(z - tau, 0), tau = (sum of the k largest - 1) / k for the largest k with z_(k) above it."""
    ordered = z.sort(descending=True).values
    tau = (ordered.cumsum(0) - 1) / torch.arange(1, len(z) + 1, dtype=z.dtype)
    return (z - tau[int((ordered > tau).sum()) - 1]).clamp(min=0)


def test_sparsemax() -> None:
    """Martins and Astudillo 2016: the projection onto the simplex; with support s its Jacobian is
    diag(s) - ss' / sum(s).
    """
    x, z = cp.Variable(6), cp.Parameter(6)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - z)), [cp.sum(x) == 1, x >= 0])
    layer, point = ConvexLayer(problem, [z], [x], on_degenerate="raise"), numbers(6, seed=2)
    expected = sparsemax(point)
    support = (expected > 0).double()
    assert 1 < support.sum() < 6
    torch.testing.assert_close(layer(point)[0], expected, **TIGHT)
    jacobian = torch.func.jacrev(lambda v: layer(v)[0])(point)
    torch.testing.assert_close(jacobian, torch.diag(support) - torch.outer(support, support) / support.sum(), **TIGHT)


def test_ridge_regression() -> None:
    """argmin |Ax - b|^2 + w |x|^2 = (A'A + w I)^-1 A'b, in A, b and w."""
    x, A, b, w = cp.Variable(3), cp.Parameter((7, 3)), cp.Parameter(7), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + w * cp.sum_squares(x)))

    def formula(A: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> Tensors:
        return (torch.linalg.solve(A.T @ A + w * torch.eye(3, dtype=A.dtype), A.T @ b),)

    layer = ConvexLayer(problem, [A, b, w], [x], on_degenerate="raise")
    same_map(layer, formula, numbers(7, 3), numbers(7, seed=1), torch.tensor(0.4, dtype=torch.float64))


def test_water_filling() -> None:
    """argmax sum log(a_i + x_i) over x >= 0, sum x = P is x_i = max(0, level - a_i), where the level spends P; the dual
    of the budget is 1 / level, that of x_i >= 0 is max(0, 1 / level - 1 / a_i).
    """
    x, a, power = cp.Variable(4), cp.Parameter(4), cp.Parameter()
    constraints = [cp.sum(x) == power, x >= 0]
    problem = cp.Problem(cp.Maximize(cp.sum(cp.log(a + x))), constraints)
    outputs = [x, constraints[0].dual_variables[0], constraints[1].dual_variables[0]]
    layer = ConvexLayer(problem, [a, power], outputs, on_degenerate="raise")

    def formula(a: torch.Tensor, power: torch.Tensor) -> Tensors:
        ordered = a.sort().values
        levels = (ordered.cumsum(0) + power) / torch.arange(1, 5, dtype=a.dtype)
        level = levels[int((levels > ordered).sum()) - 1]
        return (level - a).clamp(min=0), 1 / level, (1 / level - 1 / a).clamp(min=0)

    bottom = torch.tensor([0.8, 2.5, 1.1, 0.5], dtype=torch.float64)
    same_map(layer, formula, bottom, torch.tensor(1.4, dtype=torch.float64))
    same_map(layer, formula, bottom, torch.tensor(9.0, dtype=torch.float64))


def test_equality_constrained_least_squares() -> None:
    """argmin |x - c|^2 / 2 over Ax = b is c - A'(AA')^-1 (Ac - b), with dual (AA')^-1 (Ac - b)."""
    x, c, A, b = cp.Variable(4), cp.Parameter(4), cp.Parameter((2, 4)), cp.Parameter(2)
    constraint = A @ x == b
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - c)), [constraint])

    def formula(c: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> Tensors:
        dual = torch.linalg.solve(A @ A.T, A @ c - b)
        return c - A.T @ dual, dual

    layer = ConvexLayer(problem, [c, A, b], [x, *constraint.dual_variables], on_degenerate="raise")
    same_map(layer, formula, numbers(4), numbers(2, 4, seed=1), numbers(2, seed=2))


def test_projection_onto_a_ball() -> None:
    """argmin |x - c|^2 over |x| <= r is r c / |c| where |c| > r."""
    x, c, r = cp.Variable(3), cp.Parameter(3), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.norm(x) <= r])
    layer = ConvexLayer(problem, [c, r], [x], on_degenerate="raise")
    same_map(layer, lambda c, r: (r * c / c.norm(),), 3 * numbers(3), torch.tensor(0.7, dtype=torch.float64))


def test_projection_onto_the_semidefinite_cone() -> None:
    """argmin |X - C|^2 over X >= 0 is V max(diag(l), 0) V' for C = V diag(l) V'; its derivative is V (W o (V'dC V)) V'
    with W_ij = (max(l_i, 0) - max(l_j, 0)) / (l_i - l_j), in symmetric directions dC.
    """
    X, C = cp.Variable((4, 4), symmetric=True), cp.Parameter((4, 4), symmetric=True)
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [X >> 0]), [C], [X], on_degenerate="raise")
    half, direction = numbers(4, 4), numbers(4, 4, seed=1)
    point, direction = half + half.T, direction + direction.T
    values, vectors = torch.linalg.eigh(point)
    assert values[1] < 0 < values[2]
    positive = values.clamp(min=0)
    expected = vectors @ torch.diag(positive) @ vectors.T
    difference = values[:, None] - values
    equal = torch.eye(4, dtype=torch.bool)
    weights = torch.where(
        equal, (values > 0).double(), (positive[:, None] - positive) / difference.masked_fill(equal, 1.0)
    )
    moved = vectors @ (weights * (vectors.T @ direction @ vectors)) @ vectors.T
    torch.testing.assert_close(layer(point)[0], expected, **TIGHT)
    jacobian = torch.func.jacrev(lambda c: layer(c)[0])(point)
    torch.testing.assert_close(torch.einsum("ijkl,kl->ij", jacobian, direction), moved, **TIGHT)


def test_cobb_douglas_demand() -> None:
    """argmax prod x_i^w_i over p'x <= m, sum w = 1, is x_i = w_i m / p_i: three-dimensional power cones."""
    weights = [0.5, 0.3, 0.2]
    x, price, budget = cp.Variable(3), cp.Parameter(3), cp.Parameter()
    problem = cp.Problem(cp.Maximize(cp.geo_mean(x, weights, approx=False)), [price @ x <= budget])
    layer = ConvexLayer(problem, [price, budget], [x], on_degenerate="raise")
    w = torch.tensor(weights, dtype=torch.float64)
    price_value = torch.tensor([1.0, 2.5, 0.7], dtype=torch.float64)
    same_map(layer, lambda p, m: (w * m / p,), price_value, torch.tensor(4.0, dtype=torch.float64))


def test_geometric_program() -> None:
    """argmin x + a / (x y) + y over x, y > 0 is x = y = a^(1/3)."""
    x, y, a = cp.Variable(pos=True), cp.Variable(pos=True), cp.Parameter(pos=True)
    layer = ConvexLayer(cp.Problem(cp.Minimize(x + a / (x * y) + y)), [a], [x, y], gp=True, on_degenerate="raise")
    same_map(layer, lambda a: (a ** (1 / 3), a ** (1 / 3)), torch.tensor(2.7, dtype=torch.float64))


def test_vertex_of_a_linear_program() -> None:
    """At a vertex with active rows B of A the solution is B^-1 b_B, and the duals of B are -B'^-1 c."""
    x, c, b = cp.Variable(2), cp.Parameter(2), cp.Parameter(3)
    A = torch.tensor([[1.0, 2.0], [3.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    constraint = A.numpy() @ x <= b
    layer = ConvexLayer(
        cp.Problem(cp.Minimize(c @ x), [constraint]), [c, b], [x, *constraint.dual_variables], on_degenerate="raise"
    )
    active = A[:2]

    def formula(c: torch.Tensor, b: torch.Tensor) -> Tensors:
        dual = -torch.linalg.solve(active.T, c)
        return torch.linalg.solve(active, b[:2]), torch.cat([dual, torch.zeros(1, dtype=c.dtype)])

    cost, bounds = torch.tensor([-1.0, -1.0]).double(), torch.tensor([2.0, 2.0, 5.0]).double()
    same_map(layer, formula, cost, bounds)
