"""An exception of a solver for one element does not affect the others; settings rejected for every program raise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convexlayer import Options, SolverError, Status
from convexlayer.program import ConeProgram
from convexlayer.solution import Solution
from convexlayer.solvers.registry import available, solver_for
from convexlayer.testing.programs import KINDS, known, stack

INSTALLED = [info.name for info in available() if info.installed]
NEEDS_CONVEXITY = ["scs", "ecos", "cvxopt"]


def solve(name: str, program: ConeProgram, **options: Any) -> Solution:
    solver, _ = solver_for(name, program.structure)
    return solver.solve(solver.init(program.structure), program, Options(**options))


def spoilt(change: str) -> tuple[ConeProgram, ConeProgram]:
    """Three QPs, and the same with the second one made invalid."""
    program = known(KINDS["qp"], quadratic=True, batch=3).program
    P, q, A, b = (getattr(program, name).copy() for name in ("P", "q", "A", "b"))
    if change == "indefinite":
        P[1, np.flatnonzero(program.structure.P.rows == program.structure.P.cols)[0]] -= 10.0
    elif change == "overflow":
        A[1, 3] = np.inf
    elif change == "not a number":
        q[1, 0] = np.nan
    elif change == "huge":
        A[1, 5], q[1, 1] = 1e300, 1e200
    return program, replace(program, P=P, q=q, A=A, b=b)


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("change", ["indefinite", "overflow", "not a number", "huge"])
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered", "ignore:divide by zero")
def test_other_elements_are_not_affected(name: str, change: str) -> None:
    program, wrong = spoilt(change)
    alone, found = solve(name, program), solve(name, wrong)
    for i in (0, 2):
        assert found.status[i] is alone.status[i]
        np.testing.assert_array_equal(found.x[i], alone.x[i])
        np.testing.assert_array_equal(found.y[i], alone.y[i])


@pytest.mark.parametrize("name", NEEDS_CONVEXITY)
def test_the_solvers_message_is_kept(name: str) -> None:
    _, wrong = spoilt("indefinite")
    found = solve(name, wrong)
    assert found.status == (Status.OPTIMAL, Status.NUMERICAL_ERROR, Status.OPTIMAL)
    assert list(found.stats["messages"]) == [1]
    assert found.stats["messages"][1].lower().startswith(name)
    assert np.isnan(found.x[1]).all()


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("clarabel", {"direct_solve_method": "guessing"}),
        ("scs", {"alpha": 5.0}),
        ("ecos", {"max_iters": "many"}),
        ("highs", {"time_limit": "long"}),
        ("piqp", {"eps_abs": "small"}),
    ],
)
@pytest.mark.parametrize("change", ["none", "indefinite"])
def test_invalid_settings_raise(name: str, raw: dict[str, Any], change: str) -> None:
    _, program = spoilt(change)
    with pytest.raises(SolverError, match=rf"(?i){name}"):
        solve(name, stack(program.select([1]), program), solver_options={name: raw})
