"""Free auxiliary variables of CVXPY, which make K singular or put w on a jump without affecting outputs."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest

from convexlayer import SolutionMap, canonicalize

c = cp.Parameter(3, name="c")
x = cp.Variable(3, name="x")
VALUE = np.array([0.2, -0.3, 0.1])


@pytest.mark.parametrize("solver", ["clarabel", "scs", "daqp", "qoco"])
def test_the_free_epigraph_variable_of_a_slack_bound(solver: str) -> None:
    """abs(x) <= 1 is inactive, so t in abs(x) <= t <= 1 is not unique; some solvers return a vertex."""
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.abs(x) <= 1])
    solved = SolutionMap(canonicalize(problem, [c], [x]), solver=solver).solve([VALUE])
    (gradient,), report = solved.vjp([np.array([[1.0, 2.0, 3.0]])])
    np.testing.assert_allclose(gradient, [[1.0, 2.0, 3.0]], atol=1e-8)
    assert report.status == ("ok",)
    (moved, _), report = solved.jvp([np.ones(3)])
    np.testing.assert_allclose(moved, np.ones((1, 3)), atol=1e-8)
    assert report.status == ("ok",)


def test_nonunique_duals_matter_only_if_they_are_outputs() -> None:
    """Two equal constraints share one multiplier in any proportion; x does not depend on the split."""
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 1, x >= 1])
    dual = problem.constraints[0].dual_variables[0]
    solved = SolutionMap(canonicalize(problem, [c], [x, dual])).solve([VALUE])
    (moved, of_dual, _), report = solved.jvp([np.ones(3)], of=[True, False])
    assert moved is not None
    assert of_dual is None
    assert report.status == ("ok",)
    _, report = solved.jvp([np.ones(3)], of=[True, True])
    assert report.status == ("degenerate",)


def test_a_weakly_active_bound_is_reported() -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0])
    solved = SolutionMap(canonicalize(problem, [c], [x])).solve([np.array([1.0, 0.0, -1.0])])
    assert solved.vjp([np.ones((1, 3))])[1].status == ("degenerate",)
    _, report = solved.vjp([np.array([[1.0, 0.0, 1.0]])])  # the degenerate entry has a zero cotangent
    assert report.status == ("ok",)


def test_rounding_errors_of_cotangents_do_not_make_a_null_space_visible() -> None:
    """Epigraph variables of a matrix entropy are not unique; rounding errors of cotangents reach them."""
    S, C = cp.Variable((3, 3), PSD=True), cp.Parameter((3, 3), symmetric=True)
    problem = cp.Problem(cp.Maximize(cp.von_neumann_entr(S) + cp.trace(C @ S)), [cp.trace(S) == 1])
    rng = np.random.default_rng(0)
    values = np.stack([np.diag(row) for row in rng.normal(size=(4, 3))])
    solved = SolutionMap(canonicalize(problem, [C], [S])).solve([values])
    for _ in range(20):
        _, report = solved.vjp([rng.normal(size=(4, 3, 3))])
        assert report.status == ("ok",) * 4
