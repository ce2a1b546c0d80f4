"""Presolve eliminates epigraph variables of bounded norms and leaves solutions, duals and gradients unchanged."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest

from convexlayer import SolutionMap, canonicalize

N = 4
x, p, bound = cp.Variable(N), cp.Parameter(N), cp.Parameter(nonneg=True)
X = cp.reshape(x, (2, 2), order="C")

CONSTRAINTS = {
    "norm": cp.norm(x, 2) <= bound,
    "weighted norm": 2.0 * cp.norm(x, 2) + 1.0 <= bound + x[0],
    "sum of norms": cp.norm(x[:2], 2) + cp.norm(x[2:], 2) <= bound,
    "exponential": cp.exp(x[0]) <= bound,
    "power": cp.power(x[0], 3.3, approx=False) <= bound,
    "largest eigenvalue": cp.lambda_max(X + X.T) <= bound,
}


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("level", [1.5, 50.0], ids=["active", "inactive"])
def test_solutions_duals_and_gradients_are_unchanged(name: str, level: float) -> None:
    constraint = CONSTRAINTS[name]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [constraint])
    outputs = [x, constraint.dual_variables[0]]
    theta = [np.array([2.0, 0.5, -1.0, 1.5]), np.array(level)]
    cotangents = [np.arange(1.0, N + 1.0)[None], np.ones((1, *outputs[1].shape))]
    found = []
    for presolve in (True, False):
        program = canonicalize(problem, [p, bound], outputs, presolve=presolve)
        solved = SolutionMap(program, solver="clarabel").solve([value[None] for value in theta])
        assert [str(word) for word in solved.report.status] == ["optimal"]
        gradients, report = solved.vjp(cotangents)
        assert report.status == ("ok",)
        found.append([*solved.outputs, *gradients])
    for ours, plain in zip(*found, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_an_epigraph_variable_is_eliminated(name: str) -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [CONSTRAINTS[name]])
    record = canonicalize(problem, [p, bound], [x]).presolve
    assert record is not None
    assert record.bound_variables == 1


def test_an_inactive_bound_leaves_a_nonsingular_system() -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm(x, 2) <= bound])
    solved = SolutionMap(canonicalize(problem, [p, bound], [x])).solve([np.ones((1, N)), np.array([100.0])])
    (gradient, of_bound), report = solved.vjp([np.ones((1, N))])
    assert report.condition[0] < 100.0
    np.testing.assert_allclose(gradient, np.ones((1, N)), rtol=1e-9)
    np.testing.assert_allclose(of_bound, [0.0], atol=1e-12)
