"""Families over all cones, drawn at points at which their solution maps are smooth."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np

from .family import Family, duals


def least_squares() -> Family:
    x, A, b = cp.Variable(3), cp.Parameter((5, 3)), cp.Parameter(5)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)))
    return Family(problem, [A, b], [x], lambda rng: [rng.standard_normal((5, 3)), rng.standard_normal(5)])


def simplex_projection() -> Family:
    x, c = cp.Variable(5), cp.Parameter(5)
    constraints = [cp.sum(x) == 1, x >= 0]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), constraints)
    return Family(problem, [c], [x, *duals(*constraints)], lambda rng: [rng.standard_normal(5)])


def quadratic() -> Family:
    x = cp.Variable(4)
    q, A, b, G, h = cp.Parameter(4), cp.Parameter((1, 4)), cp.Parameter(1), cp.Parameter((3, 4)), cp.Parameter(3)
    root = np.random.default_rng(7).standard_normal((4, 4)) + 2 * np.eye(4)
    constraints = [A @ x == b, G @ x <= h]
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(root @ x) + q @ x), constraints)

    def draw(rng: np.random.Generator) -> list[Any]:
        rows = rng.standard_normal((3, 4))
        return [*(rng.standard_normal(shape) for shape in (4, (1, 4), 1)), rows, rng.uniform(0.1, 0.5, 3)]

    return Family(problem, [q, A, b, G, h], [x, *duals(*constraints)], draw)


def parametric_quad_form() -> Family:
    x, P, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True), cp.Parameter(3)
    constraints = [cp.sum(x) == 1, x <= 0.6]
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x), constraints)

    def draw(rng: np.random.Generator) -> list[Any]:
        root = rng.standard_normal((3, 3))
        return [root @ root.T + np.eye(3), rng.standard_normal(3)]

    return Family(problem, [P, q], [x, *duals(*constraints)], draw, symmetric=(0,))


def portfolio() -> Family:
    x, mu, sigma = cp.Variable(4), cp.Parameter(4), cp.Parameter(pos=True)
    factors = np.random.default_rng(3).standard_normal((4, 4)) + np.diag([1.0, 2.0, 3.0, 4.0])
    constraints = [cp.norm(factors @ x) <= sigma, cp.sum(x) == 1, x >= 0]
    problem = cp.Problem(cp.Maximize(mu @ x), constraints)

    def draw(rng: np.random.Generator) -> list[Any]:
        return [np.arange(4.0) + 0.3 * rng.standard_normal(4), 2.0 + 0.2 * rng.random()]

    return Family(problem, [mu, sigma], [x, *duals(*constraints)], draw)


def logistic_regression() -> Family:
    w, X, ridge = cp.Variable(2), cp.Parameter((4, 2)), cp.Parameter(nonneg=True)
    loss = cp.sum(cp.logistic(X @ w)) + ridge * cp.sum_squares(w)
    return Family(
        cp.Problem(cp.Minimize(loss)), [X, ridge], [w], lambda rng: [rng.standard_normal((4, 2)), 0.3 + rng.random()]
    )


def entropy_maximisation() -> Family:
    x, a, mean = cp.Variable(4), cp.Parameter(4), cp.Parameter()
    constraints = [cp.sum(x) == 1, a @ x == mean]
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(x))), constraints)

    def draw(rng: np.random.Generator) -> list[Any]:
        return [np.arange(4.0) + 0.1 * rng.standard_normal(4), 1.2 + 0.5 * rng.random()]

    return Family(problem, [a, mean], [x, *duals(*constraints)], draw)


def nearest_correlation() -> Family:
    X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    constraints = [X >> 0, cp.diag(X) == 1]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)), constraints)

    def draw(rng: np.random.Generator) -> list[Any]:
        return [np.eye(3) - 0.8 * (1 - np.eye(3)) + 0.2 * rng.standard_normal((3, 3))]

    return Family(problem, [C], [X, *duals(*constraints)], draw, symmetric=(0,))


def sdp_relaxation() -> Family:
    X, L = cp.Variable((4, 4), symmetric=True), cp.Parameter((4, 4), symmetric=True)
    constraints = [X >> 0, cp.diag(X) == 1]
    problem = cp.Problem(cp.Maximize(0.25 * cp.trace(L @ X)), constraints)

    def draw(rng: np.random.Generator) -> list[Any]:
        weights = np.array([[0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 1.5], [1, 2, 1.5, 0]]) + 0.2 * rng.random((4, 4))
        weights = weights + weights.T
        return [np.diag(weights.sum(0)) - weights]

    return Family(problem, [L], [X, *duals(*constraints)], draw, symmetric=(0,))


def geometric_program() -> Family:
    width, height, depth = (cp.Variable(pos=True, name=name) for name in ("width", "height", "depth"))
    wall, floor, slope = cp.Parameter(pos=True), cp.Parameter(pos=True), cp.Parameter(pos=True)
    constraints = [
        2 * (height * width + height * depth) <= wall,
        width * depth <= floor,
        height <= slope * width,
        depth <= 2 * width,
    ]
    problem = cp.Problem(cp.Maximize(height * width * depth), constraints)

    def draw(rng: np.random.Generator) -> list[Any]:
        return [100 + 10 * rng.random(), 8 + rng.random(), 2.0 + rng.random()]

    return Family(problem, [wall, floor, slope], [width, height, depth], draw, gp=True)


def power_utility() -> Family:
    x, weight, price, budget = cp.Variable(3), cp.Parameter(3, nonneg=True), cp.Parameter(3), cp.Parameter()
    spent = price @ x <= budget
    utility = weight @ cp.power(x, 0.4, approx=False)

    def draw(rng: np.random.Generator) -> list[Any]:
        return [1 + rng.random(3), 1 + rng.random(3), 3 + rng.random()]

    return Family(
        cp.Problem(cp.Maximize(utility), [spent]),
        [weight, price, budget],
        [x, *duals(spent)],
        draw,
        cones=frozenset({"power"}),
    )


def control() -> Family:
    steps = 3
    x, u = cp.Variable((2, steps + 1)), cp.Variable((1, steps))
    A, B, start = cp.Parameter((2, 2)), cp.Parameter((2, 1)), cp.Parameter(2)
    dynamics = x[:, 1:] == A @ x[:, :-1] + B @ u
    constraints = [x[:, 0] == start, dynamics, u <= 0.5, u >= -0.5]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + 0.1 * cp.sum_squares(u)), constraints)

    def draw(rng: np.random.Generator) -> list[Any]:
        return [
            np.array([[1.0, 0.3], [0.0, 1.0]]) + 0.1 * rng.standard_normal((2, 2)),
            np.array([[0.1], [0.6]]) + 0.05 * rng.standard_normal((2, 1)),
            np.array([1.0, 0.7]) + 0.1 * rng.standard_normal(2),
        ]

    return Family(problem, [A, B, start], [x, u, *duals(dynamics)], draw)


def lasso() -> Family:
    x, A, b, weight = cp.Variable(4), cp.Parameter((6, 4)), cp.Parameter(6), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + weight * cp.norm1(x)))

    def draw(rng: np.random.Generator) -> list[Any]:
        return [rng.standard_normal((6, 4)), rng.standard_normal(6), 1 + rng.random()]

    return Family(problem, [A, b, weight], [x], draw)


def linear_program() -> Family:
    x, c, b = cp.Variable(3), cp.Parameter(3), cp.Parameter(2)
    rows = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, -1.0]])
    constraints = [rows @ x == b, x >= 0]
    problem = cp.Problem(cp.Minimize(c @ x), constraints)

    def draw(rng: np.random.Generator) -> list[Any]:
        return [np.array([1.0, 2.0, 3.5]) + 0.2 * rng.standard_normal(3), np.array([2.0, 0.5]) + 0.1 * rng.random(2)]

    return Family(problem, [c, b], [x, *duals(*constraints)], draw)


def least_norm() -> Family:
    x = cp.Variable(5, name="x")
    L, q, b = cp.Parameter((5, 5), name="L"), cp.Parameter(5, name="q"), cp.Parameter(3, name="b")
    G = np.random.default_rng(1).standard_normal((3, 5))
    constraints = [G @ x <= b, cp.sum(x) == 1]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(L @ x) + q @ x), constraints)

    def draw(rng: np.random.Generator) -> list[Any]:
        return [rng.standard_normal((5, 5)) + 3 * np.eye(5), rng.standard_normal(5), rng.random(3)]

    return Family(problem, [L, q, b], [x, *duals(*constraints)], draw)
