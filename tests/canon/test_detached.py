"""Construction depends neither on values stored in the problem nor on earlier solves."""

from __future__ import annotations

import copy
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest

from convexlayer import SolutionMap, canonicalize
from convexlayer.canon.detached import detached, expressions

Array = np.ndarray
Posed = tuple[cp.Problem, cp.Parameter, cp.Variable]
R = np.random.default_rng(0).standard_normal((24, 4))


def conditional_value_at_risk() -> Posed:
    w, mu = cp.Variable(4), cp.Parameter(4)  # (1 - 0.9) 24 is not an integer
    return cp.Problem(cp.Minimize(cp.cvar(-R @ w, 0.9) - mu @ w), [cp.sum(w) == 1, w >= 0]), mu, w


def fractional_sum_of_largest() -> Posed:
    x, b = cp.Variable(4), cp.Parameter(4)
    return cp.Problem(cp.Minimize(cp.sum_largest(x, 1.5) + cp.sum_squares(x - b))), b, x


def gamma() -> Posed:
    x, b = cp.Variable(4), cp.Parameter(4)
    return cp.Problem(cp.Minimize(cp.sum(cp.loggamma(x + 3)) + cp.sum_squares(x - b))), b, x


def perspective() -> Posed:
    y, s, d = cp.Variable(), cp.Variable(nonneg=True), cp.Parameter()
    cost = cp.perspective(cp.square(y), s) + cp.square(s - d) + cp.square(y - 1)
    return cp.Problem(cp.Minimize(cost), [s >= 0.1]), d, y


def constants_in_variables() -> Posed:
    X, b = cp.Variable((2, 2), PSD=True), cp.Parameter((2, 2))
    return cp.Problem(cp.Minimize(cp.sum_squares(X - b) + cp.lambda_max(X) + cp.max(X)), [X[0, 1] == 0.1]), b, X


@pytest.mark.parametrize(
    "pose", [conditional_value_at_risk, fractional_sum_of_largest, gamma, perspective, constants_in_variables]
)
def test_a_previously_solved_problem_canonicalises_to_the_same_program(pose: Callable[[], Posed]) -> None:
    problem, parameter, variable = pose()
    fresh = canonicalize(problem, [parameter], [variable])
    parameter.value = np.full(parameter.shape, 0.3)
    problem.solve(solver=cp.CLARABEL)
    before = {leaf.id: copy.deepcopy(leaf.value) for leaf in (*problem.variables(), *problem.parameters())}
    again = canonicalize(problem, [parameter], [variable])
    np.testing.assert_array_equal(again.data.constant, fresh.data.constant)
    np.testing.assert_array_equal(again.data.matrix.toarray(), fresh.data.matrix.toarray())
    for leaf in (*problem.variables(), *problem.parameters()):
        np.testing.assert_array_equal(leaf.value, before[leaf.id])
    solved = SolutionMap(again).solve([parameter.value])
    np.testing.assert_allclose(solved.outputs[0][0], variable.value, atol=1e-4)


def test_a_copy_has_no_values() -> None:
    x, b = cp.Variable(3), cp.Parameter(3)
    x.value, b.value = np.ones(3), np.ones(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [x >= 0])
    problem.constraints[0].dual_variables[0].save_value(np.ones(3))
    copied = detached(problem)
    leaves = [leaf for leaf in expressions(copied) if isinstance(leaf, cp.Variable | cp.Parameter)]
    assert {leaf.id for leaf in leaves} == {x.id, b.id}
    assert all(leaf.value is None for leaf in (*leaves, *copied.constraints[0].dual_variables))


def test_callback_parameters_become_ordinary_parameters() -> None:
    p, q = cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
    both = cp.CallbackParam(callback=lambda: p.value * q.value, nonneg=True)
    x = cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 1) + both * cp.norm1(x)))
    solved = SolutionMap(canonicalize(problem, [both], [x])).solve([np.array(0.6)])
    np.testing.assert_allclose(solved.outputs[0][0], 0.7, atol=1e-8)


@pytest.mark.parametrize("attribute", ["symmetric", "PSD", "NSD", "diag"])
def test_stacks_of_structured_matrices_are_supported(attribute: str) -> None:
    X, S = cp.Variable((2, 3, 3)), cp.Parameter((2, 3, 3), **{attribute: True})
    half = np.random.default_rng(1).standard_normal((2, 3, 3))
    transposed = np.swapaxes(half, -1, -2)
    value = {
        "symmetric": half + transposed,
        "PSD": half @ transposed,
        "NSD": -half @ transposed,
        "diag": half * np.eye(3),
    }[attribute]
    solved = SolutionMap(canonicalize(cp.Problem(cp.Minimize(cp.sum_squares(X - S))), [S], [X])).solve([value])
    np.testing.assert_allclose(solved.outputs[0][0], value, atol=1e-9)
    (gradient,), _ = solved.vjp([half[None]])
    expected = half * np.eye(3) if attribute == "diag" else 0.5 * (half + transposed)
    np.testing.assert_allclose(gradient[0], expected, atol=1e-9)
