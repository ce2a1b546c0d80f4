"""Warm starts of SCS, only from actual solutions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convexlayer import Options, Status
from convexlayer.solution import Solution
from convexlayer.solvers.registry import solver_for
from convexlayer.testing.programs import KINDS, Known, known


@pytest.fixture(params=["qp", "sdp", "exponential", "power"])
def case(request: pytest.FixtureRequest) -> Known:
    return known(KINDS[request.param], quadratic=True, batch=3)


def solve(case: Known, warm_start: Solution | None) -> Solution:
    solver, _ = solver_for("scs", case.program.structure)
    return solver.solve(solver.init(case.program.structure), case.program, Options(), warm_start)


def test_a_warm_start_saves_iterations(case: Known) -> None:
    cold, warm = solve(case, None), solve(case, case.solution)
    assert warm.status == (Status.OPTIMAL,) * 3
    assert np.all(warm.iterations < cold.iterations)
    np.testing.assert_allclose(warm.x, case.solution.x, atol=1e-6)


def test_nonfinite_points_are_ignored(case: Known) -> None:
    start = case.solution
    start.y[1, 0] = np.nan
    cold, warm = solve(case, None), solve(case, start)
    np.testing.assert_array_equal(warm.x[1], cold.x[1])
    assert warm.iterations[0] < cold.iterations[0]


def test_certificates_are_not_used_as_warm_starts(case: Known) -> None:
    start = replace(case.solution, status=(Status.OPTIMAL, Status.INFEASIBLE, Status.UNBOUNDED))
    cold, warm = solve(case, None), solve(case, start)
    np.testing.assert_array_equal(warm.x[1:], cold.x[1:])
