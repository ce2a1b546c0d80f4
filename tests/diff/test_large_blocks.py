"""Large semidefinite blocks: derivatives match the dense Newton matrix, without dense block matrices."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from convexlayer.cones import KroneckerBasis, product_cone, symmetric_vectors
from convexlayer.cones.product import KRONECKER_FROM
from convexlayer.diff import KKTSystem, SolutionTangent, exact_differentiator, matrix_free, polish
from convexlayer.linalg import MatrixFree
from convexlayer.program import Array, ConeProgram, Cones, Pattern, Structure
from convexlayer.testing.programs import Known, constructed

from .programs import (
    assemble,
    at,
    data_tangents,
    dense_derivative,
    flat_cotangent,
    flat_data,
    flat_point,
    newton_matrix,
    ones,
    point_cotangents,
    strict_point,
)

ORDER = KRONECKER_FROM
SIZE = ORDER * (ORDER + 1) // 2


def few_variables(rng: np.random.Generator) -> Known:
    """Linear matrix inequalities in 50 variables, with multipliers of rank 3, and other cones."""
    cones, n = Cones(zero=2, nonnegative=6, second_order=(3, 9), psd=(3, ORDER, ORDER), exponential=2), 50
    F = rng.normal(size=(n, n))
    A = rng.normal(size=(cones.m, n)) * (rng.uniform(size=(cones.m, n)) < 0.5)
    w = strict_point(rng, cones)[0]
    for group in product_cone(cones).groups:
        if group.kronecker:
            w[group.rows] = np.concatenate([point_of_rank(rng, 3) for _ in range(group.blocks)])
    return assemble(F @ F.T / n, A, rng.normal(size=n), w, cones)


def point_of_rank(rng: np.random.Generator, rank: int) -> Array:
    """Draw w whose projection has this rank."""
    V = np.linalg.qr(rng.normal(size=(ORDER, ORDER)))[0]
    eigenvalues = rng.uniform(0.3, 2.0, ORDER) * np.where(np.arange(ORDER) < rank, 1.0, -1.0)
    return np.asarray(symmetric_vectors(ORDER).vector((V * eigenvalues) @ V.T))


def entries(rng: np.random.Generator) -> Known:
    """Off-diagonal entries of the matrix are variables, with several scales; a few other rows."""
    cones = Cones(zero=3, nonnegative=4, psd=(ORDER,))
    diagonal = np.cumsum([0, *range(ORDER, 1, -1)])
    entry = np.setdiff1d(np.arange(SIZE), diagonal)
    n = len(entry) + 1
    coefficient = np.where(np.arange(len(entry)) % 2, -1.0, -3.0)
    A = np.zeros((cones.m, n))
    A[7 + entry, np.arange(len(entry))] = coefficient
    A[7 + diagonal, -1] = -1.0
    A[:7] = rng.normal(size=(7, n)) * (rng.uniform(size=(7, n)) < 0.1)
    P = np.diag(np.append(0.5 * coefficient**2, 1.0))
    return assemble(P, A, rng.normal(size=n), strict_point(rng, cones)[0], cones)


def weighted_entries(rng: np.random.Generator) -> Known:
    """Entry variables with different curvatures, so that only the whole block can be eliminated."""
    cones = Cones(psd=(ORDER,))
    A = -np.eye(SIZE)
    return assemble(np.diag(rng.uniform(0.1, 1.0, SIZE)), A, rng.normal(size=SIZE), strict_point(rng, cones)[0], cones)


DRAWS: dict[str, Callable[[np.random.Generator], Known]] = {
    "few variables": few_variables,
    "entries": entries,
    "weighted entries": weighted_entries,
}


@pytest.fixture(params=["elimination", "krylov", "krylov, then elimination"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force one method of solution, regardless of its cost."""
    monkeypatch.setattr(matrix_free, "ELIMINATE_FIRST_COST", np.inf if request.param == "elimination" else -1.0)
    if request.param == "krylov":
        monkeypatch.setattr(matrix_free, "MAX_SCHUR_ORDER", -1)
    if request.param == "krylov, then elimination":
        monkeypatch.setattr(matrix_free, "MAX_MINRES_ITERATIONS", 3)
    return str(request.param)


def newton_jvp(drawn: Known, tangent: ConeProgram) -> SolutionTangent:
    """The jvp by the dense derivative of the optimality conditions in (x, w)."""
    structure, solution = drawn.program.structure, drawn.solution
    r1 = structure.P.matvec(tangent.P, solution.x) + tangent.q + structure.A.rmatvec(tangent.A, solution.y)
    r2 = structure.A.matvec(tangent.A, solution.x) - tangent.b
    moved = -np.linalg.solve(newton_matrix(drawn.program, drawn.w)[0], np.concatenate([r1, r2], axis=1).T).T
    dx, dw = moved[:, : structure.n], moved[:, structure.n :]
    dy = dw @ dense_derivative(structure.cones, drawn.w)[0]
    return SolutionTangent(dx, dy, dy - dw)


@pytest.mark.parametrize("name", DRAWS)
def test_derivatives_match_the_newton_matrix(name: str, way: str) -> None:
    rng = np.random.default_rng(0)
    drawn = DRAWS[name](rng)
    structure = drawn.program.structure
    tangent, cotangent = data_tangents(rng, structure, 1), point_cotangents(rng, structure, 1)
    forward, backward = (drawn.repeat(len(part)) for part in (tangent.q, cotangent.x))
    system = KKTSystem(structure)
    moved, report = exact_differentiator(system, forward.program, forward.solution).jvp(tangent)
    assert report.trusted
    assert np.all(report.condition < 1e6)
    expected = flat_point(newton_jvp(drawn, tangent))
    np.testing.assert_allclose(flat_point(moved), expected, atol=1e-9 * np.max(np.abs(expected)))
    pulled, report = exact_differentiator(system, backward.program, backward.solution).vjp(cotangent)
    assert report.trusted
    left = flat_point(cotangent) @ expected.T
    right = flat_cotangent(pulled, structure) @ flat_data(tangent).T
    np.testing.assert_allclose(right, left, atol=1e-8 * np.max(np.abs(left)))


@pytest.mark.parametrize("name", ["few variables", "entries"])
def test_cheap_eliminations_precede_minres(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems such as the maximum cut need no iterations."""
    monkeypatch.setattr("convexlayer.linalg.matrix_free.minres", None)
    drawn = DRAWS[name](np.random.default_rng(0))
    assert at(drawn).vjp(ones(drawn))[1].trusted


def test_elements_of_a_batch_equal_single_elements() -> None:
    """The elements have different active sets and scales, and one has nonfinite data."""
    draws = [entries(np.random.default_rng(seed)) for seed in range(3)]
    first = draws[0].program.structure
    values = [d.program.structure.A.dense(d.program.A)[0] for d in draws]
    pattern = np.any([v != 0 for v in values], axis=0)
    cols, rows = np.nonzero(pattern.T)
    A = replace(first.A, rows=rows, cols=cols)
    structure = replace(first, A=A)
    singles = [
        Known(replace(d.program, structure=structure, A=v[rows, cols][None]), d.solution)
        for d, v in zip(draws, values, strict=True)
    ]
    program = ConeProgram(
        structure,
        *(np.concatenate([getattr(s.program, part) for s in singles]) for part in ("P", "q", "r", "A", "b")),
    )
    whole = replace(
        singles[0].solution,
        **{part: np.concatenate([getattr(s.solution, part) for s in singles]) for part in "xys"},  # type: ignore[arg-type]
        status=singles[0].solution.status * 3,
    )
    together = Known(program, whole)
    system = KKTSystem(structure)
    gradient, report = exact_differentiator(system, program, whole).vjp(ones(together))
    assert report.trusted
    for i, single in enumerate(singles):
        alone, _ = exact_differentiator(system, single.program, single.solution).vjp(ones(single))
        expected = flat_cotangent(alone, program.structure)[0]
        found = flat_cotangent(gradient, program.structure)[i]
        np.testing.assert_allclose(found, expected, atol=1e-10 * np.max(np.abs(expected)))
    program.P[1, 0] = np.nan
    gradient, report = exact_differentiator(system, program, whole).vjp(ones(together))
    assert report.status == ("ok", "failed", "ok")
    assert np.all(np.isfinite(flat_cotangent(gradient, program.structure)[[0, 2]]))


def test_nonunique_solutions_are_reported(way: str) -> None:
    """Two variables with equal columns and no curvature: their difference is free."""
    rng = np.random.default_rng(0)
    drawn = few_variables(rng)
    structure = drawn.program.structure
    A, P = structure.A.dense(drawn.program.A)[0], structure.P.dense(drawn.program.P)[0]
    A[:, 1] = A[:, 0]
    P[:2] = P[:, :2] = 0.0
    drawn = assemble(P, A, drawn.solution.x[0], drawn.w[0], structure.cones)
    differentiator = at(drawn)
    zero = ones(drawn, 0.0, 0.0, 0.0)
    seen, unseen = zero.x.copy(), zero.x.copy()
    seen[0, :2], unseen[0, :2] = (1.0, -1.0), (1.0, 1.0)
    report = differentiator.vjp(replace(zero, x=seen))[1]
    assert report.status == ("degenerate",)
    assert not report.consistent[0]
    gradient, report = differentiator.vjp(replace(zero, x=unseen))
    assert report.consistent[0]
    np.testing.assert_allclose(gradient.q[0, 0], gradient.q[0, 1], atol=1e-8 * np.max(np.abs(gradient.q)))


def test_unconverged_minres_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without elimination and with too few iterations, no report of vjp, jvp or objective is ok."""
    monkeypatch.setattr(matrix_free, "ELIMINATE_FIRST_COST", -1.0)
    monkeypatch.setattr(matrix_free, "MAX_SCHUR_ORDER", -1)
    monkeypatch.setattr(matrix_free, "MAX_MINRES_ITERATIONS", 5)
    rng = np.random.default_rng(0)
    drawn = few_variables(rng)
    assert at(drawn).vjp(ones(drawn))[1].status == ("degenerate",)
    tangent = data_tangents(rng, drawn.program.structure, 1)
    statuses = at(drawn.repeat(len(tangent.q))).jvp(tangent)[1].status
    assert set(statuses) == {"degenerate"}
    assert at(drawn).objective_report(observe=lambda tangent: tangent.x).status == ("degenerate",)


def test_polish_from_1e5_to_rounding(way: str) -> None:
    drawn = entries(np.random.default_rng(1))
    noise = np.random.default_rng(2)
    start = replace(
        drawn.solution,
        **{part: getattr(drawn.solution, part) + 1e-5 * noise.normal(size=getattr(drawn.solution, part).shape)
           for part in "xys"},
    )  # fmt: skip
    better = polish(KKTSystem(drawn.program.structure), drawn.program, start)
    assert start.residuals(drawn.program).worst[0] > 1e-7
    assert better.residuals(drawn.program).worst[0] < 1e-11


def test_a_block_of_order_100_needs_no_dense_matrix() -> None:
    """A nearest correlation matrix: stored entries, eliminated unknowns, and peak memory."""
    order = 100
    size = order * (order + 1) // 2
    diagonal = np.cumsum([0, *range(order, 1, -1)])
    entry = np.setdiff1d(np.arange(size), diagonal)
    rng = np.random.default_rng(0)
    w = rng.normal(size=size)
    drawn = _sparse_entries(entry, size, w, rng)
    tracemalloc.start()
    system = KKTSystem(drawn.program.structure)
    differentiator = exact_differentiator(system, drawn.program, drawn.solution)
    _, report = differentiator.vjp(ones(drawn))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.trusted
    assert isinstance(system.cone.derivative(drawn.w).curved[0], KroneckerBasis)
    assert system.pattern.nnz <= 2 * (len(entry) + size)
    assert peak < 0.5 * 8 * size**2  # bytes of one dense matrix


def _sparse_entries(entry: NDArray[np.int64], size: int, w: Array, rng: np.random.Generator) -> Known:
    """Minimise |x - c|^2 / 2 over unit-diagonal semidefinite matrices with entries x."""
    n, cones = len(entry), Cones(psd=(int(np.sqrt(2 * size)),))
    columns = np.arange(n)
    structure = Structure(Pattern((n, n), columns, columns), Pattern((size, n), entry, columns), cones)
    return constructed(structure, np.ones((1, n)), -np.ones((1, n)), rng.normal(size=(1, n)), w[None])


def test_factorisations_are_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is factorised before the first solve."""
    asked: list[int] = []
    inner = MatrixFree.refine

    def refine(self: MatrixFree, rhs: Array, steps: int) -> tuple[Array, float]:
        asked.append(steps)
        return inner(self, rhs, steps)

    monkeypatch.setattr(MatrixFree, "refine", refine)
    drawn = few_variables(np.random.default_rng(0))
    differentiator = at(drawn)
    assert not asked
    differentiator.vjp(ones(drawn))
    assert set(asked) == {12}
