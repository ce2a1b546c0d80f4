"""Closed forms that are convex problems agree with ConvexLayer in solutions and gradients."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import pytest
import torch

from convexlayer import ConvexLayer
from convexlayer.nodes import (
    Huber,
    PseudoHuber,
    least_squares,
    optimal_transport,
    project_l1_ball,
    project_l2_ball,
    project_linf_ball,
    project_simplex,
    robust_pool,
    weighted_least_squares,
)

Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., torch.Tensor]

ACCURATE = {"tol": 1e-12}
RADIUS = 1.3


def draw(*shapes: tuple[int, ...]) -> Tensors:
    return tuple(torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes)


def agree(function: Function, layer: Function, tensors: Tensors, tolerance: float = 1e-7) -> None:
    node, convex = function(*tensors), layer(*tensors)
    torch.testing.assert_close(node, convex, rtol=0, atol=tolerance)
    cotangent = torch.randn_like(node)
    ours, theirs = (torch.autograd.grad(output, tensors, cotangent) for output in (node, convex))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def solution(problem: cp.Problem, parameters: list[cp.Parameter], variable: cp.Variable) -> Function:
    layer = ConvexLayer(problem, parameters, [variable], options=ACCURATE, on_degenerate="raise")
    return lambda *tensors: layer(*tensors)[0]


@pytest.mark.parametrize("factor", [0.2, 2.0], ids=["inside", "outside"])
@pytest.mark.parametrize(
    ("project", "constraints"),
    [
        (project_simplex, lambda y, radius: [y >= 0, cp.sum(y) == radius]),
        (project_l1_ball, lambda y, radius: [cp.norm1(y) <= radius]),
        (project_l2_ball, lambda y, radius: [cp.norm2(y) <= radius]),
        (project_linf_ball, lambda y, radius: [cp.norm_inf(y) <= radius]),
    ],
    ids=["simplex", "l1", "l2", "linf"],
)
def test_projections(project: Function, constraints: Callable[..., list[cp.Constraint]], factor: float) -> None:
    x, radius, y = cp.Parameter(5), cp.Parameter(nonneg=True), cp.Variable(5)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y - x)), constraints(y, radius))
    (point,) = draw((5,))
    tensors = (factor * point.detach() / point.detach().norm()).requires_grad_(), torch.tensor(RADIUS).double()
    agree(project, solution(problem, [x, radius], y), (tensors[0], tensors[1].requires_grad_()))


def test_least_squares() -> None:
    A, b, x = cp.Parameter((7, 3)), cp.Parameter(7), cp.Variable(3)
    layer = solution(cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b))), [A, b], x)
    agree(least_squares, layer, draw((7, 3), (7,)))


def test_weighted_least_squares() -> None:
    """The layer's parameters are the rows scaled by the square roots of the weights."""
    A, b, x = cp.Parameter((7, 3)), cp.Parameter(7), cp.Variable(3)
    layer = solution(cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b))), [A, b], x)
    tensors = (*draw((7, 3), (7,)), torch.rand(7, dtype=torch.float64).requires_grad_())
    agree(weighted_least_squares, lambda A, b, w: layer(w.sqrt()[:, None] * A, w.sqrt() * b), tensors)


def test_huber_pooling_of_scalars() -> None:
    x, u = cp.Parameter(9), cp.Variable()
    layer = solution(cp.Problem(cp.Minimize(cp.sum(cp.huber(u - x, 0.8)))), [x], u)
    (points,) = draw((9,))
    agree(lambda x: robust_pool(x[:, None], Huber(), 0.8)[0], layer, (points,))


def test_pseudo_huber_pooling_of_vectors() -> None:
    """sum |(d_i, alpha)| for the second-order cone."""
    x, u, radii = cp.Parameter((6, 2)), cp.Variable(2), cp.Variable(6)
    bounds = [cp.norm2(cp.hstack([u - x[i], 1.0])) <= radii[i] for i in range(6)]
    layer = solution(cp.Problem(cp.Minimize(cp.sum(radii)), bounds), [x], u)
    agree(lambda x: robust_pool(x, PseudoHuber()), layer, draw((6, 2)))


def test_transport() -> None:
    M, P = cp.Parameter((3, 4)), cp.Variable((3, 4))
    r, c = cp.Parameter(3, nonneg=True), cp.Parameter(4, nonneg=True)
    # The last column sum follows from the others; left in, its multiplier would not be unique.
    sums = [cp.sum(P, axis=1) == r, cp.sum(P, axis=0)[:3] == c[:3]]
    layer = solution(cp.Problem(cp.Minimize(cp.sum(cp.multiply(M, P)) - cp.sum(cp.entr(P)) / 2.0), sums), [M, r, c], P)

    def with_sums(function: Function) -> Function:
        return lambda M, r, c: function(M, r.softmax(-1), c.softmax(-1))

    node = with_sums(lambda M, r, c: optimal_transport(M, r, c, 2.0, tol=1e-13))
    agree(node, with_sums(layer), draw((3, 4), (3,), (4,)))
