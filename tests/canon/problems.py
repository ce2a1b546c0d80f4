"""A table of problems that together cover all parts of the canonicalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cvxpy as cp
import numpy as np

Array = np.ndarray


@dataclass
class Case:
    """A problem, its parameters, its outputs, and parameter values at which its solution is unique."""

    problem: cp.Problem
    parameters: list[cp.Parameter]
    variables: list[cp.Variable]
    values: list[Array]
    gp: bool = False
    cones: set[str] = field(default_factory=set)


def duals(problem: cp.Problem) -> list[cp.Variable]:
    return [dual for constraint in problem.constraints for dual in constraint.dual_variables]


def quadratic_program() -> Case:
    rng = np.random.default_rng(1)
    x = cp.Variable(4)
    A, b, G, h = cp.Parameter((6, 4)), cp.Parameter(6), cp.Parameter((3, 4)), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [G @ x <= h, cp.sum(x) == 1])
    values = [rng.normal(size=(6, 4)), rng.normal(size=6), rng.normal(size=(3, 4)), rng.uniform(size=3)]
    return Case(problem, [A, b, G, h], [x, *duals(problem)], values, cones={"zero", "nonnegative"})


def parametric_quad_form() -> Case:
    rng = np.random.default_rng(2)
    x = cp.Variable(4)
    P, q = cp.Parameter((4, 4), PSD=True), cp.Parameter(4)
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x), [x >= -0.1, cp.sum(x) == 1])
    F = rng.normal(size=(4, 4))
    return Case(problem, [P, q], [x, *duals(problem)], [F @ F.T + np.eye(4), rng.normal(size=4)])


def without_rows() -> Case:
    x, P, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True), cp.Parameter(3)
    F = np.random.default_rng(11).normal(size=(3, 3))
    return Case(cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x)), [P, q], [x], [F @ F.T, np.arange(3.0)])


def second_order() -> Case:
    rng = np.random.default_rng(3)
    x, t = cp.Variable(3), cp.Variable()
    F, mu, budget = cp.Parameter((3, 3)), cp.Parameter(3), cp.Parameter(pos=True)
    problem = cp.Problem(
        cp.Maximize(mu @ x - t), [cp.SOC(t, F @ x), x >= 0, cp.sum(x) == budget, cp.norm(x, 2) <= 0.9 * budget]
    )
    values = [rng.normal(size=(3, 3)), rng.uniform(1.0, 2.0, 3), np.array(1.3)]
    return Case(problem, [F, mu, budget], [x, t, *duals(problem)], values, cones={"second_order"})


def semidefinite() -> Case:
    rng = np.random.default_rng(4)
    X, S = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - S)), [X >> 0.1 * np.eye(3), cp.diag(X) == 1])
    M = rng.normal(size=(3, 3))
    return Case(problem, [S], [X, *duals(problem)], [M + M.T], cones={"psd"})


def psd_variable() -> Case:
    rng = np.random.default_rng(5)
    X, C = cp.Variable((3, 3), PSD=True), cp.Parameter((3, 3))
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X) + 0.1 * cp.sum_squares(X)), [cp.trace(X) == 1])
    return Case(problem, [C], [X, *duals(problem)], [rng.normal(size=(3, 3))], cones={"psd"})


def exponential() -> Case:
    rng = np.random.default_rng(6)
    x, c = cp.Variable(4), cp.Parameter(4)
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(x)) + c @ x), [cp.sum(x) == 1, cp.sum(cp.exp(x)) <= 5.3])
    return Case(problem, [c], [x, *duals(problem)], [rng.normal(size=4)], cones={"exponential"})


def exponential_cone_constraint() -> Case:
    x, y, z, c = cp.Variable(2), cp.Variable(2), cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(c @ z + 0.1 * cp.sum_squares(y)), [cp.ExpCone(x, y, z), x >= 1, y <= 2])
    return Case(problem, [c], [x, y, z, *duals(problem)], [np.array([1.0, 1.5])], cones={"exponential"})


def power_utility() -> Case:
    x, b = cp.Variable(3), cp.Parameter(3, pos=True)
    problem = cp.Problem(cp.Maximize(cp.sum(cp.power(x, 0.3, approx=False))), [b @ x <= 2, x <= 1])
    return Case(problem, [b], [x, *duals(problem)], [np.array([0.7, 1.1, 2.0])], cones={"power"})


def geometric_mean() -> Case:
    x, b = cp.Variable(3), cp.Parameter(3, pos=True)
    problem = cp.Problem(cp.Maximize(cp.geo_mean(x, [0.5, 0.2, 0.3], approx=False)), [b @ x <= 1, x <= 0.5])
    return Case(problem, [b], [x, *duals(problem)], [np.array([0.7, 1.1, 2.0])], cones={"power"})


def power_cone_constraint() -> Case:
    x, y, z, c = cp.Variable(2), cp.Variable(2), cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(
        cp.Maximize(cp.sum(z) - 0.1 * cp.sum_squares(z)), [cp.PowCone3D(x, y, z, np.array([0.3, 0.6])), x + y <= c]
    )
    return Case(problem, [c], [x, y, z, *duals(problem)], [np.array([1.0, 1.5])], cones={"power"})


def power_cone_nd() -> Case:
    W, z, c = cp.Variable((3, 2)), cp.Variable(2), cp.Parameter((3, 2), pos=True)
    alpha = np.array([[0.2, 0.3], [0.3, 0.3], [0.5, 0.4]])
    problem = cp.Problem(cp.Maximize(cp.sum(z)), [cp.PowConeND(W, z, alpha), c >= W])
    values = [np.random.default_rng(7).uniform(0.5, 1.5, (3, 2))]
    return Case(problem, [c], [W, z, *duals(problem)], values, cones={"power"})


def geometric_program() -> Case:
    x = cp.Variable(3, pos=True, name="x")
    a, c = cp.Parameter(pos=True), cp.Parameter(2, pos=True)
    problem = cp.Problem(
        cp.Minimize(a * x[0] * x[1] + c[0] * x[1] * x[2] + x[0] / x[2]),
        [x[0] ** a * x[1] >= c[1], x[1] * x[2] >= 0.5 * c[0], x <= 9],
    )
    return Case(problem, [a, c], [x, *duals(problem)], [np.array(1.4), np.array([0.8, 1.7])], gp=True)


def attribute_parameters() -> Case:
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
    return Case(problem, [S, D, w, sparse], [x, *duals(problem)], values)


def attribute_variables() -> Case:
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
    return Case(problem, [c], [nonpos, bounded, diagonal, nsd, sparse], [rng.normal(size=(3, 3))])


def parametric_bounds() -> Case:
    low, c = cp.Parameter(3), cp.Parameter(3)
    x = cp.Variable(3, bounds=[low, low + 1])
    values = [np.array([-1.0, 0.2, 0.5]), np.array([0.3, -2.0, 4.0])]
    return Case(cp.Problem(cp.Minimize(cp.sum_squares(x - c))), [low, c], [x], values)


def nonlinear_in_parameters_alone() -> Case:
    b, x = cp.Parameter(3), cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= cp.abs(b) + 0.1, cp.norm(b) + cp.norm(x) <= 9])
    return Case(problem, [b], [x], [np.array([0.3, -1.0, 0.5])])


def huber_regression() -> Case:
    rng = np.random.default_rng(10)
    x, b, M = cp.Variable(2), cp.Parameter(5), cp.Parameter(pos=True)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.huber(rng.normal(size=(5, 2)) @ x - b, M))))
    return Case(problem, [b, M], [x], [3.0 * rng.normal(size=5), np.array(0.7)])


def constraint_in_parameters_alone() -> Case:
    a, b, x = cp.Parameter(), cp.Parameter(3), cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b) + a), [a <= 3, x >= 0])
    return Case(problem, [a, b], [x, *duals(problem)], [np.array(1.0), np.array([1.0, -1.0, 2.0])])


def unused_parameter() -> Case:
    a, b, x = cp.Parameter((2, 2)), cp.Parameter(3), cp.Variable(3)
    return Case(cp.Problem(cp.Minimize(cp.sum_squares(x - b))), [a, b], [x], [np.eye(2), np.arange(3.0)])


def no_parameters() -> Case:
    x = cp.Variable(3)
    return Case(cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [x <= 0.5]), [], [x], [])


def constant_objective() -> Case:
    b, x = cp.Parameter(3), cp.Variable(3)
    return Case(cp.Problem(cp.Minimize(0), [x == b]), [b], [x], [np.arange(3.0)])


def objective_in_parameters_alone() -> Case:
    a, b, x = cp.Parameter(), cp.Parameter(3), cp.Variable(3)
    return Case(cp.Problem(cp.Maximize(2 * a), [x == b]), [a, b], [x], [np.array(1.5), np.arange(3.0)])


def empty_parameter() -> Case:
    a, b, x = cp.Parameter(0), cp.Parameter(3), cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b) + cp.sum(a)))
    return Case(problem, [a, b], [x], [np.zeros(0), np.arange(3.0)])


def variable_without_effect() -> Case:
    b, x, y = cp.Parameter(3), cp.Variable(3), cp.Variable(2)
    return Case(cp.Problem(cp.Minimize(cp.sum_squares(x - b) + 0 * cp.sum(y))), [b], [x, y], [np.arange(3.0)])


CASES: dict[str, Callable[[], Case]] = {
    case.__name__: case
    for case in (
        quadratic_program,
        parametric_quad_form,
        without_rows,
        second_order,
        semidefinite,
        psd_variable,
        exponential,
        exponential_cone_constraint,
        power_utility,
        geometric_mean,
        power_cone_constraint,
        power_cone_nd,
        geometric_program,
        attribute_parameters,
        attribute_variables,
        parametric_bounds,
        nonlinear_in_parameters_alone,
        huber_regression,
        constraint_in_parameters_alone,
        unused_parameter,
        no_parameters,
        constant_objective,
        objective_in_parameters_alone,
        empty_parameter,
        variable_without_effect,
    )
}
