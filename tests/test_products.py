"""Products of batches with sparse matrices, compiled and in NumPy, against dense arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from convexlayer import canonicalize
from convexlayer.program import ProgramCotangent
from convexlayer.runtime import kernel_cache
from convexlayer.sparse import EntriesOfSystem, ProgramBlocks, ProgramMatrix, entries_of_system, rotate_entries
from tests.families import family

BATCHES = (1, 3, 40)
RNG = np.random.default_rng()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test draws the same numbers, whichever tests ran before."""
    RNG.bit_generator.state = np.random.default_rng(3).bit_generator.state


@pytest.fixture(params=["compiled", "portable"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run with compiled kernels and in NumPy."""
    if request.param == "compiled":
        kernel_cache.prepare(wait=True)
    monkeypatch.setattr(kernel_cache, "ready", lambda: request.param == "compiled")
    return str(request.param)


def program_matrix(columns: int = 6) -> tuple[sp.csr_matrix, np.ndarray, tuple[int, ...]]:
    sizes = (9, 4, 1, 7, 3)
    dense = RNG.standard_normal((sum(sizes), columns)) * (RNG.random((sum(sizes), columns)) < 0.4)
    return sp.csr_matrix(dense), RNG.standard_normal(sum(sizes)), sizes


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("normalise", [False, True])
def test_program_data(form: str, batch: int, normalise: bool) -> None:
    matrix, constant, sizes = program_matrix()
    x = RNG.standard_normal((batch, 6)) * 10.0 ** RNG.uniform(-6, 6, (batch, 1))
    blocks, scale = ProgramMatrix(matrix, constant, sizes).times(x, normalise=normalise)
    expected = np.split(x @ matrix.toarray().T + constant, np.cumsum(sizes)[:-1], axis=1)
    if normalise:
        largest = np.maximum(np.abs(expected[0]).max(axis=1), np.abs(expected[1]).max(axis=1))
        assert np.all((largest / scale >= 0.7) & (largest / scale <= 1.42))
        np.testing.assert_array_equal(np.frexp(scale)[0], 0.5)
    else:
        np.testing.assert_array_equal(scale, 1.0)
    for block, value, divisor in zip(blocks, expected, [scale[:, None]] * 3 + [1.0, 1.0], strict=True):
        np.testing.assert_allclose(block * divisor, value, rtol=1e-13, atol=1e-13 * np.abs(x).max())


def test_a_zero_objective_is_not_scaled(form: str) -> None:
    matrix, constant, sizes = program_matrix()
    zero = sp.csr_matrix(sp.diags([0.0] * 13 + [1.0] * 11) @ matrix)
    constant[:13] = 0.0
    _, scale = ProgramMatrix(zero, constant, sizes).times(RNG.standard_normal((2, 6)), normalise=True)
    np.testing.assert_array_equal(scale, 1.0)


@pytest.mark.parametrize("batch", BATCHES)
def test_the_adjoint_of_program_data(form: str, batch: int) -> None:
    matrix, constant, sizes = program_matrix()
    made = ProgramMatrix(matrix, constant, sizes)
    blocks = ProgramBlocks(*(RNG.standard_normal((batch, size)) for size in sizes))
    stacked = np.concatenate(blocks, axis=1)
    expected = stacked @ matrix.toarray()
    np.testing.assert_allclose(made.adjoint(blocks), expected, atol=1e-13)
    wanted = np.array([True, False, False, True, True, False])
    np.testing.assert_allclose(made.adjoint(blocks, wanted), expected * wanted, atol=1e-13)


@pytest.mark.parametrize("batch", BATCHES)
def test_entries_of_a_system(form: str, batch: int) -> None:
    P, A, d = (
        RNG.standard_normal((batch, 4)),
        RNG.standard_normal((batch, 12)),
        RNG.integers(0, 2, (batch, 2)).astype(float),
    )
    where = EntriesOfSystem(
        P_source=np.array([3, 0]),
        P_place=np.array([8, 2]),
        A_source=np.array([3, 0, 7]),
        A_row=np.array([1, 1, 0]),
        A_place=np.array([5, 1, 0]),
        diagonal=np.array([7, 4]),
    )
    out = entries_of_system(where, P, A, d, 10)
    np.testing.assert_array_equal(out[:, [8, 2]], P[:, [3, 0]])
    np.testing.assert_array_equal(out[:, [5, 1, 0]], A[:, [3, 0, 7]] * d[:, [1, 1, 0]])
    np.testing.assert_array_equal(out[:, [7, 4]], d - 1.0)
    np.testing.assert_array_equal(out[:, [3, 6, 9]], 0.0)


@pytest.mark.parametrize("batch", BATCHES)
def test_entries_are_rotated(form: str, batch: int) -> None:
    values = RNG.standard_normal((batch, 12))
    blocks, size, columns = 2, 3, 2
    sources = RNG.integers(-1, 12, (blocks, size, columns))
    places = RNG.permutation(blocks * size * columns).reshape(blocks, size, columns)
    Q, root = RNG.standard_normal((batch, 4, size, size)), RNG.standard_normal((batch, 4, size))
    block = np.array([3, 1])
    rotated = np.zeros((batch, blocks * size * columns))
    rotate_entries(rotated, places, values, sources, Q, root, block)
    M = np.where(sources >= 0, values[:, sources], 0.0)
    expected = np.einsum("bki,bkji,bkjc->bkic", root[:, block], Q[:, block], M)
    np.testing.assert_allclose(rotated[:, places], expected, atol=1e-13)


@pytest.mark.parametrize("name", ["quadratic", "geometric_program", "simplex_projection"])
def test_compiled_and_portable_programs_and_adjoints_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_cache.prepare(wait=True)
    case = family(name)
    program = canonicalize(case.problem, case.parameters, case.outputs, gp=case.gp)
    features = program.features.apply(case.values(3), 3)
    sizes = program.structure.n, program.structure.m
    x, y, l, v = (RNG.standard_normal((3, size)) for size in 2 * sizes)  # noqa: E741 (the name in the mathematics)
    cotangent = ProgramCotangent(x, y, l, v, RNG.standard_normal(3))
    found = []
    for ready in (True, False):
        monkeypatch.setattr(kernel_cache, "ready", lambda ready=ready: ready)
        made, scale = program.normalised(features)
        wanted = np.arange(features.shape[1]) % 2 == 0
        pulled = [program.pullback(features, cotangent, wanted=mask) for mask in (None, wanted)]
        found.append([made.P, made.q, made.r, made.A, made.b, scale, *pulled])
    for mine, other in zip(*found, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)
