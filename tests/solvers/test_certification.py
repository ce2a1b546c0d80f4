"""A solver's word alone is not enough: every solution is judged by our own residuals."""

from __future__ import annotations

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest

from convexlayer import FailedElementsError, Options, SolutionMap, Status, canonicalize
from convexlayer.program import ConeProgram
from convexlayer.solution import Solution
from convexlayer.solvers.clarabel_ import ClarabelSolver
from convexlayer.solvers.registry import solver_for
from tests.solvers.programs import KINDS, known


def liar(monkeypatch: pytest.MonkeyPatch, spoil: float, word: Status = Status.OPTIMAL) -> None:
    """Clarabel, which says `word` of every element of a batch and moves x of element 1; of one alone it is honest."""
    honest = ClarabelSolver.solve

    def solve(
        self: ClarabelSolver, state: object, program: ConeProgram, options: Options, warm_start: object = None
    ) -> Solution:
        answer = honest(self, state, program, options)
        if program.batch == 1:  # a search for what proves that there is no solution
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


def test_a_lie_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = projection().solve([THETA])
    liar(monkeypatch, spoil=0.1)
    solved = projection().solve([THETA])
    assert solved.report.status == (Status.OPTIMAL, Status.NUMERICAL_ERROR, Status.OPTIMAL)
    assert solved.report.residuals.worst[1] > 1e-2
    assert np.all(np.isnan(solved.outputs[0][1]))
    np.testing.assert_array_equal(solved.outputs[0][[0, 2]], honest.outputs[0][[0, 2]])


def test_a_small_lie_is_inaccurate(monkeypatch: pytest.MonkeyPatch) -> None:
    liar(monkeypatch, spoil=1e-6)
    solved = projection().solve([THETA])
    assert solved.report.status == (Status.OPTIMAL, Status.OPTIMAL_INACCURATE, Status.OPTIMAL)


def test_a_good_point_is_not_lost_to_a_pessimist(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stopped at a limit, or in trouble, may be good all the same."""
    for word in (Status.ITERATION_LIMIT, Status.TIME_LIMIT, Status.NUMERICAL_ERROR, Status.OPTIMAL_INACCURATE):
        with monkeypatch.context() as patch:
            liar(patch, spoil=0.0, word=word)
            assert projection().solve([THETA]).report.status == (Status.OPTIMAL,) * 3


def test_a_bad_point_keeps_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    liar(monkeypatch, spoil=0.1, word=Status.TIME_LIMIT)
    assert projection().solve([THETA]).report.status[1] is Status.TIME_LIMIT


def test_a_lie_fails_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from convexlayer import ConvexLayer

    x, c = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [cp.sum(x) == 1, x >= 0])
    layer = ConvexLayer(problem, [c], [x], options={"polish": False}, solver="clarabel")
    liar(monkeypatch, spoil=0.1)
    with pytest.raises(FailedElementsError, match=r"1 of 3.*1 \(numerical_error\)") as caught:
        layer(torch.tensor(THETA))
    assert caught.value.indices == (1,)


@pytest.mark.parametrize("kind", ["socp", "sdp", "exponential", "power"])
def test_the_natural_residual_sees_what_the_other_three_do_not(kind: str) -> None:
    """On curved cones a point may satisfy the first three to 1e-8 and be 1e-6 off."""
    case = known(KINDS[kind], quadratic=True)
    solver, _ = solver_for("clarabel", case.program.structure)
    residuals = solver.solve(solver.init(case.program.structure), case.program, Options()).residuals(case.program)
    others = np.max([residuals.primal, residuals.dual, residuals.gap], axis=0)
    assert np.all(others < 1e-7)
    assert np.any(residuals.natural > 10 * others)
    np.testing.assert_allclose(case.solution().residuals(case.program).worst, 0.0, atol=1e-12)
