"""Certificates of infeasibility and unboundedness, and rays that are not certificates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convexlayer.program import ConeProgram, Cones
from convexlayer.rays import block_of_rows, has_ray, infeasibility_ray, refuted_claims, unboundedness_ray
from convexlayer.solution import Solution
from convexlayer.solvers import Options
from convexlayer.solvers.certificate_search import infeasibility_candidates, unboundedness_candidates
from convexlayer.solvers.registry import solver_for
from convexlayer.status import Status
from convexlayer.testing.programs import dense_program
from tests.rays import KINDS, infeasible, solvable, unbounded

EVERYWHERE = pytest.mark.parametrize("kind", KINDS)
SPREADS = pytest.mark.parametrize("spread", [0.0, 3.0], ids=["even", "badly_scaled"])


def linear(A: list[list[float]], b: list[float], q: list[float] | None = None, *, zero: int = 0) -> ConeProgram:
    """Build a linear program whose first ``zero`` rows are equalities."""
    matrix = np.array(A, dtype=float)
    n = matrix.shape[1]
    cones = Cones(zero=zero, nonnegative=len(matrix) - zero)
    objective = np.zeros(n) if q is None else np.array(q, dtype=float)
    return dense_program(cones, np.zeros((1, n, n)), objective[None], matrix[None], np.array([b], dtype=float))


def refuted_claim(program: ConeProgram, *, x: list[float] | None = None, y: list[float] | None = None) -> bool:
    """Whether a claim with this ray is refuted: infeasibility for y, unboundedness for x."""
    given = np.array([True])
    point = np.full((1, program.structure.n), np.nan) if x is None else np.array([x])
    dual = np.full((1, program.structure.m), np.nan) if y is None else np.array([y])
    infeasible_claim = given if y is not None else ~given
    return bool(refuted_claims(program, point, dual, infeasible_claim, ~infeasible_claim)[0])


def solve(name: str, program: ConeProgram) -> Solution:
    solver, _ = solver_for(name, program.structure)
    return solver.solve(solver.init(program.structure), program, Options())


# --- rays of solvers ----------------------------------------------------------------------------------------


@EVERYWHERE
@SPREADS
@pytest.mark.parametrize("name", ["batched", "clarabel", "scs"])
def test_true_claims_of_infeasibility_stand(name: str, kind: str, spread: float) -> None:
    program = infeasible(np.random.default_rng(0), KINDS[kind], spread=spread)
    solution = solve(name, program)
    claims = np.array([word is Status.INFEASIBLE for word in solution.status])
    lost = refuted_claims(program, solution.x, solution.y, claims, ~claims & False)
    # a few rays on the boundary of power cones cannot be refined; the search finds them
    assert np.count_nonzero(lost) <= (1 if kind == "power" else 0)
    assert np.count_nonzero(claims) >= 7


@EVERYWHERE
@SPREADS
@pytest.mark.parametrize("name", ["batched", "clarabel", "scs"])
def test_true_claims_of_unboundedness_stand(name: str, kind: str, spread: float) -> None:
    program = unbounded(np.random.default_rng(0), KINDS[kind], n=20 if kind == "product" else 8, spread=spread)
    solution = solve(name, program)
    claims = np.array([word is Status.UNBOUNDED for word in solution.status])
    lost = refuted_claims(program, solution.x, solution.y, ~claims & False, claims)
    assert np.count_nonzero(lost) <= (3 if kind in ("psd", "power") else 0)


# --- certificates and false rays ----------------------------------------------------------------------------


def test_contradicting_bounds() -> None:
    """x >= 1 and x <= 0, also in other units of rows and columns."""
    for row, other, column in ((1.0, 1.0, 1.0), (1e6, 1e-6, 1e3), (1e-5, 1e5, 1e-8)):
        program = linear([[-row * column], [other * column]], [-row, 0.0])
        assert not refuted_claim(program, y=[1.0 / row, 1.0 / other])
        assert not refuted_claim(program, y=[1.0 / row, 0.999 / other])  # after refinement
        ray = infeasibility_ray(program, np.array([1.0 / row, 0.9 / other]))
        assert ray is not None
        np.testing.assert_allclose(ray[0] * row, ray[1] * other)


def test_touching_bounds_are_not_infeasible() -> None:
    """x >= 1 and x <= 1 + gap is feasible, even if a solver claims the opposite."""
    for gap in (0.0, 1e-12, 1e-3):
        program = linear([[-1.0], [1.0]], [-1.0, 1.0 + gap])
        for y in ([1.0, 1.0], [1.0, 1.0 - 1e-9], [1.0, 0.9], [1.0, 0.0]):
            assert refuted_claim(program, y=y)


def test_a_large_solution_is_not_called_infeasible() -> None:
    """slope * x >= 1 has the solution 1 / slope; by norms over the whole program, y = 1 would be a ray."""
    for slope in (1e-3, 1e-6, 1e-12):
        program = linear([[-slope, 0.0], [0.0, 1e3]], [-1.0, 1e3])
        assert refuted_claim(program, y=[1.0, 0.0])
        # x1 - x2 >= 1 and x2 - (1 - slope) x1 >= 1: at x1 = 2 / slope
        nearly = linear([[-1.0, 1.0], [1.0 - slope, -1.0]], [-1.0, -1.0])
        assert refuted_claim(nearly, y=[1.0, 1.0]) == (slope > 1e-7)


def test_signs_and_cones() -> None:
    program = linear([[-1.0], [1.0]], [-1.0, 0.0])
    assert refuted_claim(program, y=[-1.0, -1.0])
    assert not refuted_claim(linear([[-1.0], [1.0]], [-1.0, 0.0], zero=2), y=[1.0, 1.0])
    assert not refuted_claim(linear([[-1.0], [1.0]], [1.0, 0.0], zero=2), y=[-1.0, -1.0])
    feasible = linear([[-1.0], [1.0]], [0.0, 1.0])
    assert refuted_claim(feasible, y=[1.0, 1.0])


def test_unbounded_rays() -> None:
    """Minimise x2 - x1 over x1 >= 0, 0 <= x2 <= 1, also in units of 10^6."""
    for unit in (1.0, 1e6, 1e-6):
        program = linear([[-unit, 0.0], [0.0, -1.0], [0.0, 1.0]], [0.0, 0.0, 1.0], [-unit, 1.0])
        assert not refuted_claim(program, x=[1.0 / unit, 0.0])
        assert not refuted_claim(program, x=[1.0 / unit, -1e-9])
        assert refuted_claim(program, x=[-1.0 / unit, 0.0])
        assert refuted_claim(program, x=[0.0, -1.0])
        closed = linear([[-unit, 0.0], [unit, 1e-3]], [0.0, 1.0], [-unit, 0.0])
        assert refuted_claim(closed, x=[1.0 / unit, 0.0])


def test_a_small_curvature_is_not_called_unbounded() -> None:
    """Minimise curvature x^2 / 2 - x: the solution is 1 / curvature."""
    for curvature in (1e-2, 1e-9):
        bounded = dense_program(
            Cones(nonnegative=1),
            np.diag([curvature, 1.0])[None],
            np.array([[-1.0, 0.0]]),
            np.zeros((1, 1, 2)),
            np.ones((1, 1)),
        )
        assert refuted_claim(bounded, x=[1.0, 0.0])
    flat = replace(bounded, P=np.diag([0.0, 1.0])[None][:, bounded.structure.P.rows, bounded.structure.P.cols])
    assert not refuted_claim(flat, x=[1.0, 0.0])


def test_a_violated_zero_row_is_a_certificate() -> None:
    """0 >= 1 is a certificate, and noise of other rows in a solver's ray is ignored."""
    program = linear([[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]], [-1.0, 0.0, 0.0])
    ray = infeasibility_ray(program, np.array([1.0, 1e-9, 1e-8]))
    np.testing.assert_array_equal(ray, [1.0, 0.0, 0.0])
    column = linear([[1.0, 0.0]], [1.0], [0.0, -1.0])
    np.testing.assert_allclose(unboundedness_ray(column, np.array([1e-9, 1.0])), [0.0, 1.0], atol=1e-15)


def test_a_missing_ray_is_not_refuted() -> None:
    program = linear([[-1.0], [1.0]], [-1.0, 0.0])
    for y in ([np.nan, np.nan], [0.0, 0.0], [np.inf, 1.0]):
        assert not refuted_claims(program, np.zeros((1, 1)), np.array([y]), np.array([True]), np.array([False]))[0]
        assert infeasibility_ray(program, np.array(y)) is None
    assert has_ray(np.array([[0.0, 0.0], [np.nan, 1.0], [0.0, 1.0]])).tolist() == [False, False, True]


def test_large_rays_are_refined_without_dense_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    program = infeasible(rng, KINDS["linear"])
    near = infeasibility_candidates(program) * (1.0 + 1e-5 * rng.standard_normal((8, program.structure.m)))
    monkeypatch.setattr("convexlayer.rays.MAX_DENSE_ENTRIES", 0)
    assert all(infeasibility_ray(program.select([i]), near[i]) is not None for i in range(8))


# --- the search ---------------------------------------------------------------------------------------------


@EVERYWHERE
@SPREADS
@pytest.mark.parametrize("seed", [0, 1])
def test_the_search_finds_every_ray(kind: str, spread: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    closed, open_ = (make(rng, KINDS[kind], n=n, spread=spread) for make, n in ((infeasible, 8), (unbounded, 20)))
    rays = infeasibility_candidates(closed), unboundedness_candidates(open_)
    assert all(infeasibility_ray(closed.select([i]), ray) is not None for i, ray in enumerate(rays[0]))
    assert all(unboundedness_ray(open_.select([i]), ray) is not None for i, ray in enumerate(rays[1]))


@EVERYWHERE
@SPREADS
@pytest.mark.parametrize(("tight", "rank"), [(False, 0), (True, 0), (True, 3)])
def test_the_search_finds_no_ray_of_solvable_programs(kind: str, spread: float, tight: bool, rank: int) -> None:
    """This includes programs whose feasible set is a point, and dependent rows."""
    program = solvable(np.random.default_rng(1), KINDS[kind], spread=spread, tight=tight, rank=rank)
    rays = infeasibility_candidates(program), unboundedness_candidates(program)
    for i in range(program.batch):
        assert infeasibility_ray(program.select([i]), rays[0][i]) is None
        assert unboundedness_ray(program.select([i]), rays[1][i]) is None


def test_powells_problem_is_barely_feasible() -> None:
    """x_{k+1} - x_k >= (-1)^k k - 1/2, x_1 - x_n >= n - 1/2: the sum of all rows is 0 >= 0 (Powell 1990)."""
    for n in (10, 100, 400):
        k = np.arange(1, n)
        A = np.eye(n, k=0) - np.eye(n, k=1)
        A[-1, 0] = -1.0
        b = -np.append((-1.0) ** k * k - 0.5, n - 0.5)
        program = linear(A.tolist(), b.tolist(), [0.0] * n)
        rng = np.random.default_rng(n)
        for noise in (0.0, 1e-9, 1e-7, 1e-4):
            assert refuted_claim(program, y=(1.0 + noise * rng.standard_normal(n)).tolist())
        candidate = infeasibility_candidates(program)[0]
        assert infeasibility_ray(program, candidate) is None


def test_blocks_of_rows() -> None:
    cones = Cones(zero=1, nonnegative=2, second_order=(2,), psd=(2,), exponential=1, power=(0.5,))
    assert block_of_rows(cones).tolist() == [0, 1, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6]
    assert block_of_rows(Cones()).tolist() == []
