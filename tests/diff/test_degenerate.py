"""Derivatives that do not exist or are not unique: returned values and reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from convexlayer.diff import KKTSystem, SolutionCotangent, exact_differentiator
from convexlayer.linalg import AbstractBackend
from convexlayer.linalg.dense.batched import DenseBackend
from convexlayer.linalg.ldl.qdldl_ import SparseBackend
from convexlayer.program import Array, ConeProgram, Cones
from convexlayer.testing.programs import Known

from .programs import CONES, assemble, at, batch_of, draw, ones, strict_point

BACKENDS = {"dense": DenseBackend(), "sparse": SparseBackend()}
WEAK = {
    "nonnegative": (Cones(nonnegative=3), np.array([1.0, -1.0, 0.0])),
    "second_order": (Cones(second_order=(3,)), np.array([1.0, 0.6, 0.8])),
    "psd": (Cones(psd=(3,)), np.array([1.0, 0.0, 0.0, 0.0, 0.0, -1.0])),
    "exponential": (Cones(exponential=1), np.array([-1.0, 0.0, np.exp(-1.0)])),
    "power": (Cones(power=(0.3,)), np.array([0.3, 0.7, 1.0])),
}
"""A point w on the boundary of K* of each cone (the psd one between definite and indefinite)."""


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> AbstractBackend:
    return BACKENDS[request.param]


def duplicated_rows(rng: np.random.Generator) -> Known:
    """Two equal equality rows: the difference of the multipliers is free, x is unique."""
    A = rng.normal(size=(4, 6))
    A[1] = A[0]
    return assemble(np.eye(6), A, rng.normal(size=6), np.array([1.0, 2.0, -1.5, 1.0]), Cones(zero=3, nonnegative=1))


def free_variable(rng: np.random.Generator) -> Known:
    """The last variable has no cost and only inactive rows: like an epigraph variable, it is not unique."""
    A, P = rng.normal(size=(5, 4)), np.diag([1.0, 2.0, 3.0, 0.0])
    A[:3, 3] = 0.0
    w = np.array([1.0, -2.0, 1.5, -1.0, -2.0])
    return assemble(P, A, rng.normal(size=4), w, Cones(zero=2, nonnegative=3))


@pytest.mark.parametrize("name", WEAK)
def test_weakly_active_constraints_have_zero_margin(name: str) -> None:
    cones, w = WEAK[name]
    drawn = assemble(np.eye(9), np.random.default_rng(0).normal(size=(cones.m, 9)), np.ones(9), w, cones)
    _, report = at(drawn).vjp(ones(drawn))
    assert report.margin[0] <= 1e-9
    assert report.status == ("degenerate",)
    assert not report.trusted


@pytest.mark.parametrize("name", WEAK)
def test_strictly_active_constraints_have_a_positive_margin(name: str) -> None:
    rng, cones = np.random.default_rng(0), WEAK[name][0]
    w = strict_point(rng, cones)[0]
    drawn = assemble(np.eye(9), rng.normal(size=(cones.m, 9)), np.ones(9), w, cones)
    _, report = at(drawn).vjp(ones(drawn))
    assert report.margin[0] >= 1e-3
    assert report.status == ("ok",)


def test_a_degenerate_element_does_not_affect_the_others() -> None:
    rng, cones = np.random.default_rng(0), WEAK["nonnegative"][0]
    A = rng.normal(size=(3, 4))
    draws = [assemble(np.eye(4), A, np.ones(4), w, cones) for w in np.array([[1.0, -1.0, 0.5], [1.0, -1.0, 0.0]])]
    for order in ([0, 1], [1, 0]):
        batch = batch_of([draws[i] for i in order])
        gradient, report = at(batch).vjp(ones(batch))
        place = order.index(0)
        assert report.status[place] == "ok"
        assert report.status[1 - place] == "degenerate"
        np.testing.assert_allclose(gradient.q[place], at(draws[0]).vjp(ones(draws[0]))[0].q[0], atol=1e-13)


def test_visible_dependent_rows(backend: AbstractBackend) -> None:
    """With b as parameter, the returned derivative has minimum norm and splits the gradient equally."""
    drawn = duplicated_rows(np.random.default_rng(0))
    gradient, report = at(drawn, backend).vjp(ones(drawn, y=0.0, s=0.0))
    assert report.status == ("degenerate",)
    assert report.consistent[0]
    assert report.linear_residual[0] <= 1e-10
    np.testing.assert_allclose(gradient.b[0, 0], gradient.b[0, 1], atol=1e-10)
    single = without_row(drawn, 1)
    unique, other = at(single, backend).vjp(ones(single, y=0.0, s=0.0))
    assert other.status == ("ok",)
    np.testing.assert_allclose(gradient.q, unique.q, atol=1e-10)
    np.testing.assert_allclose(gradient.b[0, 0] + gradient.b[0, 1], unique.b[0, 0], atol=1e-10)


def test_invisible_dependent_rows(backend: AbstractBackend) -> None:
    """With q as parameter and x as output, the derivative does not depend on the choice of multipliers."""
    drawn = duplicated_rows(np.random.default_rng(0))
    differentiator = at(drawn, backend)
    gradient, backward = differentiator.vjp(ones(drawn, y=0.0, s=0.0), observe=lambda data: data.q)
    single = without_row(drawn, 1)
    np.testing.assert_allclose(gradient.q, at(single).vjp(ones(single, y=0.0, s=0.0))[0].q, atol=1e-9)
    assert backward.status == ("ok",)
    moved, forward = differentiator.jvp(only_q(drawn, np.ones(6)), observe=lambda moved: moved.x)
    np.testing.assert_allclose(moved.x, at(single).jvp(only_q(single, np.ones(6)))[0].x, atol=1e-9)
    assert forward.status == ("ok",)


def test_inconsistent_right_hand_sides(backend: AbstractBackend) -> None:
    """A change of one of two equal rows is inconsistent: the least-squares solution moves both by half."""
    drawn = duplicated_rows(np.random.default_rng(0))
    half, whole = (tangent_of_b(drawn, db) for db in ([0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]))
    moved, report = at(drawn, backend).jvp(whole)
    assert report.status == ("degenerate",)
    assert not report.consistent[0]
    assert report.linear_residual[0] > 1e-3
    np.testing.assert_allclose(moved.x, at(drawn, backend).jvp(half)[0].x, atol=1e-8)


def test_an_invisible_free_variable(backend: AbstractBackend) -> None:
    drawn = free_variable(np.random.default_rng(1))
    cotangent = ones(drawn, s=0.0)
    cotangent.x[0, 3] = 0.0
    gradient, backward = at(drawn, backend).vjp(
        cotangent, observe=lambda data: np.concatenate([data.b, data.q[:, :3]], axis=1)
    )
    moved, forward = at(drawn, backend).jvp(
        tangent_of_b(drawn, [1.0, 0.0, 0.5, 0.0, 0.0]),
        observe=lambda moved: np.concatenate([moved.x[:, :3], moved.y], axis=1),
    )
    assert backward.status == forward.status == ("ok",)
    fixed = without_variable(drawn, 3)
    cut = SolutionCotangent(cotangent.x[:, :3], cotangent.y, cotangent.s)
    np.testing.assert_allclose(gradient.b, at(fixed).vjp(cut)[0].b, atol=1e-9)
    np.testing.assert_allclose(
        moved.x[:, :3], at(fixed).jvp(tangent_of_b(fixed, [1.0, 0.0, 0.5, 0, 0]))[0].x, atol=1e-9
    )


def test_a_visible_free_variable(backend: AbstractBackend) -> None:
    drawn = free_variable(np.random.default_rng(1))
    gradient, report = at(drawn, backend).vjp(ones(drawn, y=0.0, s=0.0))
    assert report.status == ("degenerate",)
    assert not report.consistent[0]
    np.testing.assert_allclose(gradient.q[0, 3], 0.0, atol=1e-12)  # of minimum norm
    gradient, report = at(drawn, backend).vjp(ones(drawn, x=0.0, s=0.0))
    assert report.status == ("degenerate",)
    assert report.consistent[0]


def test_more_active_constraints_than_variables(backend: AbstractBackend) -> None:
    """A degenerate vertex with many dependent rows: consistent right-hand sides are solved to 1e-8."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        A = rng.normal(size=(12, 4)) @ np.diag([1.0, 10.0, 0.1, 1.0])
        w = rng.uniform(0.5, 1.5, size=12)
        drawn = assemble(np.zeros((4, 4)), A, rng.normal(size=4), w, Cones(zero=2, nonnegative=10))
        dx = rng.normal(size=4)
        tangent = tangent_of_b(drawn, A @ dx)  # moves x by dx and leaves all slacks at zero
        moved, report = at(drawn, backend).jvp(tangent)
        assert report.status == ("degenerate",)
        assert report.consistent[0]
        np.testing.assert_allclose(moved.x[0], dx, atol=1e-8)
        np.testing.assert_allclose(moved.y, 0.0, atol=1e-8)


def test_consistent_right_hand_sides_of_a_large_singular_system() -> None:
    """The system is too large for an eigendecomposition: the refined solution is kept."""
    rng, n, m = np.random.default_rng(0), 800, 500
    A = np.where(rng.uniform(size=(m, n)) < 4.0 / n, rng.normal(size=(m, n)), 0.0) + np.eye(m, n)
    A[m // 2 :] = A[: m - m // 2]
    drawn = assemble(np.eye(n), A, rng.normal(size=n), rng.normal(size=m), Cones(zero=m))
    db = A @ rng.normal(size=n)
    moved, report = at(drawn).jvp(tangent_of_b(drawn, db))
    assert report.status == ("degenerate",)
    assert report.consistent[0]
    np.testing.assert_allclose(A @ moved.x[0], db, atol=1e-8)


def test_badly_scaled_rows_are_not_degenerate(backend: AbstractBackend) -> None:
    """Rows in other units have multipliers in other units, and the same derivative."""
    rng = np.random.default_rng(0)
    drawn = draw(rng, CONES["nonnegative"], quadratic=True)
    assert drawn is not None
    units = np.geomspace(1e-6, 1e6, drawn.program.structure.m)
    A, P = dense(drawn)
    w = np.where(drawn.w[0] > 0, drawn.w[0] / units, drawn.w[0] * units)
    scaled = assemble(P, units[:, None] * A, drawn.solution.x[0], w, drawn.program.structure.cones)
    plain = assemble(P, A, drawn.solution.x[0], drawn.w[0], drawn.program.structure.cones)
    gradient, report = at(scaled, backend).vjp(ones(scaled, y=0.0, s=0.0))
    expected, _ = at(plain, backend).vjp(ones(plain, y=0.0, s=0.0))
    assert report.status == ("ok",)
    np.testing.assert_allclose(gradient.q, expected.q, atol=1e-9)
    np.testing.assert_allclose(gradient.b * units, expected.b, atol=1e-9)


@pytest.mark.parametrize("name", WEAK)
def test_the_optimal_value_is_smooth_at_weakly_active_constraints(name: str) -> None:
    """The gradient consists of x and y, so jumps of D do not matter."""
    cones, w = WEAK[name]
    drawn = assemble(np.eye(9), np.random.default_rng(0).normal(size=(cones.m, 9)), np.ones(9), w, cones)
    report = at(drawn).objective_report(observe=lambda moved: np.concatenate([moved.x, moved.y], axis=1))
    assert report.status == ("ok",)


def flat_vertex(rng: np.random.Generator, *, quadratic: bool) -> Known:
    """Five active rows in three variables, two of them with multiplier 0 as returned by a vertex solver."""
    P = np.eye(3) if quadratic else np.zeros((3, 3))
    w = np.array([1.2, 0.0, 0.4, 0.0, 0.8, -0.7])
    return assemble(P, rng.normal(size=(6, 3)), rng.normal(size=3), w, Cones(nonnegative=6))


@pytest.mark.parametrize("quadratic", [True, False])
def test_a_vertex_does_not_depend_on_the_linear_cost(backend: AbstractBackend, *, quadratic: bool) -> None:
    """dx / dq = 0 for every choice of active rows; rounding errors do not count as a difference."""
    drawn = flat_vertex(np.random.default_rng(0), quadratic=quadratic)
    differentiator = at(drawn, backend)
    gradient, report = differentiator.vjp(ones(drawn, y=0.0, s=0.0), observe=lambda data: data.q)
    np.testing.assert_allclose(gradient.q, 0.0, atol=1e-13)
    assert report.status == ("ok",)
    _, moved = differentiator.vjp(ones(drawn, y=0.0, s=0.0), observe=lambda data: data.b)
    assert moved.status == ("degenerate",)
    assert differentiator.objective_report(observe=lambda moved: moved.x).status == ("ok",)
    assert differentiator.objective_report(observe=lambda moved: moved.y).status == ("degenerate",)


def test_an_optimal_value_at_a_nonunique_vertex(backend: AbstractBackend) -> None:
    """min x0 + x1 over the simplex at (1, 0): all points of the edge are solutions."""
    A = np.concatenate([np.ones((1, 2)), -np.eye(2)])
    drawn = assemble(np.zeros((2, 2)), A, np.array([1.0, 0.0]), np.array([-1.0, -1.0, 0.0]), Cones(1, 2))
    differentiator = at(drawn, backend)
    assert differentiator.objective_report(observe=lambda moved: moved.x).status == ("degenerate",)


def test_unbounded_multipliers_do_not_enter_the_size_of_outputs() -> None:
    """Equal rows may have multipliers 1e9 and -1e9; the response of x to A must not reflect their size."""
    drawn, asked = duplicated_rows(np.random.default_rng(0)), list[Array]()
    program, solution = drawn.program, drawn.solution

    def relative(dx: Array, dy: Array, respond: Callable[[ConeProgram], tuple[Array, Array]]) -> Array:
        asked.append(respond(program)[0])
        return np.max(np.abs(dx), axis=1)

    for size in (0.0, 1e9):
        apart = replace(solution, y=solution.y + size * np.array([1.0, -1.0, 0.0, 0.0]))
        system = KKTSystem(program.structure)
        differentiator = exact_differentiator(system, program, apart, relative=relative)
        differentiator.vjp(ones(drawn, y=0.0, s=0.0))
    assert len(asked) >= 2
    assert np.max(np.abs(asked)) <= 100.0


def dense(drawn: Known) -> tuple[Array, Array]:
    structure = drawn.program.structure
    return structure.A.dense(drawn.program.A)[0], structure.P.dense(drawn.program.P)[0]


def without_row(drawn: Known, row: int) -> Known:
    """Remove a row and add its multiplier to that of row 0, its duplicate."""
    A, P = dense(drawn)
    w = drawn.w[0].copy()
    w[0] += w[row]
    cones = drawn.program.structure.cones
    fewer = Cones(cones.zero - 1, cones.nonnegative)
    return assemble(P, np.delete(A, row, axis=0), drawn.solution.x[0], np.delete(w, row), fewer)


def without_variable(drawn: Known, column: int) -> Known:
    A, P = dense(drawn)
    P = np.delete(np.delete(P, column, axis=0), column, axis=1)
    x = np.delete(drawn.solution.x[0], column)
    return assemble(P, np.delete(A, column, axis=1), x, drawn.w[0], drawn.program.structure.cones)


def only_q(drawn: Known, dq: Array) -> ConeProgram:
    return tangent_of_b(drawn, np.zeros(drawn.program.structure.m), dq)


def tangent_of_b(drawn: Known, db: list[float] | Array, dq: Array | None = None) -> ConeProgram:
    program = drawn.program
    q = np.zeros_like(program.q) if dq is None else dq[None]
    return ConeProgram(
        program.structure, np.zeros_like(program.P), q, np.zeros(1), np.zeros_like(program.A), np.asarray(db)[None]
    )
