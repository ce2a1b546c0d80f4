"""Any two solvers that support a problem give the same outputs and gradients."""

from __future__ import annotations

import numpy as np
import pytest

from convexlayer import SolutionMap
from convexlayer.program import Array
from convexlayer.solvers.registry import available
from tests.families import SMOOTH, family

FIRST_ORDER_ON_VERTICES = {("osqp", name) for name in ("linear_program", "lasso")}


def answers(name: str, solver: str) -> list[Array]:
    """Outputs, objective values, and gradients of a fixed random loss, of a batch of three."""
    case = family(name)
    solved = SolutionMap(case.program(), solver=solver).solve(case.values(3))
    assert solved.report.solver == solver
    assert all(status.solved for status in solved.report.status)
    rng = np.random.default_rng(0)
    gradients, report = solved.vjp([*(rng.standard_normal(value.shape) for value in solved.outputs), rng.random(3)])
    assert report.trusted
    return [*solved.outputs, solved.objective, *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("name", SMOOTH)
def test_solvers_agree(name: str) -> None:
    structure = family(name).program().structure
    solvers = [
        info.name
        for info in available()
        if info.installed and structure.cones.kinds <= info.cones and (info.name, name) not in FIRST_ORDER_ON_VERTICES
    ]
    assert {"clarabel", "scs"} <= set(solvers)
    expected = answers(name, "clarabel")
    for solver in solvers[1:]:
        for ours, theirs in zip(answers(name, solver), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-7, err_msg=solver)
