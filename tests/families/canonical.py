"""Families that together cover all parts of the canonicalisation, each at one point, where its solution is unique."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from .family import Family, duals, fixed


def quadratic_program() -> Family:
    rng = np.random.default_rng(1)
    x = cp.Variable(4)
    A, b, G, h = cp.Parameter((6, 4)), cp.Parameter(6), cp.Parameter((3, 4)), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [G @ x <= h, cp.sum(x) == 1])
    values = [rng.normal(size=(6, 4)), rng.normal(size=6), rng.normal(size=(3, 4)), rng.uniform(size=3)]
    return Family(
        problem,
        [A, b, G, h],
        [x, *duals(*problem.constraints)],
        fixed(*values),
        cones=frozenset({"zero", "nonnegative"}),
    )


def without_rows() -> Family:
    x, P, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True), cp.Parameter(3)
    F = np.random.default_rng(11).normal(size=(3, 3))
    return Family(cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x)), [P, q], [x], fixed(F @ F.T, np.arange(3.0)))


def second_order() -> Family:
    rng = np.random.default_rng(3)
    x, t = cp.Variable(3), cp.Variable()
    F, mu, budget = cp.Parameter((3, 3)), cp.Parameter(3), cp.Parameter(pos=True)
    problem = cp.Problem(
        cp.Maximize(mu @ x - t), [cp.SOC(t, F @ x), x >= 0, cp.sum(x) == budget, cp.norm(x, 2) <= 0.9 * budget]
    )
    values = [rng.normal(size=(3, 3)), rng.uniform(1.0, 2.0, 3), np.array(1.3)]
    return Family(
        problem,
        [F, mu, budget],
        [x, t, *duals(*problem.constraints)],
        fixed(*values),
        cones=frozenset({"second_order"}),
    )


def semidefinite() -> Family:
    rng = np.random.default_rng(4)
    X, S = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - S)), [X >> 0.1 * np.eye(3), cp.diag(X) == 1])
    M = rng.normal(size=(3, 3))
    return Family(problem, [S], [X, *duals(*problem.constraints)], fixed(M + M.T), cones=frozenset({"psd"}))


def psd_variable() -> Family:
    rng = np.random.default_rng(5)
    X, C = cp.Variable((3, 3), PSD=True), cp.Parameter((3, 3))
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X) + 0.1 * cp.sum_squares(X)), [cp.trace(X) == 1])
    return Family(
        problem, [C], [X, *duals(*problem.constraints)], fixed(rng.normal(size=(3, 3))), cones=frozenset({"psd"})
    )


def exponential() -> Family:
    rng = np.random.default_rng(6)
    x, c = cp.Variable(4), cp.Parameter(4)
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(x)) + c @ x), [cp.sum(x) == 1, cp.sum(cp.exp(x)) <= 5.3])
    return Family(
        problem, [c], [x, *duals(*problem.constraints)], fixed(rng.normal(size=4)), cones=frozenset({"exponential"})
    )


def exponential_cone_constraint() -> Family:
    x, y, z, c = cp.Variable(2), cp.Variable(2), cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(c @ z + 0.1 * cp.sum_squares(y)), [cp.ExpCone(x, y, z), x >= 1, y <= 2])
    return Family(
        problem,
        [c],
        [x, y, z, *duals(*problem.constraints)],
        fixed(np.array([1.0, 1.5])),
        cones=frozenset({"exponential"}),
    )


def geometric_mean() -> Family:
    x, b = cp.Variable(3), cp.Parameter(3, pos=True)
    problem = cp.Problem(cp.Maximize(cp.geo_mean(x, [0.5, 0.2, 0.3], approx=False)), [b @ x <= 1, x <= 0.5])
    return Family(
        problem, [b], [x, *duals(*problem.constraints)], fixed(np.array([0.7, 1.1, 2.0])), cones=frozenset({"power"})
    )


def power_cone_constraint() -> Family:
    x, y, z, c = cp.Variable(2), cp.Variable(2), cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(
        cp.Maximize(cp.sum(z) - 0.1 * cp.sum_squares(z)), [cp.PowCone3D(x, y, z, np.array([0.3, 0.6])), x + y <= c]
    )
    return Family(
        problem, [c], [x, y, z, *duals(*problem.constraints)], fixed(np.array([1.0, 1.5])), cones=frozenset({"power"})
    )


def power_cone_nd() -> Family:
    W, z, c = cp.Variable((3, 2)), cp.Variable(2), cp.Parameter((3, 2), pos=True)
    alpha = np.array([[0.2, 0.3], [0.3, 0.3], [0.5, 0.4]])
    problem = cp.Problem(cp.Maximize(cp.sum(z)), [cp.PowConeND(W, z, alpha), c >= W])
    values = [np.random.default_rng(7).uniform(0.5, 1.5, (3, 2))]
    return Family(problem, [c], [W, z, *duals(*problem.constraints)], fixed(*values), cones=frozenset({"power"}))


def geometric_exponent() -> Family:
    x = cp.Variable(3, pos=True, name="x")
    a, c = cp.Parameter(pos=True), cp.Parameter(2, pos=True)
    problem = cp.Problem(
        cp.Minimize(a * x[0] * x[1] + c[0] * x[1] * x[2] + x[0] / x[2]),
        [x[0] ** a * x[1] >= c[1], x[1] * x[2] >= 0.5 * c[0], x <= 9],
    )
    return Family(
        problem, [a, c], [x, *duals(*problem.constraints)], fixed(np.array(1.4), np.array([0.8, 1.7])), gp=True
    )


def attribute_parameters() -> Family:
    rng = np.random.default_rng(8)
    x = cp.Variable(3, nonneg=True)
    S, D, w = cp.Parameter((3, 3), symmetric=True), cp.Parameter((3, 3), diag=True), cp.Parameter(3, nonneg=True)
    sparse = cp.Parameter((3, 3), sparsity=[(0, 1, 2), (1, 2, 2)])
    objective = cp.sum_squares(x) + cp.sum((S + D) @ x) + w @ cp.square(x) + cp.sum_squares(sparse @ x - 1)
    problem = cp.Problem(cp.Minimize(objective), [x <= 2])
    M = rng.normal(size=(3, 3))
    pattern = np.zeros((3, 3))
    pattern[[0, 1, 2], [1, 2, 2]] = rng.normal(size=3)
    values = [M + M.T, np.diag(rng.normal(size=3)), rng.uniform(size=3), pattern]
    return Family(problem, [S, D, w, sparse], [x, *duals(*problem.constraints)], fixed(*values))


def attribute_variables() -> Family:
    rng = np.random.default_rng(9)
    c = cp.Parameter((3, 3))
    nonpos, bounded = cp.Variable(3, nonpos=True), cp.Variable(3, bounds=[-0.5, 0.4])
    diagonal, nsd = cp.Variable((3, 3), diag=True), cp.Variable((3, 3), NSD=True)
    sparse = cp.Variable((3, 3), sparsity=[(0, 1, 2), (1, 2, 2)])
    objective = (
        cp.sum_squares(nonpos - c[0])
        + cp.sum_squares(bounded - c[1])
        + cp.sum_squares(diagonal - c)
        + cp.sum_squares(nsd - c)
        + cp.sum_squares(sparse - c)
    )
    problem = cp.Problem(cp.Minimize(objective))
    return Family(problem, [c], [nonpos, bounded, diagonal, nsd, sparse], fixed(rng.normal(size=(3, 3))))


def parametric_bounds() -> Family:
    low, c = cp.Parameter(3), cp.Parameter(3)
    x = cp.Variable(3, bounds=[low, low + 1])
    values = [np.array([-1.0, 0.2, 0.5]), np.array([0.3, -2.0, 4.0])]
    return Family(cp.Problem(cp.Minimize(cp.sum_squares(x - c))), [low, c], [x], fixed(*values))


def nonlinear_in_parameters_alone() -> Family:
    b, x = cp.Parameter(3), cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= cp.abs(b) + 0.1, cp.norm(b) + cp.norm(x) <= 9])
    return Family(problem, [b], [x], fixed(np.array([0.3, -1.0, 0.5])))


def huber_regression() -> Family:
    rng = np.random.default_rng(10)
    x, b, M = cp.Variable(2), cp.Parameter(5), cp.Parameter(pos=True)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.huber(rng.normal(size=(5, 2)) @ x - b, M))))
    return Family(problem, [b, M], [x], fixed(3.0 * rng.normal(size=5), np.array(0.7)))


def constraint_in_parameters_alone() -> Family:
    a, b, x = cp.Parameter(), cp.Parameter(3), cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b) + a), [a <= 3, x >= 0])
    return Family(problem, [a, b], [x, *duals(*problem.constraints)], fixed(np.array(1.0), np.array([1.0, -1.0, 2.0])))


def unused_parameter() -> Family:
    a, b, x = cp.Parameter((2, 2)), cp.Parameter(3), cp.Variable(3)
    return Family(cp.Problem(cp.Minimize(cp.sum_squares(x - b))), [a, b], [x], fixed(np.eye(2), np.arange(3.0)))


def no_parameters() -> Family:
    x = cp.Variable(3)
    return Family(cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [x <= 0.5]), [], [x], fixed())


def constant_objective() -> Family:
    b, x = cp.Parameter(3), cp.Variable(3)
    return Family(cp.Problem(cp.Minimize(0), [x == b]), [b], [x], fixed(np.arange(3.0)))


def objective_in_parameters_alone() -> Family:
    a, b, x = cp.Parameter(), cp.Parameter(3), cp.Variable(3)
    return Family(cp.Problem(cp.Maximize(2 * a), [x == b]), [a, b], [x], fixed(np.array(1.5), np.arange(3.0)))


def empty_parameter() -> Family:
    a, b, x = cp.Parameter(0), cp.Parameter(3), cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b) + cp.sum(a)))
    return Family(problem, [a, b], [x], fixed(np.zeros(0), np.arange(3.0)))


def variable_without_effect() -> Family:
    b, x, y = cp.Parameter(3), cp.Variable(3), cp.Variable(2)
    return Family(cp.Problem(cp.Minimize(cp.sum_squares(x - b) + 0 * cp.sum(y))), [b], [x, y], fixed(np.arange(3.0)))
