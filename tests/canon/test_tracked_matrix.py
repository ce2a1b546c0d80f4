"""Operations on the arrays of compressed rows agree with SciPy's operators to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from convexlayer.canon.tracked_matrix import (
    TrackedMatrix,
    add,
    columns_of_identity,
    from_entries,
    multiply,
    stacked,
    subtract,
    tracked,
)


def matrix(seed: int, height: int, width: int) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    return sp.random(height, width, 0.4, "csr", rng=rng, data_rvs=rng.standard_normal)


def assert_equal(ours: TrackedMatrix, theirs: sp.csr_matrix, bounds: sp.csr_matrix) -> None:
    assert ours.shape == theirs.shape
    assert np.array_equal(ours.values.toarray(), theirs.toarray())
    assert np.array_equal(
        sp.csr_matrix((ours.bounds, ours.indices, ours.indptr), ours.shape).toarray(), bounds.toarray()
    )


@pytest.mark.parametrize("shape", [(6, 9, 7), (1, 1, 1), (0, 3, 2), (4, 0, 3), (3, 5, 0)])
def test_operations_agree_with_scipy(shape: tuple[int, int, int]) -> None:
    left, right, more = matrix(0, *shape[:2]), matrix(1, *shape[1:]), matrix(2, *shape[:2])
    ours, theirs, third = tracked(left), tracked(right), tracked(more)
    assert_equal(multiply(ours, theirs), left @ right, abs(left) @ abs(right))
    assert_equal(multiply(theirs.transposed, ours.transposed), right.T @ left.T, abs(right.T) @ abs(left.T))
    assert_equal(add(ours, third), left + more, abs(left) + abs(more))
    assert_equal(subtract(ours, third), left - more, abs(left) + abs(more))
    assert_equal(stacked([ours, third]), sp.vstack([left, more]), abs(sp.vstack([left, more])))
    rows = np.arange(shape[0])[::-2]
    assert_equal(ours.of_rows(rows), left[rows], abs(left[rows]))
    coordinates = left.tocoo()
    again = from_entries(left.shape, coordinates.row[::-1], coordinates.col[::-1], coordinates.data[::-1])
    assert again.equals(ours)
    columns = np.random.default_rng(3).permutation(shape[1])[: shape[1] // 2]
    assert_equal(multiply(ours, columns_of_identity(shape[1], columns)), left[:, columns], abs(left[:, columns]))


def test_entries_that_cancel_are_dropped() -> None:
    left, right = sp.csr_matrix([[1.0, -1.0], [1.0, 1.0]]), sp.csr_matrix([[3.0, 0.1], [3.0, 0.1 + 1e-17]])
    product = multiply(tracked(left), tracked(right))
    assert product.indptr.tolist() == [0, 0, 2]
    assert np.array_equal(product.values.toarray(), [[0.0, 0.0], [6.0, 0.2]])
    almost = subtract(tracked(sp.csr_matrix([[0.1 + 0.2]])), tracked(sp.csr_matrix([[0.3]])))
    assert not len(almost.data)
