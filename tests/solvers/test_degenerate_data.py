"""Degenerate data: every solver returns a result, without aborting the process and in finite time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convexlayer import Options, Status
from convexlayer.program import Cones
from convexlayer.solvers.registry import available, solver_for
from convexlayer.testing.programs import dense_program
from tests.solvers import degenerate

ROOT = Path(__file__).parents[2]
QP = Cones(zero=1, nonnegative=1)
INSTALLED = [info.name for info in available() if info.installed]


@pytest.fixture(scope="module")
def elements() -> tuple[dict[str, int], str]:
    """The number of elements with a result of each solver, and where the process ended.

    It is a separate process, so that a crash is a failure.
    """
    command = [sys.executable, "-W", "ignore", "-m", "tests.solvers.degenerate", *INSTALLED]
    environment = os.environ | {"MALLOC_PERTURB_": "165"}  # fill freed and uninitialised memory with nonzeros
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    lines = run.stdout.splitlines()
    counts = [line.split(" elements of ") for line in lines if " elements of " in line]
    found = {name: int(count) for count, name in counts}
    return found, f"status {run.returncode} after {lines[-1]!r}: {run.stderr[-2000:]}"


@pytest.mark.parametrize("name", INSTALLED)
def test_every_element_has_a_result(name: str, elements: tuple[dict[str, int], str]) -> None:
    (info,) = (info for info in available() if info.name == name)
    expected = sum(program.batch for _, program in degenerate.programs(info))
    found, end = elements
    assert found.get(name) == expected, end


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *[("P", 1e16), ("A", -1e16), ("q", 1e21), ("b", 1e21), ("b", -1e21), ("P", -1.0)],
        *[(part, value) for part in "PqAb" for value in (np.nan, np.inf, -np.inf)],
    ],
)
def test_highs_is_not_run_on_data_that_it_rejects(part: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVXPY would run it anyway, which aborts the process if P has an empty column."""
    highspy = pytest.importorskip("highspy")
    monkeypatch.setattr(highspy, "Highs", lambda: pytest.fail("HiGHS was run"))
    whole = {"P": np.diag([0.0, 1.0])[None], "q": np.ones((1, 2)), "A": np.ones((1, 2, 2)), "b": np.ones((1, 2))}
    program = dense_program(QP, **whole | {part: np.where(whole[part] == 0.0, 0.0, value)})
    solver, _ = solver_for("highs", program.structure)
    found = solver.solve(None, program, Options())
    assert found.status == (Status.NUMERICAL_ERROR,)
    reasons = ("coefficients of P and A must not exceed", "it treats q beyond", "the objective is not convex")
    assert found.stats["messages"][0].startswith(tuple(f"highs: {reason}" for reason in reasons))


def test_highs_treats_a_huge_bound_as_infinite() -> None:
    """Minimise 1/2 |x|^2 + x1 + x2 over x1 + x2 = 1 and x1 + x2 <= 1e21."""
    program = dense_program(QP, np.eye(2)[None], np.ones((1, 2)), np.ones((1, 2, 2)), np.array([[1.0, 1e21]]))
    solver, _ = solver_for("highs", program.structure)
    found = solver.solve(None, program, Options())
    assert found.status == (Status.OPTIMAL,)
    np.testing.assert_allclose(found.x, 0.5, atol=1e-6)


@pytest.mark.parametrize(("options", "iterations"), [({}, 10_400), ({"max_iter": 50}, 50)])
def test_highs_does_not_cycle_forever(options: dict[str, Any], iterations: int) -> None:
    """Its active-set method cycles on: minimise x2^2 - 4 x2 subject to -1 <= x1 <= 1/2."""
    program = dense_program(
        Cones(nonnegative=2),
        np.diag([0.0, 2.0])[None],
        np.array([[0.0, -4.0]]),
        np.array([[[2.0, 0.0], [-1.0, 0.0]]]),
        np.ones((1, 2)),
    )
    solver, _ = solver_for("highs", program.structure)
    found = solver.solve(None, program, Options(**options))
    assert found.status == (Status.ITERATION_LIMIT,)
    assert abs(found.iterations[0] - iterations) <= 1
