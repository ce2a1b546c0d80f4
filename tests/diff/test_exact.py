"""The exact derivative: backends, batches, reuse of factors, small and empty programs."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import numpy as np
import pytest

from convexlayer.cones import product_cone
from convexlayer.diff import KKTSystem, SolutionCotangent, exact_differentiator, polished
from convexlayer.linalg import AbstractBackend, AbstractFactor, BackendState
from convexlayer.linalg.dense.batched import DenseBackend
from convexlayer.linalg.ldl.qdldl_ import SparseBackend
from convexlayer.program import Array, Cones, Pattern, ProgramCotangent
from convexlayer.testing.programs import Known

from .programs import (
    CONES,
    assemble,
    at,
    batch_of,
    data_tangents,
    differences,
    draw,
    flat_cotangent,
    flat_data,
    flat_point,
    ones,
    point_cotangents,
    strict_point,
)

pytestmark = pytest.mark.usefixtures("form")


@final
class CountingBackend(AbstractBackend):
    """A backend that counts analyses and factorisations."""

    def __init__(self) -> None:
        self.analyses = self.factorisations = 0

    def init(self, pattern: Pattern) -> BackendState:
        self.analyses += 1
        return DenseBackend().init(pattern)

    def factor(self, state: BackendState, values: Array) -> AbstractFactor:
        self.factorisations += 1
        return DenseBackend().factor(state, values)


def regular(name: str, *, quadratic: bool = True, seed: int = 0) -> Known:
    drawn = draw(np.random.default_rng(seed), CONES[name], quadratic=quadratic)
    assert drawn is not None
    return drawn


@pytest.mark.parametrize("quadratic", [True, False], ids=["quadratic", "linear"])
@pytest.mark.parametrize("name", CONES)
def test_dense_and_sparse_agree(name: str, quadratic: bool) -> None:
    for seed in range(3):
        drawn, rng = regular(name, quadratic=quadratic, seed=seed), np.random.default_rng(seed)
        structure = drawn.program.structure
        tangent, cotangent = data_tangents(rng, structure, 1), point_cotangents(rng, structure, 1)
        results = []
        for backend in (DenseBackend(), SparseBackend()):
            system = KKTSystem(structure, backend)
            copies = [drawn.repeat(len(rows)) for rows in (tangent.q, cotangent.x)]
            forward, backward = (exact_differentiator(system, copy.program, copy.solution) for copy in copies)
            moved, pulled = forward.jvp(tangent), backward.vjp(cotangent)
            assert moved[1].trusted
            assert pulled[1].trusted
            results.append((flat_point(moved[0]), flat_cotangent(pulled[0], drawn.program.structure)))
        for dense, sparse in zip(*results, strict=True):
            np.testing.assert_allclose(dense, sparse, atol=1e-9 * np.max(np.abs(dense)))


def test_rows_of_a_batch_equal_single_elements() -> None:
    """Elements with one structure and different active sets."""
    rng, cones, n = np.random.default_rng(3), CONES["product"], 60
    P, A = np.eye(n), rng.normal(size=(cones.m, n))
    draws = [assemble(P, A, rng.normal(size=n), strict_point(rng, cones)[0], cones) for _ in range(5)]
    together, system = batch_of(draws), KKTSystem(draws[0].program.structure)
    tangent, cotangent = data_tangents(rng, system.structure, 1), point_cotangents(rng, system.structure, 2)
    cotangent = SolutionCotangent(*(part[:5] for part in (cotangent.x, cotangent.y, cotangent.s)))
    batch = exact_differentiator(system, together.program, together.solution)
    (moved, forward), (pulled, backward) = batch.jvp(tangent), batch.vjp(cotangent)
    assert forward.trusted
    assert backward.trusted
    for i, single in enumerate(draws):
        alone = exact_differentiator(system, single.program, single.solution)
        one = SolutionCotangent(*(part[i : i + 1] for part in (cotangent.x, cotangent.y, cotangent.s)))
        expected = flat_point(alone.jvp(tangent.select(slice(i, i + 1)))[0])[0]
        np.testing.assert_allclose(flat_point(moved)[i], expected, atol=1e-11 * np.max(np.abs(expected)))
        gradient, report = alone.vjp(one)
        expected = flat_cotangent(gradient, system.structure)[0]
        found = flat_cotangent(pulled, system.structure)[i]
        np.testing.assert_allclose(found, expected, atol=1e-11 * np.max(np.abs(expected)))
        np.testing.assert_allclose(report.margin[0], backward.margin[i], rtol=1e-12)


def test_all_derivatives_share_one_factorisation() -> None:
    drawn, backend = regular("product"), CountingBackend()
    differentiator = at(drawn, backend)
    assert (backend.analyses, backend.factorisations) == (1, 0)  # factorises on first use
    tangent = data_tangents(np.random.default_rng(0), drawn.program.structure, 1)
    for i in range(2):
        differentiator.vjp(ones(drawn, x=1.0 + i))
        differentiator.jvp(tangent.select(slice(i, i + 1)))
    assert (backend.analyses, backend.factorisations) == (1, 1)


@pytest.mark.parametrize(("name", "more"), [("zero", 0), ("nonnegative", 0), ("second_order", 1)])
def test_the_derivative_reuses_the_factor_of_polish(name: str, more: int) -> None:
    """Polyhedral cones with an unchanged active set need no factorisation; curved cones need their own."""
    drawn, backend = regular(name).repeat(2), CountingBackend()
    system = KKTSystem(drawn.program.structure, backend)
    start = replace(drawn.solution, x=drawn.solution.x + np.array([[1e-6], [0.0]]))
    made = polished(system, drawn.program, start)
    before = backend.factorisations
    assert before >= 1
    derivative = exact_differentiator(system, drawn.program, made.solution, factor=made.factor)
    gradient, report = derivative.vjp(ones(drawn))
    assert report.trusted
    assert backend.factorisations == before + more
    structure = drawn.program.structure
    expected = flat_cotangent(at(drawn).vjp(ones(drawn))[0], structure)
    np.testing.assert_allclose(flat_cotangent(gradient, structure), expected, atol=1e-9 * np.max(np.abs(expected)))


def test_a_factor_of_another_active_set_or_program_is_not_used() -> None:
    drawn, backend = regular("nonnegative"), CountingBackend()
    system = KKTSystem(drawn.program.structure, backend)
    turned = replace(drawn.solution, y=drawn.solution.s, s=drawn.solution.y).complementary(drawn.program)
    other = system.factor(drawn.program, turned)
    exact_differentiator(system, drawn.program, drawn.solution, factor=other).vjp(ones(drawn))
    assert backend.factorisations == 2
    copy = replace(drawn.program, A=2.0 * drawn.program.A)
    other = system.factor(copy, drawn.solution.complementary(drawn.program))
    exact_differentiator(system, drawn.program, drawn.solution, factor=other).vjp(ones(drawn))
    assert backend.factorisations == 4


@pytest.mark.parametrize("name", ["second_order", "product"])
def test_cotangents_on_part_of_the_patterns(name: str) -> None:
    """Entries on part of the patterns are those on the full ones."""
    drawn = regular(name)
    structure = drawn.program.structure
    gradient, _ = at(drawn).vjp(ones(drawn))
    for pattern, entries in ((structure.P, gradient.P), (structure.A, gradient.A)):
        some = np.arange(pattern.nnz) % 3 == 0
        part = Pattern(pattern.shape, pattern.rows[some], pattern.cols[some])
        np.testing.assert_array_equal(entries(part), entries(pattern)[:, some])


@pytest.mark.parametrize("name", ["second_order", "product"])
def test_inner_products_of_cotangents_and_tangents(name: str) -> None:
    drawn, rng = regular(name), np.random.default_rng(2)
    structure = drawn.program.structure
    tangent = data_tangents(rng, structure, 1)
    cotangent = ProgramCotangent(*(rng.normal(size=(len(tangent.q), size)) for size in 2 * (structure.n, structure.m)))
    expected = np.sum(flat_cotangent(cotangent, structure) * flat_data(tangent), axis=1)
    np.testing.assert_allclose(cotangent.inner(tangent), expected, atol=1e-12 * np.max(np.abs(expected)))
    r = rng.normal(size=(2, len(expected)))
    with_r = replace(cotangent, r=r[0]).inner(replace(tangent, r=r[1]))
    np.testing.assert_allclose(with_r, cotangent.inner(tangent) + r[0] * r[1], rtol=1e-12)


def test_the_cotangent_of_the_optimal_value_is_that_of_the_lagrangian() -> None:
    drawn, rng = regular("product"), np.random.default_rng(3)
    x, y, weight = drawn.solution.x, drawn.solution.y, np.array([0.7])
    tangent = data_tangents(rng, drawn.program.structure, 1)
    several = drawn.repeat(len(tangent.q)).solution
    cotangent = ProgramCotangent.of_value(several.x, several.y, np.repeat(weight, len(tangent.q)))
    P, A = drawn.program.structure.P, drawn.program.structure.A
    lagrangian = (
        0.5 * np.sum(x * P.matvec(tangent.P, several.x), axis=1)
        + tangent.q @ x[0]
        + tangent.r
        + np.sum(y * (A.matvec(tangent.A, several.x) - tangent.b), axis=1)
    )
    np.testing.assert_allclose(cotangent.inner(tangent), weight * lagrangian, rtol=1e-12)


@pytest.mark.parametrize(("noise", "status"), [(0.0, "ok"), (1e-10, "ok"), (1e-5, "inaccurate")])
def test_inaccurate_solutions_have_inaccurate_derivatives(noise: float, status: str) -> None:
    drawn = regular("product")
    moved = replace(drawn.solution, x=drawn.solution.x * (1.0 + noise))
    system = KKTSystem(drawn.program.structure)
    assert exact_differentiator(system, drawn.program, moved).vjp(ones(drawn))[1].status == (status,)


def test_linear_in_the_cotangent() -> None:
    drawn, rng = regular("product"), np.random.default_rng(1)
    differentiator = at(drawn)
    kinds = point_cotangents(rng, drawn.program.structure, 1)
    parts = [SolutionCotangent(kinds.x[i : i + 1], kinds.y[i : i + 1], kinds.s[i : i + 1]) for i in range(3)]
    whole = SolutionCotangent(parts[0].x, parts[1].y, parts[2].s)
    structure = drawn.program.structure
    gradients = [flat_cotangent(differentiator.vjp(part)[0], structure) for part in parts]
    expected = flat_cotangent(differentiator.vjp(whole)[0], structure)
    np.testing.assert_allclose(np.sum(gradients, axis=0), expected, atol=1e-11 * np.max(np.abs(expected)))


def test_the_gradient_of_P_is_symmetric() -> None:
    drawn = regular("second_order")
    gradient, _ = at(drawn).vjp(ones(drawn))
    pattern = drawn.program.structure.P
    P = gradient.P(pattern)
    assert np.any(P)
    np.testing.assert_array_equal(P, P[:, pattern.transposed_positions])


def test_zero_tangents_and_cotangents_give_zero() -> None:
    drawn = regular("product")
    gradient, backward = at(drawn).vjp(ones(drawn, 0.0, 0.0, 0.0))
    program = drawn.program
    zero = replace(program, **{name: 0.0 * getattr(program, name) for name in ("P", "q", "A", "b")})
    moved, forward = at(drawn).jvp(zero)
    np.testing.assert_array_equal(flat_cotangent(gradient, drawn.program.structure), 0.0)
    np.testing.assert_array_equal(flat_point(moved), 0.0)
    assert backward.trusted
    assert forward.trusted


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_nonfinite_cotangent_fails_its_element_only(value: float) -> None:
    copies = regular("second_order").repeat(2)
    cotangent = ones(copies)
    cotangent.x[1, 0] = value
    gradient, report = at(copies).vjp(cotangent)
    assert report.status == ("ok", "failed")
    assert np.all(np.isfinite(gradient.q[0]))
    assert np.all(np.isnan(gradient.q[1]))


@pytest.mark.parametrize("backend", [DenseBackend(), SparseBackend()], ids=["dense", "sparse"])
def test_nonfinite_data_fail_their_element_only(backend: AbstractBackend) -> None:
    copies = regular("second_order").repeat(3)
    copies.program.P[1, 0] = np.nan
    gradient, report = at(copies, backend).vjp(ones(copies))
    assert report.status == ("ok", "failed", "ok")
    np.testing.assert_array_equal(gradient.q[0], gradient.q[2])
    assert np.all(np.isfinite(gradient.q[0]))


def test_one_variable() -> None:
    """Minimise x^2 / 2 - 3 x over x <= 1: x = 1, y = 2; then over x <= 4: x = 3, y = 0."""
    P, A = np.ones((1, 1)), np.ones((1, 1))
    for w, dx_db in ((2.0, 1.0), (-1.0, 0.0)):
        drawn = assemble(P, A, np.array([1.0 if w > 0 else 3.0]), np.array([w]), Cones(nonnegative=1))
        np.testing.assert_allclose(drawn.program.q, -3.0)
        gradient, report = at(drawn).vjp(ones(drawn, y=0.0, s=0.0))
        assert report.status == ("ok",)
        np.testing.assert_allclose(gradient.b, [[dx_db]], atol=1e-13)
        np.testing.assert_allclose(gradient.q, [[dx_db - 1.0]], atol=1e-13)


def test_no_constraints() -> None:
    """x = -P^-1 q, so that dx = -P^-1 (dq + dP x)."""
    rng = np.random.default_rng(0)
    F = rng.normal(size=(4, 4))
    P, x = F @ F.T + np.eye(4), rng.normal(size=4)
    drawn = assemble(P, np.zeros((0, 4)), x, np.zeros(0), Cones())
    differentiator = at(drawn)
    tangent = data_tangents(rng, drawn.program.structure, 1).select(slice(2, 3))
    moved, report = differentiator.jvp(tangent)
    dP = drawn.program.structure.P.dense(tangent.P)[0]
    np.testing.assert_allclose(moved.x[0], -np.linalg.solve(P, tangent.q[0] + dP @ x), atol=1e-12)
    assert report.status == ("ok",)
    assert report.margin[0] == np.inf
    gradient, _ = differentiator.vjp(ones(drawn))
    np.testing.assert_allclose(gradient.q[0], -np.linalg.solve(P, np.ones(4)), atol=1e-12)


def test_all_constraints_inactive() -> None:
    """y and its derivative are zero, and x moves as without constraints."""
    rng, cones = np.random.default_rng(0), replace(CONES["product"], zero=0)
    points = rng.normal(size=(6, cones.m))
    w = np.sum(points - product_cone(cones).project_dual(points), axis=0)
    drawn = assemble(np.eye(3), rng.normal(size=(cones.m, 3)), rng.normal(size=3), w, cones)
    np.testing.assert_array_equal(drawn.solution.y, 0.0)
    tangent = data_tangents(rng, drawn.program.structure, 1).select(slice(1, 2))  # of q alone
    moved, report = at(drawn).jvp(tangent)
    assert report.trusted
    np.testing.assert_allclose(moved.x, -tangent.q, atol=1e-14)
    np.testing.assert_array_equal(moved.y, 0.0)


def test_empty_batch() -> None:
    empty = regular("product").repeat(0)
    gradient, report = at(empty).vjp(ones(empty))
    assert gradient.A(empty.program.structure.A).shape == (0, empty.program.structure.A.nnz)
    assert report.status == ()


def test_explicit_zeros_of_A_have_gradients() -> None:
    """An explicit zero of the pattern is a parameter like any other entry."""
    rng, cones, n = np.random.default_rng(2), Cones(zero=1, second_order=(3,), psd=(3,)), 12
    A, x, w = rng.normal(size=(cones.m, n)), rng.normal(size=n), strict_point(rng, cones)[0]
    holes = np.where(np.arange(A.size).reshape(A.shape) % 3, A, 0.0)
    structure = assemble(np.eye(n), A, x, w, cones).program.structure
    drawn = assemble(np.eye(n), holes, x, w, cones)
    program = replace(drawn.program, structure=structure, A=holes[structure.A.rows, structure.A.cols][None])
    drawn = Known(program, drawn.solution)
    tangent = data_tangents(rng, structure, 1).select(slice(2, 3))  # of A alone
    moved, _ = at(drawn).jvp(tangent)
    np.testing.assert_allclose(flat_point(moved), flat_point(differences(drawn, tangent)), atol=1e-8)
