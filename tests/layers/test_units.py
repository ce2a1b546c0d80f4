"""Equilibration of programs, with compiled kernels and in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from convexlayer.layers.units import Equilibration
from convexlayer.linalg.equilibration.ruiz import OWN_SCALING_RATIO
from convexlayer.program import Array, ConeProgram, Cones, Pattern, Structure
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


def test_well_scaled_programs_are_not_equilibrated() -> None:
    assert Equilibration.of(program()) is None
    assert Equilibration.of(in_units(program(), *random_units(0.5))) is None


@pytest.mark.parametrize("exponent", [3.0, 8.0])
def test_badly_scaled_programs_are_equilibrated(exponent: float) -> None:
    given = in_units(program(), *random_units(exponent))
    units = Equilibration.of(given)
    assert units is not None
    own = units.scale_program(given)
    A = own.structure.A
    column = np.maximum(own.structure.P.by_col(np.maximum, own.P, 0.0), A.by_col(np.maximum, own.A, 0.0))
    assert np.all((column > 0.05) & (column < 20.0))
    for scales in (units.d, units.e, units.sigma, units.c):
        np.testing.assert_array_equal(np.exp2(np.rint(np.log2(scales))), scales)


def test_badly_scaled_rows_are_equilibrated() -> None:
    """Minimise |x - 1|^2 / 2 over 1e-8 x_0 >= 0: only the row is badly scaled."""
    diagonal, row = Pattern((2, 2), np.arange(2), np.arange(2)), Pattern((1, 2), np.zeros(1, int), np.zeros(1, int))
    ones, zero = np.ones((1, 2)), np.zeros((1, 1))
    structure = Structure(diagonal, row, Cones(nonnegative=1))
    units = Equilibration.of(ConeProgram(structure, ones, -ones, np.zeros(1), np.full((1, 1), -1e-8), zero))
    assert units is not None
    assert np.all(units.d == 1.0)
    np.testing.assert_allclose(units.e, [[1e8]], rtol=0.5)


def test_well_scaled_elements_of_a_batch_are_not_equilibrated() -> None:
    d, e = random_units(8.0)
    d[1], e[1] = 1.0, 1.0
    units = Equilibration.of(in_units(program(), d, e))
    assert units is not None
    for scales in (units.d, units.e, units.sigma, units.c):
        assert np.all(scales[1] == 1.0)
        assert np.any(scales[0] != 1.0)


def test_nonfinite_elements_are_not_equilibrated() -> None:
    given = in_units(program(), *random_units(8.0))
    for name in ("P", "q", "A", "b"):
        for value in (np.nan, np.inf):
            broken = in_units(given, np.ones((BATCH, N)), np.ones((BATCH, CONES.m)))
            getattr(broken, name)[2, 0] = value
            units = Equilibration.of(broken)
            assert units is not None
            assert np.all(units.d[2] == 1.0)
            assert np.any(units.d[3] != 1.0)


def test_compiled_and_portable_scales_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    given = in_units(program(), *random_units(7.0))
    found = Equilibration.of(given)
    monkeypatch.setattr(kernel_cache, "ready", lambda: False)
    portable = Equilibration.of(given)
    assert found is not None
    assert portable is not None
    for name in ("d", "e", "sigma", "c"):
        np.testing.assert_array_equal(getattr(found, name), getattr(portable, name))


def test_large_right_hand_sides_are_equilibrated() -> None:
    given = program()
    large = ConeProgram(given.structure, given.P, given.q, given.r, given.A, 10.0 * OWN_SCALING_RATIO * given.b)
    units = Equilibration.of(large)
    assert units is not None
    assert np.all(units.sigma > 1e3)
