"""Second-order blocks in rank-two form: the sparse expansion of K against dense D."""

from __future__ import annotations

import numpy as np
import pytest

from convexlayer.cones import SecondOrder
from convexlayer.cones.product import RANK_TWO_FROM
from convexlayer.diff import KKTSystem, SolutionCotangent, exact_differentiator
from convexlayer.linalg import AbstractBackend
from convexlayer.linalg.dense.batched import DenseBackend
from convexlayer.linalg.ldl.qdldl_ import SparseBackend
from convexlayer.program import Array, Cones
from convexlayer.testing.programs import Known

from .programs import (
    assemble,
    batch_of,
    data_tangents,
    dense_derivative,
    differences,
    flat_cotangent,
    flat_data,
    flat_point,
    newton_matrix,
    point_cotangents,
)

pytestmark = pytest.mark.usefixtures("form")

BACKENDS = {"dense": DenseBackend(), "sparse": SparseBackend()}
SIZES = (2, 3, RANK_TWO_FROM - 1, RANK_TWO_FROM, 9, 10, 20, 50)
REGIONS = {"I": 1.5, "curved": 0.3, "0": -1.5}
"""t / norm(u) in each region of D."""


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> AbstractBackend:
    return BACKENDS[request.param]


def point(rng: np.random.Generator, size: int, ratio: float) -> Array:
    """Draw w of one block with t = ratio norm(u)."""
    u = rng.normal(size=size - 1)
    return np.append(ratio * np.linalg.norm(u), u)


def at_ratios(rng: np.random.Generator, sizes: tuple[int, ...], ratios: list[float], n: int | None = None) -> Known:
    """A strongly convex program with an equality and second-order cones, at blocks with these ratios."""
    w = np.concatenate([[1.0], *(point(rng, size, ratio) for size, ratio in zip(sizes, ratios, strict=True))])
    n = n or len(w) + 2
    F, A = rng.normal(size=(n, n)), rng.normal(size=(len(w), n)) * (rng.uniform(size=(len(w), n)) < 0.7)
    return assemble(F @ F.T / n + 0.3 * np.eye(n), A, rng.normal(size=n), w, Cones(zero=1, second_order=sizes))


def worst_error(drawn: Known, backend: AbstractBackend) -> float:
    """The worst relative error of jvp and vjp, against the dense optimality conditions in (x, w) with dense D."""
    rng, program = np.random.default_rng(1), drawn.program
    structure, n = program.structure, program.structure.n
    tangent, cotangent = data_tangents(rng, structure, 1), point_cotangents(rng, structure, 1)
    system = KKTSystem(structure, backend)
    x, y = (np.repeat(v, len(tangent.q), axis=0) for v in (drawn.solution.x, drawn.solution.y))
    r1 = structure.P.matvec(tangent.P, x) + tangent.q + structure.A.rmatvec(tangent.A, y)
    r2 = structure.A.matvec(tangent.A, x) - tangent.b
    moved_w = np.linalg.solve(newton_matrix(program, drawn.w)[0], -np.concatenate([r1, r2], axis=1).T).T
    D = dense_derivative(structure.cones, drawn.w)[0]
    dx, dw = moved_w[:, :n], moved_w[:, n:]
    expected = np.concatenate([dx, dw @ D, dw @ D - dw], axis=1)
    copies = [drawn.repeat(len(rows)) for rows in (tangent.q, cotangent.x)]
    forward, backward = (exact_differentiator(system, copy.program, copy.solution) for copy in copies)
    moved, report = forward.jvp(tangent)
    assert report.linear_residual.max() <= 1e-10
    error = np.max(np.abs(flat_point(moved) - expected)) / np.max(np.abs(expected))
    pulled, report = backward.vjp(cotangent)
    assert report.linear_residual.max() <= 1e-10
    inner, known = flat_cotangent(pulled, structure) @ flat_data(tangent).T, flat_point(cotangent) @ expected.T
    return float(max(error, np.max(np.abs(inner - known)) / np.max(np.abs(known))))


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("size", SIZES)
def test_one_block_in_each_region(size: int, region: str, backend: AbstractBackend) -> None:
    drawn = at_ratios(np.random.default_rng(size), (size,), [REGIONS[region]])
    assert worst_error(drawn, backend) <= 1e-10


@pytest.mark.parametrize("gap", [1e-1, 1e-4, 1e-8])
@pytest.mark.parametrize("side", [1.0, -1.0], ids=["near I", "near 0"])
@pytest.mark.parametrize("size", [RANK_TWO_FROM, 14])
def test_near_the_boundaries_of_the_curved_region(size: int, side: float, gap: float, backend: AbstractBackend) -> None:
    for ratio in (side * (1.0 - gap), side * (1.0 + gap)):
        assert worst_error(at_ratios(np.random.default_rng(0), (size,), [ratio]), backend) <= 1e-9


def test_several_blocks_of_different_sizes(backend: AbstractBackend) -> None:
    rng = np.random.default_rng(0)
    sizes = (3, 9, 9, 9, 11, 2, 9, 12, 12, 1, 10)
    for _ in range(5):
        drawn = at_ratios(rng, sizes, rng.choice([-1.5, -0.5, 0.0, 0.4, 1.5], size=len(sizes)).tolist())
        assert worst_error(drawn, backend) <= 1e-10


def test_a_large_block_matches_finite_differences() -> None:
    """A bound on the norm of a vector: A is -I below a constant row, and K stays sparse."""
    rng, size = np.random.default_rng(0), 300
    A = np.eye(size, size - 1, k=-1)
    drawn = assemble(
        np.eye(size - 1), -A, rng.normal(size=size - 1), point(rng, size, 0.2), Cones(second_order=(size,))
    )
    system = KKTSystem(drawn.program.structure)
    assert system.pattern.shape == (2 * size + 1, 2 * size + 1)
    assert system.pattern.nnz < 10 * size
    tangent = data_tangents(rng, drawn.program.structure, 1).select(slice(-1, None))  # of P, q, A and b
    expected = differences(drawn, tangent)
    copy = drawn.repeat(tangent.batch)
    moved, report = exact_differentiator(system, copy.program, copy.solution).jvp(tangent)
    assert report.trusted
    np.testing.assert_allclose(flat_point(moved), flat_point(expected), atol=1e-7)
    cotangent = point_cotangents(rng, drawn.program.structure, 1)
    copy = drawn.repeat(len(cotangent.x))
    pulled, _ = exact_differentiator(system, copy.program, copy.solution).vjp(cotangent)
    inner = flat_cotangent(pulled, drawn.program.structure) @ flat_data(tangent).T
    np.testing.assert_allclose(inner, flat_point(cotangent) @ flat_point(moved).T, atol=1e-10 * np.max(np.abs(inner)))


def test_a_row_of_A_without_entries_and_a_block_without_any(backend: AbstractBackend) -> None:
    """Constant blocks do not affect the solution or its derivative."""
    rng, size = np.random.default_rng(0), RANK_TWO_FROM + 1
    A = np.concatenate([rng.normal(size=(2, 4)), np.zeros((size, 4))])
    w = np.concatenate([[1.0, -1.0], point(rng, size, -1.5)])
    drawn = assemble(np.eye(4), A, rng.normal(size=4), w, Cones(nonnegative=2, second_order=(size,)))
    assert worst_error(drawn, backend) <= 1e-12


def test_elements_in_different_regions_share_one_pattern(backend: AbstractBackend) -> None:
    rng, size = np.random.default_rng(0), RANK_TWO_FROM + 2
    draws = [at_ratios(np.random.default_rng(3), (size,), [ratio]) for ratio in REGIONS.values()]
    together = batch_of(draws)
    system = KKTSystem(together.program.structure, backend)
    cotangent = point_cotangents(rng, system.structure, 1)
    alone = SolutionCotangent(*(part[-1:] for part in (cotangent.x, cotangent.y, cotangent.s)))
    whole = SolutionCotangent(*(np.repeat(part, 3, axis=0) for part in (alone.x, alone.y, alone.s)))
    batch, _ = exact_differentiator(system, together.program, together.solution).vjp(whole)
    for i, drawn in enumerate(draws):
        single, report = exact_differentiator(system, drawn.program, drawn.solution).vjp(alone)
        assert report.trusted
        left, right = (flat_cotangent(data, drawn.program.structure) for data in (batch, single))
        np.testing.assert_allclose(left[i], right[0], atol=1e-11)


@pytest.mark.parametrize("ratio", [2.0, 1.0, 1.0 - 1e-8, 0.3, 0.0, -0.3, -1.0 + 1e-8, -1.0, -2.0])
@pytest.mark.parametrize("size", [2, 3, 17])
def test_the_rank_two_form_equals_the_eigenbasis_form(size: int, ratio: float) -> None:
    rng, cone = np.random.default_rng(size), SecondOrder(size)
    w, v = point(rng, size, ratio), rng.normal(size=(5, size))
    form, basis = cone.rank_two_at(w).derive(), cone.derivative(w)
    np.testing.assert_allclose(form.apply(v), basis.apply(v), atol=1e-14)
    np.testing.assert_allclose(form.delta + form.complement, 1.0, atol=4e-16, rtol=0)
    np.testing.assert_array_equal(form.margin(), basis.margin())


def test_the_rank_two_form_where_u_is_zero() -> None:
    v = np.arange(6.0)
    np.testing.assert_array_equal(SecondOrder(6).rank_two_at(np.array([1.0, 0, 0, 0, 0, 0])).derive().apply(v), v)
    for t in (0.0, -1.0):
        np.testing.assert_array_equal(
            SecondOrder(6).rank_two_at(np.array([t, 0, 0, 0, 0, 0])).derive().apply(v), 0.0 * v
        )
