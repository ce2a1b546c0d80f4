"""The daqp adapter: bounds, scaling, and the check of reported infeasibility."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convexlayer import Options, SolverError, Status
from convexlayer.program import Array, ConeProgram, Cones, Pattern, Structure
from convexlayer.runtime import kernel_cache
from convexlayer.solution import Solution
from convexlayer.solvers import daqp_
from convexlayer.solvers.clarabel_ import ClarabelSolver
from convexlayer.solvers.daqp_ import DaqpSolver
from convexlayer.testing.programs import dense_structure, known

pytest.importorskip("daqp")


def solve(program: ConeProgram, options: Options | None = None) -> Solution:
    solver = DaqpSolver()
    return solver.solve(solver.init(program.structure), program, options or Options())


def stored(matrices: Array) -> tuple[Pattern, Array]:
    """Common pattern of the nonzeros of matrices (B, rows, columns), and the values."""
    cols, rows = np.nonzero(np.any(matrices != 0, axis=0).T)
    return Pattern((matrices.shape[1], matrices.shape[2]), rows, cols), matrices[:, rows, cols]


def posed(P: Array, q: Array, A: Array, b: Array, zero: int) -> ConeProgram:
    """Programs from dense data (B, ...), of which only nonzeros are stored."""
    (P_pattern, P_values), (A_pattern, A_values) = stored(P), stored(A)
    structure = Structure(P_pattern, A_pattern, Cones(zero=zero, nonnegative=A.shape[1] - zero))
    return ConeProgram(structure, P_values, q, np.zeros(len(q)), A_values, b)


def boxed(coefficients: Array, limits: Array, wish: float) -> ConeProgram:
    """Minimise (x - wish)^2 / 2 subject to rows coefficients * x <= limits; every coefficient is stored."""
    m = len(coefficients)
    structure = dense_structure(1, Cones(nonnegative=m), quadratic=True)
    structure = Structure(Pattern((1, 1), np.zeros(1, np.int64), np.zeros(1, np.int64)), structure.A, structure.cones)
    q = np.array([[-wish]])
    structure = replace(structure, A=Pattern((m, 1), np.arange(m), np.zeros(m, np.int64)))
    return ConeProgram(structure, np.ones((1, 1)), q, np.zeros(1), coefficients[None], limits[None])


@pytest.mark.parametrize(
    ("wish", "x", "y"),
    [
        (5.0, 2.0, [0.0, 1.5, 0.0, 0.0]),  # 2 x <= 4 binds, x <= 3 does not
        (-5.0, -1.0, [0.0, 0.0, 8.0, 0.0]),  # -x / 2 <= 1 / 2
        (0.5, 0.5, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_rows_with_one_entry_are_bounds(wish: float, x: float, y: list[float]) -> None:
    found = solve(boxed(np.array([1.0, 2.0, -0.5, -1.0]), np.array([3.0, 4.0, 0.5, 7.0]), wish))
    assert found.status == (Status.OPTIMAL,)
    np.testing.assert_allclose(found.x, [[x]], atol=1e-14)
    np.testing.assert_allclose(found.y, [y], atol=1e-14)
    np.testing.assert_array_equal(found.s[found.y > 0], 0.0)


def test_coinciding_active_bounds_share_the_multiplier() -> None:
    found = solve(boxed(np.array([2.0, 1.0, -1.0]), np.array([4.0, 2.0, 5.0]), wish=5.0))
    np.testing.assert_allclose(found.y, [[0.75, 1.5, 0.0]], atol=1e-14)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_explicit_zeros_are_not_bounds(zero: float) -> None:
    assert solve(boxed(np.array([zero, 1.0]), np.array([0.0, 2.0]), wish=1.0)).x.tolist() == [[1.0]]
    assert solve(boxed(np.array([zero, 1.0]), np.array([-1.0, 2.0]), wish=1.0)).status == (Status.INFEASIBLE,)


def test_fixed_variable() -> None:
    found = solve(boxed(np.array([1.0, -1.0]), np.array([2.0, -2.0]), wish=5.0))
    np.testing.assert_allclose(found.x, [[2.0]])
    np.testing.assert_allclose(found.y[:, 0] - found.y[:, 1], [3.0])
    assert np.all(found.y >= 0)


def test_sparse_data_with_bounds_on_some_variables() -> None:
    """The adapter reorders the variables, bounded ones first, without an effect on the result."""
    rng = np.random.default_rng(0)
    batch, n = 20, 12
    root = rng.standard_normal((batch, n, n)) * (rng.random((n, n)) < 0.3)
    P = root @ root.swapaxes(1, 2) + np.eye(n)
    A = np.zeros((batch, 14, n))
    A[:, :6] = rng.standard_normal((batch, 6, n)) * (rng.random((6, n)) < 0.5)
    A[:, :6, 0] = 1.0
    A[:, np.arange(6, 14), [3, 11, 3, 7, 5, 11, 1, 3]] = rng.choice([-2.0, -1.0, 1.0, 3.0], (batch, 8))
    A = A[:, [0, 1, 6, 7, 2, 8, 9, 3, 10, 4, 11, 5, 12, 13]]
    b = np.einsum("bij,bj->bi", A, rng.standard_normal((batch, n)))
    b[:, 2:] += rng.random((batch, 12))
    program = posed(P, 5.0 * rng.standard_normal((batch, n)), A, b, zero=2)
    found = solve(program)
    assert found.status == (Status.OPTIMAL,) * batch
    assert found.residuals(program).worst.max() < 1e-12
    assert 2 * batch < np.sum(found.y[:, 2:] > 0)  # many bounds are active
    clarabel = ClarabelSolver()
    reference = clarabel.solve(clarabel.init(program.structure), program, Options(tol=1e-10))
    np.testing.assert_allclose(found.x, reference.x, atol=1e-5)


@pytest.mark.parametrize(("rows", "objective"), [(1e-8, 1.0), (1e-13, 1.0), (1e8, 1.0), (1.0, 1e13), (1.0, 1e-9)])
def test_results_do_not_depend_on_scaling(rows: float, objective: float) -> None:
    """Without scaling daqp would ignore rows of 1e-8, and all rows with an objective of 1e13."""
    case = known(Cones(zero=3, nonnegative=9), quadratic=True, batch=8)
    program = case.program
    scaled = replace(program, P=objective * program.P, q=objective * program.q, A=rows * program.A, b=rows * program.b)
    found = solve(scaled)
    np.testing.assert_allclose(found.x, case.solution.x, atol=1e-10)
    np.testing.assert_allclose(found.y * rows / objective, case.solution.y, atol=1e-10)
    np.testing.assert_allclose(found.s / rows, case.solution.s, atol=1e-10)


def dense_qps(n: int, batch: int, *, rank: int | None = None) -> ConeProgram:
    """n inequalities, n / 5 equalities, feasible."""
    rng = np.random.default_rng(n)
    zero = n // 5
    root = rng.standard_normal((batch, n, rank or n))
    P = root @ root.swapaxes(1, 2) / n + (0.1 * np.eye(n) if rank is None else 0.0)
    A = rng.standard_normal((batch, n + zero, n))
    b = np.einsum("bij,bj->bi", A, rng.standard_normal((batch, n)))
    b[:, zero:] += rng.random((batch, n))
    y = rng.random((batch, n + zero))
    return posed(P, rng.standard_normal((batch, n)) - np.einsum("bij,bi->bj", A, y), A, b, zero)


def test_solutions_are_accurate_to_machine_precision() -> None:
    program = dense_qps(50, 16)
    found = solve(program)
    assert found.status == (Status.OPTIMAL,) * 16
    assert found.residuals(program).worst.max() < 1e-12


def test_singular_quadratic_terms() -> None:
    program = dense_qps(40, 16, rank=20)
    found = solve(program)
    assert found.status == (Status.OPTIMAL,) * 16
    assert found.residuals(program).worst.max() < 1e-8


def test_elements_without_a_solution_are_nan() -> None:
    """daqp returns uninitialised memory for such elements."""
    program = dense_qps(10, 3)
    A, b = program.structure.A.dense(program.A), program.b.copy()
    A[1, 3], b[1, 3] = -A[1, 2], -b[1, 2] - 1.0
    before, found = solve(program), solve(replace(program, A=A.swapaxes(1, 2).reshape(3, -1), b=b))
    assert found.status == (Status.OPTIMAL, Status.INFEASIBLE, Status.OPTIMAL)
    for point, others in ((found.x, before.x), (found.y, before.y), (found.s, before.s)):
        assert np.all(np.isnan(point[1]))
        np.testing.assert_array_equal(point[[0, 2]], others[[0, 2]])


def test_redundant_equalities_are_not_infeasible() -> None:
    """daqp calls them inconsistent because of the rounding of a large b."""
    rng = np.random.default_rng(0)
    batch, n = 32, 12
    E = rng.standard_normal((batch, 6, n))
    A = np.concatenate([E, rng.standard_normal((batch, 8, 6)) @ E], axis=1)
    b = 1e7 * np.einsum("bij,bj->bi", A, rng.standard_normal((batch, n)))
    program = posed(np.tile(np.eye(n), (batch, 1, 1)), rng.standard_normal((batch, n)), A, b, zero=14)
    found = solve(program)
    assert found.status == (Status.OPTIMAL,) * batch
    assert found.residuals(program).primal.max() < 1e-12
    wrong = replace(program, b=b + 1e-3 * rng.standard_normal(b.shape) * np.abs(b).max())
    assert solve(wrong).status == (Status.INFEASIBLE,) * batch


def crowded() -> ConeProgram:
    """Ten inequalities in the plane whose only feasible point is their intersection, and an ill-conditioned P."""
    rng = np.random.default_rng(0)
    batch = 64
    flat = np.array([[1.0, -0.77], [-0.77, 0.5929 + 1e-7]])
    A = rng.standard_normal((batch, 10, 2))
    b = np.einsum("bij,bj->bi", A, rng.standard_normal((batch, 2)))
    return posed(np.tile(flat, (batch, 1, 1)), 50.0 * rng.standard_normal((batch, 2)), A, b, zero=0)


def test_reported_infeasibility_is_checked_by_a_regularised_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    program = crowded()
    found = solve(program)
    assert found.status == (Status.OPTIMAL,) * 64
    assert found.residuals(program).worst.max() < 1e-8
    monkeypatch.setattr(daqp_, "RECHECKED_FLAGS", ())
    assert Status.INFEASIBLE in solve(program).status


def test_results_do_not_depend_on_blocks_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    program = dense_qps(20, 30)
    whole = solve(program)
    monkeypatch.setattr(daqp_, "INLINE_WORK", 0)
    monkeypatch.setattr(daqp_, "BLOCK_ENTRIES", 2 * 20 * 44)
    parts = solve(program)
    for name in ("x", "y", "s", "iterations"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    assert parts.status == whole.status
    assert parts.seconds.shape == (30,)


def test_results_do_not_depend_on_the_memory_layout() -> None:
    """daqp assumes contiguous arrays."""
    program = dense_qps(10, 4)
    columns: dict[str, Any] = {name: np.asfortranarray(getattr(program, name)) for name in ("P", "q", "A", "b")}
    np.testing.assert_array_equal(solve(replace(program, **columns)).x, solve(program).x)


@pytest.mark.parametrize("raw", [{"iter_limit": "many"}, {"primal_tol": None}, {"iter_limit": 2**40}])
def test_invalid_values_of_raw_options_raise(raw: dict[str, object]) -> None:
    with pytest.raises(SolverError, match="daqp"):
        solve(dense_qps(10, 2), Options(solver_options={"daqp": raw}))


def test_raw_options_override_the_portable_ones() -> None:
    found = solve(dense_qps(10, 2), Options(max_iter=500, solver_options={"daqp": {"iter_limit": 2}}))
    assert found.status == (Status.ITERATION_LIMIT,) * 2
    assert found.iterations.tolist() == [2, 2]


def test_results_without_compiled_kernels_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = (dense_qps(10, 4), boxed(np.array([2.0, 1.0, -1.0]), np.array([4.0, 2.0, 5.0]), wish=5.0))
    compiled = [solve(program) for program in programs]
    monkeypatch.setattr(kernel_cache, "ready", lambda: False)
    for program, before in zip(programs, compiled, strict=True):
        found = solve(program)
        for name in ("x", "y", "s"):
            np.testing.assert_allclose(getattr(found, name), getattr(before, name), atol=1e-12)
