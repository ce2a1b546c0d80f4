"""Certification: the status of every solution is checked by its residuals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

from convexlayer import FailedElementsError, Options, SolutionMap, Status, canonicalize
from convexlayer.program import ConeProgram
from convexlayer.solution import Solution
from convexlayer.solvers.clarabel_ import ClarabelSolver
from convexlayer.solvers.registry import solver_for
from convexlayer.testing.programs import KINDS, known


def wrong_clarabel(monkeypatch: pytest.MonkeyPatch, spoil: float, word: Status = Status.OPTIMAL) -> None:
    """Make Clarabel report ``word`` for all elements of a batch and change x of element 1; single ones are correct."""
    honest = ClarabelSolver.solve

    def solve(
        self: ClarabelSolver, state: Any, program: ConeProgram, options: Options, warm_start: object = None
    ) -> Solution:
        answer = honest(self, state, program, options)
        if program.batch == 1:  # a search for a certificate
            return answer
        x = answer.x.copy()
        x[1] += spoil
        return replace(answer, x=x, status=(word,) * program.batch)

    monkeypatch.setattr(ClarabelSolver, "solve", solve)


def projection() -> SolutionMap:
    x, c = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.sum(x) == 1, x >= 0])
    return SolutionMap(canonicalize(problem, [c], [x]), solver="clarabel", options={"polish": False})


THETA = np.array([[0.3, 1.0, -0.2], [0.5, 0.1, 0.9], [2.0, 0.0, 1.0]])


def test_a_wrong_solution_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = projection().solve([THETA])
    wrong_clarabel(monkeypatch, spoil=0.1)
    solved = projection().solve([THETA])
    assert solved.report.status == (Status.OPTIMAL, Status.NUMERICAL_ERROR, Status.OPTIMAL)
    assert solved.report.residuals.worst[1] > 1e-2
    assert np.all(np.isnan(solved.outputs[0][1]))
    np.testing.assert_array_equal(solved.outputs[0][[0, 2]], honest.outputs[0][[0, 2]])


def test_a_slightly_wrong_solution_is_inaccurate(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_clarabel(monkeypatch, spoil=1e-6)
    solved = projection().solve([THETA])
    assert solved.report.status == (Status.OPTIMAL, Status.OPTIMAL_INACCURATE, Status.OPTIMAL)


def test_an_accurate_point_is_optimal_whatever_the_solver_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point may be accurate even if the solver stopped at a limit or with numerical problems."""
    for word in (Status.ITERATION_LIMIT, Status.TIME_LIMIT, Status.NUMERICAL_ERROR, Status.OPTIMAL_INACCURATE):
        with monkeypatch.context() as patch:
            wrong_clarabel(patch, spoil=0.0, word=word)
            assert projection().solve([THETA]).report.status == (Status.OPTIMAL,) * 3


def test_an_inaccurate_point_keeps_the_reported_status(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_clarabel(monkeypatch, spoil=0.1, word=Status.TIME_LIMIT)
    assert projection().solve([THETA]).report.status[1] is Status.TIME_LIMIT


def test_a_wrong_solution_makes_the_layer_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from convexlayer import ConvexLayer

    x, c = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.sum(x) == 1, x >= 0])
    layer = ConvexLayer(problem, [c], [x], options={"polish": False}, solver="clarabel")
    wrong_clarabel(monkeypatch, spoil=0.1)
    with pytest.raises(FailedElementsError, match=r"1 of 3.*1 \(numerical_error\)") as caught:
        layer(torch.tensor(THETA))
    assert caught.value.indices == (1,)


@pytest.mark.parametrize("kind", ["socp", "sdp", "exponential", "power"])
def test_natural_residual_detects_errors_that_the_other_residuals_miss(kind: str) -> None:
    """On curved cones a point may have primal, dual and gap residuals of 1e-8 and an error of 1e-6."""
    case = known(KINDS[kind], quadratic=True)
    solver, _ = solver_for("clarabel", case.program.structure)
    residuals = solver.solve(solver.init(case.program.structure), case.program, Options()).residuals(case.program)
    others = np.max([residuals.primal, residuals.dual, residuals.gap], axis=0)
    assert np.all(others < 1e-7)
    assert np.any(residuals.natural > 10 * others)
    np.testing.assert_allclose(case.solution.residuals(case.program).worst, 0.0, atol=1e-12)
