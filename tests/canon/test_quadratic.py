"""Values and gradients of quadratic forms with parametrised or nonaffine arguments."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest

from convexlayer import SolutionMap, canonicalize

Array = np.ndarray
Q = np.array([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 0.7]])
L = np.linalg.cholesky(Q)
M = np.array([[1.0, 0.5, 0.0], [-0.3, 2.0, 0.4], [0.2, 0.0, 1.5]])
Posed = tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]
Write = Callable[[cp.Expression], cp.Expression]


def form(argument: cp.Expression) -> cp.Expression:
    return cp.quad_form(argument, Q)


def squares(argument: cp.Expression) -> cp.Expression:
    """The same function as a sum of squares, which CVXPY accepts."""
    return cp.sum_squares(L.T @ argument)


def difference(f: Write) -> Posed:
    x, r = cp.Variable(3), cp.Parameter(3)
    return cp.Problem(cp.Minimize(f(x - r) + 0.4 * cp.norm1(x))), [r], [x]


def reversed_difference(f: Write) -> Posed:
    x, r = cp.Variable(3), cp.Parameter(3)
    return cp.Problem(cp.Minimize(f(r - x) + 0.1 * cp.sum(x)), [x <= 0.5]), [r], [x]


def constant_factor(f: Write) -> Posed:
    x, r = cp.Variable(3), cp.Parameter(3)
    return cp.Problem(cp.Minimize(f(M @ x - r) + 0.4 * cp.norm1(x)), [cp.sum(x) == 0.2]), [r], [x]


def parametric_factor(f: Write) -> Posed:
    x, A, r = cp.Variable(3), cp.Parameter((3, 3)), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(f(A @ x - r) + 0.1 * cp.sum_squares(x)), [x >= -0.2])
    return problem, [A, r], [x, problem.constraints[0].dual_variables[0]]


def factored_difference(f: Write) -> Posed:
    x, A, r = cp.Variable(3), cp.Parameter((3, 3)), cp.Parameter(3)
    return cp.Problem(cp.Minimize(f(M @ (x - r)) + f(A @ x) + cp.norm(x, 2))), [A, r], [x]


def negative_maximised(f: Write) -> Posed:
    x, r = cp.Variable(3), cp.Parameter(3)
    return cp.Problem(cp.Maximize(-f(x - r) - cp.max(x))), [r], [x]


def weighted(f: Write) -> Posed:
    x, r, w = cp.Variable(3), cp.Parameter(3), 0.7
    return cp.Problem(cp.Minimize(w * f(x - r) / 2 + (f(x + r) + cp.norm_inf(x)) / 3)), [r], [x]


def tracking(f: Write) -> Posed:
    """Model predictive control with a reference trajectory and input bounds."""
    horizon = 4
    X, U = cp.Variable((3, horizon + 1)), cp.Variable((2, horizon))
    start, reference = cp.Parameter(3), cp.Parameter((3, horizon))
    A, B = np.array([[1.0, 0.2, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 0.9]]), np.array([[0.0, 0.1], [0.0, 0.2], [0.2, 0.0]])
    constraints = [X[:, 0] == start, X[:, 1:] == A @ X[:, :-1] + B @ U, cp.abs(U) <= 1.0]
    cost = sum(f(X[:, t + 1] - reference[:, t]) + 0.1 * cp.sum_squares(U[:, t]) for t in range(horizon))
    return cp.Problem(cp.Minimize(cost), constraints), [start, reference], [U, X]


def matrix_variable(f: Write) -> Posed:
    X, R = cp.Variable((3, 1)), cp.Parameter((3, 1))
    return cp.Problem(cp.Minimize(f(cp.vec(X - R, order="F")) + cp.norm1(X)), [X <= 1]), [R], [X]


def in_a_maximum(f: Write) -> Posed:
    x, r = cp.Variable(3), cp.Parameter(3)
    return cp.Problem(cp.Minimize(cp.maximum(f(x - r), 0.3) + 0.2 * cp.sum_squares(x))), [r], [x]


def shared_with_a_constraint(f: Write) -> Posed:
    x, r = cp.Variable(3), cp.Parameter(3)
    cost = f(x - r)
    return cp.Problem(cp.Minimize(cost + cp.sum(x)), [cost <= 0.8]), [r], [x]


POSED = {
    pose.__name__: pose
    for pose in (
        difference,
        reversed_difference,
        constant_factor,
        parametric_factor,
        factored_difference,
        negative_maximised,
        weighted,
        tracking,
        matrix_variable,
        in_a_maximum,
        shared_with_a_constraint,
    )
}


@pytest.mark.parametrize("presolve", [True, False])
@pytest.mark.parametrize("name", POSED)
def test_quadratic_forms_match_sums_of_squares(name: str, presolve: bool) -> None:
    rng = np.random.default_rng(3)
    results = []
    values: list[Array] = []
    for write in (form, squares):
        problem, parameters, outputs = POSED[name](write)
        values = values or [rng.standard_normal((2, *parameter.shape)) for parameter in parameters]
        program = canonicalize(problem, parameters, outputs, presolve=presolve)
        solved = SolutionMap(program, options={"tol": 1e-10}).solve(values)
        assert all(status.solved for status in solved.report.status)
        weights = [np.ones_like(output) * (1 + np.arange(output.shape[1])).reshape(-1, *[1] * (output.ndim - 2))
                   for output in solved.outputs]  # fmt: skip
        gradients, _ = solved.vjp([*weights, np.ones(2)])
        results.append([solved.objective, *solved.outputs, *gradients])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_the_objective_stays_quadratic() -> None:
    problem, parameters, outputs = difference(form)
    program = canonicalize(problem, parameters, outputs)
    assert not program.structure.cones.second_order
    assert program.structure.P.nnz == 9


def test_minimising_only_a_tracking_cost_returns_its_reference() -> None:
    x, r = cp.Variable(3), cp.Parameter(3)
    solved = SolutionMap(canonicalize(cp.Problem(cp.Minimize(form(M @ x - r))), [r], [x])).solve([np.ones(3)])
    np.testing.assert_allclose(solved.outputs[0][0], np.linalg.solve(M, np.ones(3)), atol=1e-9)
    (gradient,), _ = solved.vjp([np.array([[1.0, 2.0, 3.0]])])
    np.testing.assert_allclose(gradient[0], np.linalg.solve(M.T, [1.0, 2.0, 3.0]), atol=1e-9)


def test_matrix_and_argument_may_both_be_parametrised() -> None:
    """minimize (x - r)'P(x - r) + q'x has x = r - P^-1 q / 2, and the gradient of P is symmetric."""
    x, r, q = cp.Variable(3), cp.Parameter(3), cp.Parameter(3)
    P = cp.Parameter((3, 3), PSD=True)
    program = canonicalize(cp.Problem(cp.Minimize(cp.quad_form(x - r, P) + q @ x)), [P, r, q], [x])
    at = [Q, np.array([1.0, -1.0, 2.0]), np.array([0.3, 0.7, -0.2])]
    solved = SolutionMap(program, options={"tol": 1e-11}).solve(at)
    inverse = np.linalg.inv(Q)
    np.testing.assert_allclose(solved.outputs[0][0], at[1] - inverse @ at[2] / 2, atol=1e-8)
    weight = np.array([1.0, -2.0, 0.5])
    gradients, _ = solved.vjp([weight[None]])
    expected = np.outer(inverse @ weight, inverse @ at[2]) / 2
    np.testing.assert_allclose(gradients[0][0], 0.5 * (expected + expected.T), atol=1e-7)
    np.testing.assert_allclose(gradients[1][0], weight, atol=1e-8)
    np.testing.assert_allclose(gradients[2][0], -inverse @ weight / 2, atol=1e-7)


def test_a_sum_of_parametric_and_constant_matrices_is_accepted() -> None:
    x, r, P = cp.Variable(3), cp.Parameter(3), cp.Parameter((3, 3), PSD=True)
    program = canonicalize(cp.Problem(cp.Minimize(cp.quad_form(x - r, P + Q) + cp.sum(x))), [P, r], [x])
    solved = SolutionMap(program, options={"tol": 1e-11}).solve([M @ M.T, np.ones(3)])
    expected = 1.0 - np.linalg.solve(M @ M.T + Q, np.ones(3)) / 2
    np.testing.assert_allclose(solved.outputs[0][0], expected, atol=1e-8)


def test_a_convex_argument_is_canonicalised() -> None:
    """The form increases in |x - r| + 1, which CVXPY does not canonicalise in a quadratic objective."""
    N = np.abs(Q)
    x, r = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.quad_form(cp.abs(x - r) + 1.0, N) + 2.0 * cp.sum(x)))
    solved = SolutionMap(canonicalize(problem, [r], [x])).solve([np.array([0.5, -1.0, 0.0])])

    def cost(z: Array) -> float:
        t = np.abs(z - [0.5, -1.0, 0.0]) + 1.0
        return float(t @ N @ t + 2.0 * z.sum())

    (z,) = solved.outputs[0]
    np.testing.assert_allclose(solved.objective[0], cost(z), rtol=1e-7)
    rng = np.random.default_rng(0)
    assert all(cost(z + 1e-3 * rng.standard_normal(3)) >= cost(z) - 1e-8 for _ in range(50))


@pytest.mark.parametrize("wrap", [False, True])
def test_a_matrix_declared_definite_may_be_asymmetric(wrap: bool) -> None:
    """x'Sx depends on the symmetric part of S only, and so does the gradient."""
    x, S, q = cp.Variable(3), cp.Parameter((3, 3)), cp.Parameter(3)
    quadratic = cp.quad_form(x, cp.psd_wrap(S)) if wrap else cp.quad_form(x, S, assume_PSD=True)
    program = canonicalize(cp.Problem(cp.Minimize(quadratic + q @ x)), [S, q], [x])
    skew = np.array([[0.0, 1.0, -2.0], [-1.0, 0.0, 0.5], [2.0, -0.5, 0.0]])
    right = np.array([1.0, 2.0, -1.0])
    solved = SolutionMap(program, options={"tol": 1e-11}).solve([Q + skew, right])
    inverse = np.linalg.inv(Q)
    np.testing.assert_allclose(solved.outputs[0][0], -inverse @ right / 2, atol=1e-8)
    weight = np.array([1.0, -2.0, 0.5])
    gradients, _ = solved.vjp([weight[None]])
    expected = np.outer(inverse @ weight, inverse @ right) / 2
    np.testing.assert_allclose(gradients[0][0], 0.5 * (expected + expected.T), atol=1e-7)
