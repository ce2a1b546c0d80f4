"""Rows of A that are zero at some parameters, which some solvers behind CVXPY cannot handle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convexlayer import Options, Status
from convexlayer.program import Array, ConeProgram, Cones
from convexlayer.solution import Solution
from convexlayer.solvers.presolve_constant_rows import Presolved
from convexlayer.solvers.registry import available, solver_for
from convexlayer.testing.programs import dense_program

CONES = {
    "linear": Cones(zero=1, nonnegative=3),
    "second_order": Cones(zero=1, nonnegative=2, second_order=(3,)),
    "psd": Cones(zero=1, nonnegative=1, psd=(2,)),
    "exponential": Cones(zero=1, exponential=1),
}
INSIDE = {
    "linear": [1.0, 2.0, 3.0],
    "second_order": [1.0, 2.0, 5.0, 0.3, 0.2],
    "psd": [1.0, 5.0, 0.4, 5.0],
    "exponential": [1.0, 1.0, 5.0],
}
BEHIND_CVXPY = [info.name for info in available() if info.installed and not info.native]
PAIRS = [
    (info.name, kind)
    for info in available()
    for kind, cones in CONES.items()
    if info.installed and not info.native and cones.kinds <= info.cones
]


def data(kind: str) -> dict[str, Array]:
    """A feasible program with a unique solution."""
    rng, cones = np.random.default_rng(0), CONES[kind]
    return {
        "P": np.eye(3)[None],
        "q": rng.standard_normal((1, 3)),
        "A": rng.standard_normal((1, cones.m, 3)),
        "b": np.array([[0.5, *INSIDE[kind]]]),
    }


def solve(name: str, program: ConeProgram) -> Solution:
    solver, _ = solver_for(name, program.structure)
    return solver.solve(solver.init(program.structure), program, Options())


@pytest.mark.parametrize(("name", "kind"), PAIRS)
@pytest.mark.parametrize("zero", ["equality", "cones", "everything"])
def test_satisfied_constant_rows_are_removed(name: str, kind: str, zero: str) -> None:
    """The solution is that without these rows, whose multipliers are 0; ECOS would abort this process."""
    given = data(kind)
    rows = {"equality": slice(0, 1), "cones": slice(1, None), "everything": slice(None)}[zero]
    given["A"][0, rows] = 0.0
    if zero != "cones":
        given["b"][0, 0] = 0.0
    found = solve(name, dense_program(CONES[kind], **given))
    assert found.status == (Status.OPTIMAL,)
    np.testing.assert_array_equal(found.y[0, rows], 0.0)
    np.testing.assert_array_equal(found.s[0, rows], given["b"][0, rows])
    expected = -given["q"][0]
    if zero == "cones":
        normal = given["A"][0, 0]
        expected = expected - normal * (normal @ expected - 0.5) / (normal @ normal)
    if zero != "equality":
        np.testing.assert_allclose(found.x[0], expected, atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
@pytest.mark.parametrize("row", ["equality", "cones"])
def test_violated_constant_rows_are_infeasible_with_a_certificate(name: str, kind: str, row: str) -> None:
    given = data(kind)
    rows = slice(0, 1) if row == "equality" else slice(1, None)
    given["A"][0, rows] = 0.0
    if row == "cones":
        given["b"][0, rows] *= -1.0
    program = dense_program(CONES[kind], **given)
    found = solve(name, program)
    assert found.status == (Status.INFEASIBLE,)
    assert found.certified(program, 1e-8)[0].status == (Status.INFEASIBLE,)
    assert np.sum(program.b * found.y) < 0.0


@pytest.mark.parametrize("name", BEHIND_CVXPY)
@pytest.mark.parametrize(("q", "word"), [(0.0, Status.OPTIMAL), (1.0, Status.UNBOUNDED)])
def test_programs_without_remaining_rows_and_curvature(name: str, q: float, word: Status) -> None:
    """Without rows and curvature the solution is x = 0, or the program is unbounded along -q."""
    given = data("linear") | {"P": np.zeros((1, 3, 3)), "A": np.zeros((1, 4, 3)), "q": np.full((1, 3), q)}
    given["b"][0, 0] = 0.0
    program = dense_program(CONES["linear"], **given)
    found = solve(name, program)
    assert found.status == (word,)
    assert found.certified(program, 1e-8)[0].status == (word,)


def test_violations_at_rounding_level_are_accepted() -> None:
    given: dict[str, Any] = data("linear")
    given["A"][0, :2] = 0.0
    given["b"][0, :2] = 1e-16, -1e-16
    presolved = Presolved.of(dense_program(CONES["linear"], **given), 0)
    assert presolved.result is None
    assert presolved.rows.tolist() == [2, 3]
    assert presolved.cones == Cones(nonnegative=2)


def test_blocks_are_removed_only_as_a_whole() -> None:
    cones = Cones(zero=2, nonnegative=2, second_order=(2, 3), psd=(2, 1), exponential=2, power=(0.3, 0.6))
    A = np.zeros((1, cones.m, 3))
    kept = [1, 2, 6, 12, 16, 23]  # rows of an equality, an inequality, and of the second block of each other cone
    A[0, kept, 0] = 1.0
    b = np.ones((1, cones.m))
    b[0, 0] = 0.0
    program = dense_program(cones, np.zeros((1, 3, 3)), np.zeros((1, 3)), A, b)
    presolved = Presolved.of(program, 0)
    assert presolved.cones == Cones(zero=1, nonnegative=1, second_order=(3,), psd=(1,), exponential=1, power=(0.6,))
    assert presolved.A.shape[0] == presolved.cones.m == len(presolved.rows)
