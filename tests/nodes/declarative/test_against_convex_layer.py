"""Nodes that are convex problems agree with ConvexLayer in solutions, multipliers and gradients to 1e-7."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import pytest
import torch

from convexlayer import ConvexLayer
from convexlayer.nodes import AbstractNode, EqualityNode, InequalityNode, NodeOptions

Tensors = tuple[torch.Tensor, ...]
OPTIONS = {"tol": 1e-12}
CLASS = 2


def projection() -> tuple[InequalityNode, ConvexLayer, Tensors]:
    """Projection on the slice 1'y = 1, 0 <= y <= 0.4."""
    n = 6
    node = InequalityNode(
        lambda y, x: 0.5 * (y - x).square().sum(),
        lambda y, x: torch.cat([-y, y - 0.4]),
        (n,),
        [(n,)],
        h=lambda y, x: y.sum().reshape(1) - 1.0,
    )
    x, y = cp.Parameter(n), cp.Variable(n)
    constraints = [cp.sum(y) == 1, y >= 0, y <= 0.4]
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(y - x)), constraints)
    duals = [constraint.dual_variables[0] for constraint in constraints]
    return node, ConvexLayer(problem, [x], [y, *duals], options=OPTIONS), (torch.randn(5, n),)


def quadratic() -> tuple[EqualityNode, ConvexLayer, Tensors]:
    """Equality-constrained least squares, with all data as parameters."""
    n, m = 5, 2
    node = EqualityNode(
        lambda y, M, q, A, b: 0.5 * (M @ y).square().sum() + q @ y,
        lambda y, M, q, A, b: A @ y - b,
        (n,),
        [(n, n), (n,), (m, n), (m,)],
    )
    M, q, A, b, y = cp.Parameter((n, n)), cp.Parameter(n), cp.Parameter((m, n)), cp.Parameter(m), cp.Variable(n)
    constraint = A @ y == b
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(M @ y) + q @ y), [constraint])
    layer = ConvexLayer(problem, [M, q, A, b], [y, constraint.dual_variables[0]], options=OPTIONS)
    return node, layer, (torch.randn(3, n, n) + torch.eye(n), torch.randn(3, n), torch.randn(m, n), torch.randn(3, m))


def softmax() -> tuple[InequalityNode, ConvexLayer, Tensors]:
    """Most likely feature of a class in the ball, eq. 76."""
    m, n = 4, 2
    node = InequalityNode(
        lambda y, A, b: torch.logsumexp(A @ y + b, 0) - A[CLASS] @ y - b[CLASS],
        lambda y, A, b: torch.linalg.vector_norm(y).reshape(1) - 1.0,
        (n,),
        [(m, n), (m,)],
        options=NodeOptions(start=torch.tensor([0.1, 0.1])),  # the norm has no derivative at zero
    )
    A, b, y = cp.Parameter((m, n)), cp.Parameter(m), cp.Variable(n)
    constraint = cp.norm(y) <= 1
    problem = cp.Problem(cp.Minimize(cp.log_sum_exp(A @ y + b) - A[CLASS] @ y - b[CLASS]), [constraint])
    layer = ConvexLayer(problem, [A, b], [y, constraint.dual_variables[0]], options=OPTIONS)
    return node, layer, (2.0 * torch.randn(4, m, n), torch.randn(4, m))


@pytest.mark.parametrize("problem", [projection, quadratic, softmax])
def test_node_and_layer_agree(problem: Callable[[], tuple[AbstractNode, ConvexLayer, Tensors]]) -> None:
    torch.manual_seed(4)
    node, layer, tensors = problem()
    theta = tuple(t.double().requires_grad_() for t in tensors)
    point, report = node.solve(*theta)
    y, *duals = layer(*theta)
    torch.testing.assert_close(point.y, y, rtol=0, atol=1e-7)
    ours = torch.cat([point.lam, point.mu], -1)
    theirs = torch.cat([dual.reshape(len(y), -1) for dual in duals], -1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    cotangents = torch.randn_like(y), torch.randn_like(ours)
    gradients = torch.autograd.grad((point.y, ours), theta, cotangents)
    expected = torch.autograd.grad((y, theirs), theta, cotangents)
    for mine, layers in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, layers, rtol=1e-7, atol=1e-7)
    assert report.derivative is not None
    assert report.derivative.trusted
