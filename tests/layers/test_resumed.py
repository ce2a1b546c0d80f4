"""``SolutionMap.at``: batches rebuilt from their solutions."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest

from convexlayer import SolutionMap, canonicalize
from convexlayer.errors import ProblemError, ShapeError

STEP = 1e-6


@pytest.fixture(scope="module")
def solution_map() -> SolutionMap:
    x = cp.Variable(3, name="x")
    A, b, t = cp.Parameter((4, 3), name="A"), cp.Parameter(4, name="b"), cp.Parameter(name="t")
    constraints = [cp.norm(x) <= t, cp.sum(x) == 0.5]
    problem = cp.Problem(cp.Minimize(100.0 * cp.sum_squares(A @ x - b)), constraints)
    return SolutionMap(canonicalize(problem, [A, b, t], [x, constraints[0].dual_variables[0]]), solver="clarabel")


def theta(batch: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    radius = np.full(batch, 1.0)
    radius[1:2] = 0.1  # infeasible: no x of this radius sums to a half
    return [rng.standard_normal((4, 3)), rng.standard_normal((batch, 4)), radius]


def test_the_rebuilt_batch_equals_the_solved_one(solution_map: SolutionMap) -> None:
    rng = np.random.default_rng(1)
    solved = solution_map.solve(theta())
    again = solution_map.at(theta(), solved.report.solution)
    assert again.report.status == solved.report.status
    assert str(again.report.status[1]) == "infeasible"
    assert again.batched == solved.batched
    np.testing.assert_allclose(again.objective, solved.objective, rtol=1e-12)
    for ours, theirs in zip(again.outputs, solved.outputs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    cotangents = [rng.standard_normal((4, 3)), rng.standard_normal(4), np.ones(4)]
    for ours, theirs in zip(again.vjp(cotangents)[0], solved.vjp(cotangents)[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)
    tangents = [None, rng.standard_normal((4, 4)), None]
    (ours, *_), (theirs, *_) = again.jvp(tangents)[0], solved.jvp(tangents)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)


def test_its_derivative_matches_finite_differences(solution_map: SolutionMap) -> None:
    values = theta(1)
    values[2][:] = 1.0
    solution = solution_map.solve(values).report.solution
    cotangent = np.array([[1.0, -2.0, 0.5]])
    gradient = solution_map.at(values, solution).vjp([cotangent, None])[0][1]
    assert gradient is not None
    for row in range(4):
        moved = [values[1] + sign * STEP * np.eye(4)[row] for sign in (1, -1)]
        losses = [np.sum(cotangent * solution_map.solve([values[0], b, values[2]]).outputs[0]) for b in moved]
        assert gradient[0, row] == pytest.approx((losses[0] - losses[1]) / (2 * STEP), abs=1e-6)


def test_a_point_that_is_not_a_solution_is_rejected(solution_map: SolutionMap) -> None:
    solution = solution_map.solve(theta()).report.solution
    values = theta()
    values[1] = values[1] + 0.1
    with pytest.raises(ProblemError, match="element 0 has status optimal, but its largest residual is"):
        solution_map.at(values, solution)
    with pytest.raises(ShapeError, match="with 3 elements, got 4 elements"):
        solution_map.at(theta(3), solution)
