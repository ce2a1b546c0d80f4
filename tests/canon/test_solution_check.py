"""The solution check detects wrong canonicalisations by CVXPY, without false alarms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from cvxpy.reductions.dcp2cone.canonicalizers import CANON_METHODS

from convexlayer import ConvexLayer, ProblemError, canonicalize
from convexlayer.canon import frontend, solution_check

Canon = Callable[..., tuple[Any, list[Any]]]


def epigraph(*above: Callable[[Any], Any]) -> Canon:
    """A canonical form of |x| with an epigraph variable t bounded below by the given functions of x."""

    def canonical(expression: Any, arguments: Any, solver_context: Any = None) -> tuple[Any, list[Any]]:
        t = cp.Variable(expression.shape)
        return t, [t >= part(arguments[0]) for part in above]

    return canonical


WEAKER = epigraph(lambda x: x, lambda x: -0.5 * x)
STRONGER = epigraph(lambda x: 1.5 * x, lambda x: -1.5 * x)
RIGHT = epigraph(lambda x: x, lambda x: -x)
NOTHING = epigraph()


def in_the_objective(x: cp.Variable, b: cp.Parameter) -> cp.Problem:
    return cp.Problem(cp.Minimize(cp.sum(cp.abs(x - b)) + 0.1 * cp.sum_squares(x)), [x <= 2])


def in_a_constraint(x: cp.Variable, b: cp.Parameter) -> cp.Problem:
    return cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [cp.abs(x) <= 0.5])


def maximised(x: cp.Variable, b: cp.Parameter) -> cp.Problem:
    return cp.Problem(cp.Maximize(b @ x - cp.sum(cp.abs(x))), [cp.norm(x, 2) <= 3])


def unbounded_without_a_proximal_term(x: cp.Variable, b: cp.Parameter) -> cp.Problem:
    return cp.Problem(cp.Minimize(b @ x + cp.abs(x[0])))


POSED = [in_the_objective, in_a_constraint, maximised, unbounded_without_a_proximal_term]


def canonicalised(pose: Callable[[cp.Variable, cp.Parameter], cp.Problem], **keywords: bool) -> None:
    x, b = cp.Variable(3), cp.Parameter(3)
    canonicalize(pose(x, b), [b], [x], **keywords)


@pytest.mark.parametrize("pose", POSED)
@pytest.mark.parametrize(("canon", "wrong"), [(WEAKER, True), (STRONGER, True), (NOTHING, True), (RIGHT, False)])
def test_a_wrong_canonical_form_is_detected(
    pose: Callable[[cp.Variable, cp.Parameter], cp.Problem], canon: Canon, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CANON_METHODS, cp.abs, canon)
    if not wrong:
        canonicalised(pose)
        return
    with pytest.raises(ProblemError, match=rf"CVXPY {cp.__version__} canonicalises the problem wrongly"):
        canonicalised(pose)
    canonicalised(pose, self_check=False)


@pytest.mark.parametrize(
    ("pose", "canon", "expected"),
    [
        (in_the_objective, WEAKER, r"the objective is reported as [-.\d]+ and evaluates to [-.\d]+"),
        (in_a_constraint, WEAKER, r"the constraint abs\(var\d+\) <= 0\.5 is violated by 0\.\d+"),
        (in_a_constraint, STRONGER, r"the constraint abs\(var\d+\) <= 0\.5 is not tight though it has multipliers"),
        (in_the_objective, NOTHING, r"the objective is reported as -[.e+\d]+ and evaluates to [-.\d]+"),
    ],
)
def test_the_error_describes_the_violated_condition(
    pose: Callable[[cp.Variable, cp.Parameter], cp.Problem],
    canon: Canon,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(CANON_METHODS, cp.abs, canon)
    with pytest.raises(ProblemError, match=expected):
        canonicalised(pose)


def test_errors_of_cvxpy_are_detected_without_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms along an axis of three-dimensional arrays, and axis permutations by other backends."""
    monkeypatch.setattr(frontend, "with_workarounds", lambda problem: problem)
    X, P = cp.Variable((2, 2, 2)), cp.Parameter((2, 2, 2))
    problem = cp.Problem(cp.Minimize(cp.sum(cp.norm(X, 2, axis=1)) + cp.sum_squares(X - P)))
    with pytest.raises(ProblemError, match="the objective is reported as"):
        ConvexLayer(problem, [P], [X])
    monkeypatch.setattr(frontend, "BACKEND", "CPP")
    Y, Q = cp.Variable((3, 4), pos=True), cp.Parameter((3, 4))
    problem = cp.Problem(cp.Minimize(-cp.sum(cp.geo_mean(Y, axis=0)) + cp.sum_squares(Y - Q)))
    with pytest.raises(ProblemError, match="the objective is reported as"):
        canonicalize(problem, [Q], [Y])


def test_problems_that_no_draw_can_solve_are_accepted() -> None:
    x, b = cp.Variable(3), cp.Parameter(3)
    infeasible = cp.Problem(cp.Minimize(cp.sum_squares(x)), [x <= b - 100, x >= b])
    canonicalize(infeasible, [b], [x])


def test_expressions_that_cannot_be_evaluated_are_accepted() -> None:
    """CVXPY evaluates this atom wrongly, but canonicalises it correctly."""
    X, S = cp.Variable((2, 2), PSD=True), cp.Parameter((2, 2), PSD=True)
    canonicalize(cp.Problem(cp.Minimize(cp.quantum_rel_entr(X, np.eye(2)) + cp.trace(S @ X))), [S], [X])


def test_large_problems_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    x, b = cp.Variable(30), cp.Parameter(30)
    monkeypatch.setattr(solution_check, "LARGEST_SIZE", 50)
    monkeypatch.setitem(CANON_METHODS, cp.abs, WEAKER)
    canonicalize(cp.Problem(cp.Minimize(cp.sum(cp.abs(x - b)))), [b], [x])


def test_a_mismatch_within_the_solvers_accuracy_is_accepted() -> None:
    """sqrt(x) at x = 0 has the square root of the solver's error, and a geometric mean a higher root."""
    x, b = cp.Variable(6), cp.Parameter(6)
    for concave in (cp.sum(cp.sqrt(x)), cp.geo_mean(x), cp.sum(cp.power(x, 0.1, approx=False))):
        problem = cp.Problem(cp.Maximize(concave - 3 * cp.sum(x) + 0 * cp.sum(b)), [x >= 0, cp.sum(x) <= 1e-6])
        canonicalize(problem, [b], [x])
