"""Scaling of programs, with compiled kernels and in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from convexlayer.diff import SolutionCotangent, SolutionTangent
from convexlayer.layers.scaling import Scaling
from convexlayer.linalg.equilibration.ruiz import OWN_SCALING_RATIO
from convexlayer.program import Array, ConeProgram, Cones, Pattern, ProgramCotangent, Structure
from convexlayer.runtime import kernel_cache

CONES = Cones(zero=1, nonnegative=3, second_order=(3,))
N, BATCH = 4, 6


def program(seed: int = 0) -> ConeProgram:
    rng, m = np.random.default_rng(seed), CONES.m
    P, A = Pattern((N, N), np.arange(N), np.arange(N)), Pattern((m, N), *(np.indices((m, N)).reshape(2, -1, order="F")))
    return ConeProgram(
        Structure(P, A, CONES),
        P=rng.uniform(0.5, 2.0, (BATCH, N)),
        q=rng.uniform(0.5, 2.0, (BATCH, N)),
        r=np.zeros(BATCH),
        A=rng.uniform(0.5, 2.0, (BATCH, m * N)),
        b=rng.uniform(0.5, 2.0, (BATCH, m)),
    )


def in_units(given: ConeProgram, d: Array, e: Array) -> ConeProgram:
    P, A = given.structure.P, given.structure.A
    return ConeProgram(
        given.structure,
        P=given.P * d[:, P.rows] * d[:, P.cols],
        q=given.q * d,
        r=given.r,
        A=given.A * e[:, A.rows] * d[:, A.cols],
        b=given.b * e,
    )


def random_units(exponent: float) -> tuple[Array, Array]:
    rng = np.random.default_rng(1)
    d, e = (10.0 ** rng.uniform(-exponent, exponent, (BATCH, size)) for size in (N, CONES.m))
    e[:, 4:] = e[:, 4:5]  # one scale per block of a curved cone
    return d, e


def scaling_of(given: ConeProgram) -> Scaling:
    return Scaling.of(given, np.ones(given.batch))[0]


def factors(scaling: Scaling) -> tuple[Array, Array, Array, Array]:
    """d, e, sigma and c of programs of which some are equilibrated."""
    assert scaling.d is not None
    assert scaling.e is not None
    assert scaling.sigma is not None
    return scaling.d, scaling.e, scaling.sigma, scaling.c


def test_well_scaled_programs_are_not_equilibrated() -> None:
    for given in (program(), in_units(program(), *random_units(0.5))):
        scaling, own = Scaling.of(given, np.full(BATCH, 4.0))
        assert own is given
        assert scaling.d is None
        np.testing.assert_array_equal(scaling.c, 4.0)


@pytest.mark.parametrize("exponent", [3.0, 8.0])
def test_badly_scaled_programs_are_equilibrated(exponent: float) -> None:
    given = in_units(program(), *random_units(exponent))
    scaling, own = Scaling.of(given, np.ones(BATCH))
    A = own.structure.A
    column = np.maximum(own.structure.P.by_col(np.maximum, own.P, 0.0), A.by_col(np.maximum, own.A, 0.0))
    assert np.all((column > 0.05) & (column < 20.0))
    for scales in factors(scaling):
        np.testing.assert_array_equal(np.exp2(np.rint(np.log2(scales))), scales)


def test_badly_scaled_rows_are_equilibrated() -> None:
    """Minimise |x - 1|^2 / 2 over 1e-8 x_0 >= 0: only the row is badly scaled."""
    diagonal, row = Pattern((2, 2), np.arange(2), np.arange(2)), Pattern((1, 2), np.zeros(1, int), np.zeros(1, int))
    ones, zero = np.ones((1, 2)), np.zeros((1, 1))
    structure = Structure(diagonal, row, Cones(nonnegative=1))
    d, e, *_ = factors(scaling_of(ConeProgram(structure, ones, -ones, np.zeros(1), np.full((1, 1), -1e-8), zero)))
    assert np.all(d == 1.0)
    np.testing.assert_allclose(e, [[1e8]], rtol=0.5)


def test_well_scaled_elements_of_a_batch_are_not_equilibrated() -> None:
    d, e = random_units(8.0)
    d[1], e[1] = 1.0, 1.0
    for scales in factors(scaling_of(in_units(program(), d, e))):
        assert np.all(scales[1] == 1.0)
        assert np.any(scales[0] != 1.0)


def test_nonfinite_elements_are_not_equilibrated() -> None:
    given = in_units(program(), *random_units(8.0))
    for name in ("P", "q", "A", "b"):
        for value in (np.nan, np.inf):
            broken = in_units(given, np.ones((BATCH, N)), np.ones((BATCH, CONES.m)))
            getattr(broken, name)[2, 0] = value
            d, *_ = factors(scaling_of(broken))
            assert np.all(d[2] == 1.0)
            assert np.any(d[3] != 1.0)


def test_compiled_and_portable_scales_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    given = in_units(program(), *random_units(7.0))
    found = factors(scaling_of(given))
    monkeypatch.setattr(kernel_cache, "ready", lambda: False)
    for compiled, portable in zip(found, factors(scaling_of(given)), strict=True):
        np.testing.assert_array_equal(compiled, portable)


@pytest.mark.parametrize("exponent", [0.0, 7.0])
def test_scaling_of_tangents_and_cotangents_are_adjoint(exponent: float) -> None:
    """<scale(dp), g> = <dp, scale'(g)> for programs, and the same for solutions."""
    rng, given = np.random.default_rng(4), in_units(program(), *random_units(exponent))
    scaling, _ = Scaling.of(given, np.exp2(np.arange(BATCH)))
    sizes = (N, CONES.m, N, CONES.m)
    x, y, l, v = (rng.normal(size=(BATCH, size)) for size in sizes)  # noqa: E741 (the name in the mathematics)
    cotangent = ProgramCotangent(x, y, l, v, rng.normal(size=BATCH))
    left = cotangent.inner(scaling.scale_program(given))
    np.testing.assert_allclose(left, scaling.pull_program(cotangent).inner(given), rtol=1e-12)
    moved = SolutionTangent(*(rng.normal(size=(BATCH, size)) for size in sizes[:2] + sizes[3:]))
    pulled = SolutionCotangent(*(rng.normal(size=(BATCH, size)) for size in sizes[:2] + sizes[3:]))
    left, right = (
        np.sum(np.concatenate([getattr(a, name) * getattr(b, name) for name in "xys"], axis=1), axis=1)
        for a, b in ((scaling.unscale_tangent(moved), pulled), (moved, scaling.pull_solution(pulled)))
    )
    np.testing.assert_allclose(left, right, rtol=1e-10)


def test_large_right_hand_sides_are_equilibrated() -> None:
    given = program()
    large = ConeProgram(given.structure, given.P, given.q, given.r, given.A, 10.0 * OWN_SCALING_RATIO * given.b)
    assert np.all(factors(scaling_of(large))[2] > 1e3)
