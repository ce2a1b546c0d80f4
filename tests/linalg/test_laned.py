"""Refined factors by kernels: equal to those in NumPy, and elements are independent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse.linalg import splu

from convexlayer.linalg import choose_factoriser
from convexlayer.linalg.dense.batched import DenseBackend
from convexlayer.linalg.ldl import symbolic as symbolic_work
from convexlayer.linalg.ldl.laned import LaneFactoriser
from convexlayer.linalg.ldl.portable import PortableFactoriser
from convexlayer.linalg.ldl.symbolic import Symbolic, minimum_degree
from convexlayer.program import Array, Pattern
from convexlayer.runtime import kernel_cache
from convexlayer.runtime.lanes import LANES
from convexlayer.runtime.threads import WORKERS

from .matrices import FACTORISERS, SIGNS, M, N, quasi_definite, refined, times, upper_triangle

MANY = 2 * WORKERS + LANES + 3
"""Batch size with several lane groups, the last one not full."""


def signs(n: int, m: int) -> Array:
    return np.concatenate([np.ones(n), -np.ones(m)])


@pytest.mark.parametrize("batch", [1, 2, MANY])
@pytest.mark.parametrize(("n", "m", "density"), [(40, 30, 0.05), (30, 25, 1.0), (1, 0, 1.0)])
def test_laned_equals_portable(rng: np.random.Generator, batch: int, n: int, m: int, density: float) -> None:
    K, rhs = quasi_definite(rng, batch, n=n, m=m, density=density), rng.normal(size=(batch, n + m))
    K += 0.1 * np.diag(signs(n, m))
    lanes, portable = (refined(K, FACTORISERS[name], signs(n, m)) for name in ("lanes", "dense"))
    ours, residual = lanes.refine(rhs)
    theirs, _ = portable.refine(rhs)
    np.testing.assert_allclose(ours, theirs, atol=1e-11)
    assert np.all(residual <= 1e-13)
    np.testing.assert_allclose(lanes.condition, portable.condition, rtol=1e-6)
    index = np.arange(batch)[::-2]
    for our, their in zip(lanes.equilibrated(index), portable.equilibrated(index), strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-13)


@pytest.mark.parametrize("batch", [1, MANY])
def test_row_by_row_refinement_equals_portable(rng: np.random.Generator, batch: int) -> None:
    """Right-hand sides and unknowns from 1e-8 to 1: residuals are small also in rows with small terms."""
    K = quasi_definite(rng, batch) + 0.1 * np.diag(SIGNS)
    rhs = times(K, rng.normal(size=(batch, N + M)) * 10.0 ** rng.uniform(-8.0, 0.0, (batch, N + M)))
    rhs[0, 0] = np.nan if batch > 1 else rhs[0, 0]
    (ours, residual), (theirs, other) = (
        refined(K, FACTORISERS[name]).refine_row_by_row(rhs) for name in ("lanes", "dense")
    )
    finite = np.all(np.isfinite(rhs), axis=1)
    assert np.all(residual[finite] <= 1e-11)
    assert np.all(other[finite] <= 1e-11)
    np.testing.assert_allclose(ours[finite], theirs[finite], rtol=1e-6, atol=1e-13)
    assert np.all(np.isnan(ours[~finite]))
    assert np.all(np.isnan(residual[~finite]))


def test_null_directions_equal_portable(rng: np.random.Generator) -> None:
    K = quasi_definite(rng, MANY)
    K[:, -1, :], K[:, :, -1] = K[:, -2, :], K[:, :, -2]
    K[:, -2:, -2:] = 0.0
    lanes, portable = (refined(K, FACTORISERS[name]) for name in ("lanes", "dense"))
    np.testing.assert_allclose(lanes.null_direction, portable.null_direction, atol=1e-5)


def test_a_result_does_not_depend_on_its_neighbours(rng: np.random.Generator) -> None:
    """Bitwise, even if elements in other lanes are singular, badly scaled or NaN."""
    K, rhs = quasi_definite(rng, MANY), rng.normal(size=(MANY, N + M))
    pattern, values = upper_triangle(K)
    factoriser = LaneFactoriser(pattern, SIGNS)
    alone = factoriser.factor(values)
    expected, residual = alone.refine(rhs)
    for change in (0.0, 1e8, np.nan):
        kept = np.arange(MANY) % 3 == 0
        changed, changed_rhs = values.copy(), rhs.copy()
        changed[~kept, 3:] *= change
        changed_rhs[1] = np.inf
        among = factoriser.factor(changed)
        found, found_residual = among.refine(changed_rhs)
        np.testing.assert_array_equal(found[kept], expected[kept])
        np.testing.assert_array_equal(found_residual[kept], residual[kept])
        np.testing.assert_array_equal(among.condition[kept], alone.condition[kept])


def test_matrices_with_nan_have_nan_solutions(rng: np.random.Generator) -> None:
    pattern, values = upper_triangle(quasi_definite(rng, MANY))
    values[2, 5] = np.nan
    factor = LaneFactoriser(pattern, SIGNS).factor(values)
    _, residual = factor.refine(np.ones((MANY, N + M)))
    assert residual[2] == 1.0
    assert np.isnan(factor.condition[2])
    assert np.all(np.delete(residual, 2) <= 1e-13)


def test_arguments_are_not_modified_and_may_have_any_memory_layout(rng: np.random.Generator) -> None:
    pattern, values = upper_triangle(quasi_definite(rng, MANY))
    rhs = rng.normal(size=(MANY, N + M))
    factoriser = LaneFactoriser(pattern, SIGNS)
    expected = factoriser.factor(values.copy()).refine(rhs)[0]
    fixed_values, fixed_rhs = np.asfortranarray(values), rhs.copy()
    fixed_values.flags.writeable = fixed_rhs.flags.writeable = False
    np.testing.assert_array_equal(factoriser.factor(fixed_values).refine(fixed_rhs)[0], expected)


def test_empty_batch(rng: np.random.Generator) -> None:
    pattern, _ = upper_triangle(quasi_definite(rng, 1))
    factor = LaneFactoriser(pattern, SIGNS).factor(np.zeros((0, pattern.nnz)))
    assert factor.refine(np.zeros((0, N + M)))[0].shape == factor.null_direction.shape == (0, N + M)
    assert factor.condition.shape == (0,)


def test_fill_reducing_order_of_an_arrow_matrix(rng: np.random.Generator) -> None:
    """A full first row and column is eliminated last, which causes almost no fill."""
    size = 50
    K = np.diag(rng.uniform(1.0, 2.0, size=size))[None]
    K[:, 0, 1:] = K[:, 1:, 0] = 0.1
    pattern, values = upper_triangle(K)
    symbolic = Symbolic.of(pattern, np.ones(size))
    assert symbolic.fill < 3 * size  # supernodes store explicit zeros
    z = rng.normal(size=(1, size))
    np.testing.assert_allclose(LaneFactoriser(pattern, np.ones(size)).factor(values).refine(times(K, z))[0], z)


def test_kernels_are_used_if_compiled_and_no_backend_is_given(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern, _ = upper_triangle(quasi_definite(rng, 1))
    monkeypatch.setattr(kernel_cache, "ready", lambda: True)
    assert isinstance(choose_factoriser(pattern, SIGNS), LaneFactoriser)
    assert isinstance(choose_factoriser(pattern, SIGNS, DenseBackend()), PortableFactoriser)
    monkeypatch.setattr(kernel_cache, "ready", lambda: False)
    assert isinstance(choose_factoriser(pattern, SIGNS), PortableFactoriser)


def test_dense_blocks_are_ordered_last_without_being_factorised(monkeypatch: pytest.MonkeyPatch) -> None:
    """An arrow matrix coupled to a dense block: the arrow is ordered separately, with almost no additional fill."""
    arrow, block = 12, 40
    occurring = np.eye(arrow + block, dtype=bool)
    occurring[0, :arrow] = True  # eliminating the first unknown first would fill the whole matrix
    occurring[arrow:, arrow:] = True
    occurring[5, arrow:] = True
    cols, rows = np.nonzero(np.triu(occurring | occurring.T).T)
    pattern = Pattern(occurring.shape, rows, cols)
    factorised: list[int] = []

    def spy(matrix: Any, **options: Any) -> Any:
        factorised.append(matrix.shape[0])
        return splu(matrix, **options)

    monkeypatch.setattr(symbolic_work, "splu", spy)
    last = arrow + np.arange(block)
    position = minimum_degree(pattern, last)
    assert factorised == [arrow]
    np.testing.assert_array_equal(np.sort(position), np.arange(arrow + block))
    np.testing.assert_array_equal(position[last], last)
    signs = np.ones(arrow + block)
    assert Symbolic.of(pattern, signs, last).fill <= 1.1 * Symbolic.of(pattern, signs).fill
