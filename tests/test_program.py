"""The standard form: sizes, patterns, and batched products against dense ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from convexlayer.cones import product_cone
from convexlayer.program import ROWS_OF_BLOCK, Array, ConeProgram, Cones, Pattern, Structure, is_finite


def pattern(rng: np.random.Generator, shape: tuple[int, int], density: float) -> Pattern:
    occurring = rng.uniform(size=shape) < density
    cols, rows = np.nonzero(occurring.T)
    return Pattern(shape, rows, cols)


def symmetric(rng: np.random.Generator, size: int) -> Pattern:
    lower = np.tril(rng.uniform(size=(size, size)) < 0.4)
    cols, rows = np.nonzero(lower | lower.T)
    return Pattern((size, size), rows, cols)


def reference(pattern: Pattern, values: Array) -> Array:
    """The dense matrices, entry by entry."""
    out = np.zeros((len(values), *pattern.shape))
    for k, (row, col) in enumerate(zip(pattern.rows, pattern.cols, strict=True)):
        out[:, row, col] = values[:, k]
    return out


@pytest.mark.parametrize(
    ("cones", "rows", "kinds"),
    [
        (Cones(), 0, set()),
        (Cones(zero=2), 2, {"zero"}),
        (Cones(nonnegative=3), 3, {"nonnegative"}),
        (Cones(second_order=(1, 4)), 5, {"second_order"}),
        (Cones(psd=(1, 3, 4)), 1 + 6 + 10, {"psd"}),
        (Cones(exponential=2), 6, {"exponential"}),
        (Cones(power=(0.3, 0.7)), 6, {"power"}),
        (Cones(1, 1, (3,), (2,), 1, (0.5,)), 1 + 1 + 3 + 3 + 3 + 3,
         {"zero", "nonnegative", "second_order", "psd", "exponential", "power"}),
    ],
)  # fmt: skip
def test_rows_and_kinds(cones: Cones, rows: int, kinds: set[str]) -> None:
    assert cones.m == rows
    assert cones.kinds == kinds


def test_rows_and_blocks_of_each_cone() -> None:
    assert tuple(ROWS_OF_BLOCK) == tuple(Cones.__dataclass_fields__)
    cones = Cones(zero=2, nonnegative=1, second_order=(3, 1), psd=(2,), exponential=1, power=(0.5, 0.2))
    assert cones.block_rows.tolist() == [1, 1, 1, 3, 1, 3, 3, 3, 3]
    rows = [range(cones.m)[cones.rows_of(kind)] for kind in ROWS_OF_BLOCK]
    assert [len(each) for each in rows] == [2, 1, 4, 3, 3, 6]
    assert [row for each in rows for row in each] == list(range(cones.m))
    assert [cones.rows_of(kind) for kind in ("second_order", "psd")] == [slice(3, 7), slice(7, 10)]
    groups = product_cone(cones).groups
    assert [group.size for group in groups for _ in range(group.blocks)] == cones.block_rows.tolist()
    assert Cones().block_rows.tolist() == []


def test_blocks_are_selected_by_a_mask() -> None:
    cones = Cones(zero=2, nonnegative=1, second_order=(3, 1), psd=(2,), exponential=1, power=(0.5, 0.2))
    kept = np.array([True, False, True, False, True, False, True, True, False])
    assert cones.of_blocks(kept) == Cones(zero=1, nonnegative=1, second_order=(1,), exponential=1, power=(0.5,))


def test_equal_cones_are_equal_keys() -> None:
    assert Cones(2, second_order=(3,)) == Cones(zero=2, second_order=(3,))
    assert len({Cones(power=(0.5,)), Cones(power=(0.5,)), Cones(power=(0.4,))}) == 2


@pytest.mark.parametrize(
    "index",
    [np.array([[0, 9], [1, 9]])[:, 0], np.array([0, 1], dtype=np.int32), np.broadcast_to(np.array([0, 1]), (1, 2))[0]],
    ids=["strided", "int32", "read-only"],
)
def test_patterns_have_the_array_layout_of_kernels(index: NDArray[np.int64]) -> None:
    part = Pattern((2, 2), index, index)
    for kept in (part.rows, part.cols, part.empty.rows):
        assert kept.dtype == np.int64
        assert kept.flags.c_contiguous
        assert kept.flags.writeable
    np.testing.assert_array_equal(part.rows, index)


@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    batch=st.integers(0, 3),
    density=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
)
def test_products_equal_dense_products(seed: int, shape: tuple[int, int], batch: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    part = pattern(rng, shape, density)
    values, x, y = (rng.normal(size=(batch, size)) for size in (part.nnz, shape[1], shape[0]))
    dense = reference(part, values)
    np.testing.assert_array_equal(part.dense(values), dense)
    np.testing.assert_allclose(part.matvec(values, x), np.einsum("bij,bj->bi", dense, x), atol=1e-14)
    np.testing.assert_allclose(part.rmatvec(values, y), np.einsum("bij,bi->bj", dense, y), atol=1e-14)
    for row, matrix in zip(values, dense, strict=True):
        np.testing.assert_array_equal(part.csc(row).toarray(), matrix)


def test_explicit_zeros_are_kept() -> None:
    part = Pattern((2, 2), np.array([0, 1]), np.array([0, 1]))
    matrix = part.csc(np.array([0.0, 1.0]))
    assert part.nnz == matrix.nnz == 2
    np.testing.assert_array_equal(part.indptr, matrix.indptr)


def test_swapped_finds_the_transposed_entry(rng: np.random.Generator) -> None:
    part = symmetric(rng, 7)
    np.testing.assert_array_equal(part.rows[part.transposed_positions], part.cols)
    np.testing.assert_array_equal(part.cols[part.transposed_positions], part.rows)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def program(rng: np.random.Generator) -> ConeProgram:
    P, A = symmetric(rng, 4), pattern(rng, (3, 4), 0.7)
    values = rng.normal(size=(5, P.nnz))
    return ConeProgram(
        Structure(P, A, Cones(nonnegative=3)),
        P=values + values[:, P.transposed_positions],
        q=rng.normal(size=(5, 4)),
        r=rng.normal(size=5),
        A=rng.normal(size=(5, A.nnz)),
        b=rng.normal(size=(5, 3)),
    )


def test_sizes(program: ConeProgram) -> None:
    assert (program.batch, program.structure.n, program.structure.m) == (5, 4, 3)


def test_objective(program: ConeProgram, rng: np.random.Generator) -> None:
    x = rng.normal(size=(5, 4))
    P = reference(program.structure.P, program.P)
    expected = [0.5 * x[i] @ P[i] @ x[i] + program.q[i] @ x[i] + program.r[i] for i in range(5)]
    np.testing.assert_allclose(program.objective(x), expected, rtol=1e-13)


def test_select_by_slice_index_and_mask(program: ConeProgram) -> None:
    mask = np.array([True, False, True, False, False])
    for index in (slice(0, 3, 2), np.array([0, 2]), mask):
        part = program.select(index)
        assert part.batch == 2
        assert part.structure is program.structure
        for name in ("P", "q", "r", "A", "b"):
            np.testing.assert_array_equal(getattr(part, name), getattr(program, name)[[0, 2]])


@pytest.mark.parametrize("size", [1, 30, 5000])
def test_finite(size: int) -> None:
    values = np.linspace(-1.0, 1.0, 2 * size).reshape(2, size)
    assert is_finite(values)
    assert is_finite(1e200 * values)  # the squares overflow
    assert is_finite(values[:, :0])
    for wrong in (np.nan, np.inf, -np.inf):
        values[1, -1] = wrong
        assert not is_finite(values)
