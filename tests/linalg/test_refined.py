"""Refined solves: accuracy for badly scaled and ill-conditioned systems, detection of singular ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from convexlayer.linalg import RESIDUAL_TOL, SINGULAR, AbstractFactoriser, null_space
from convexlayer.program import Array, Pattern

from .matrices import FACTORISERS, M, N, quasi_definite, refined, times

Make = Callable[[Pattern, Array], AbstractFactoriser]


@pytest.fixture(params=list(FACTORISERS))
def make(request: pytest.FixtureRequest) -> Make:
    return FACTORISERS[request.param]


def regular(rng: np.random.Generator, batch: int) -> Array:
    K = quasi_definite(rng, batch)
    assert np.max(np.linalg.cond(K)) < 1e3
    return K


def with_duplicate_rows(rng: np.random.Generator, batch: int) -> Array:
    """The last two rows (and columns) are equal, so that their difference spans the null space."""
    K = quasi_definite(rng, batch)
    K[:, -1, :N] = K[:, -2, :N]
    K[:, :N, -1] = K[:, :N, -2]
    K[:, -2:, -2:] = 0.0
    return K


def null_direction(K: Array) -> Array:
    direction = np.zeros((len(K), N + M))
    direction[:, -2:] = [1.0, -1.0]
    np.testing.assert_array_equal(times(K, direction), 0.0)
    return direction / np.sqrt(2.0)


def with_spectrum(rng: np.random.Generator, smallest: float, size: int = 15) -> Array:
    """A positive definite matrix (1, size, size) with eigenvalues from `smallest` to 1."""
    Q = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return ((Q * np.geomspace(smallest, 1.0, size)) @ Q.T)[None]


def test_regular_systems_are_solved_to_rounding(make: Make, rng: np.random.Generator) -> None:
    K, z = regular(rng, 4), rng.normal(size=(4, N + M))
    solved, residual = refined(K, make).refine(times(K, z))
    assert np.all(residual <= 1e-14)
    np.testing.assert_allclose(solved, z, atol=1e-12)


@pytest.mark.parametrize("span", [1e3, 1e6])
def test_rows_scaled_by_up_to_1e12(make: Make, rng: np.random.Generator, span: float) -> None:
    scale = np.geomspace(1.0 / span, span, N + M)[rng.permutation(N + M)]
    K = regular(rng, 3) * scale * scale[:, None]
    z = rng.normal(size=(3, N + M)) / scale
    factor = refined(K, make)
    solved, residual = factor.refine(times(K, z))
    assert np.all(residual <= 1e-10)
    np.testing.assert_allclose(solved * scale, z * scale, atol=1e-9)
    assert np.all(factor.refine(rng.normal(size=z.shape))[1] <= 1e-10)
    assert np.all(factor.condition < 1e4)


@pytest.mark.parametrize("smallest", [1e-1, 1e-3, 1e-5])
def test_ill_conditioned_systems(make: Make, rng: np.random.Generator, smallest: float) -> None:
    K = with_spectrum(rng, smallest)
    z = rng.normal(size=(1, K.shape[1]))
    solved, residual = refined(K, make, np.ones(K.shape[1])).refine(times(K, z))
    assert np.all(residual <= 1e-10)
    np.testing.assert_allclose(solved, z, atol=1e-13 / smallest)


@pytest.mark.parametrize("smallest", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_condition_is_within_a_factor_of_ten(make: Make, rng: np.random.Generator, smallest: float) -> None:
    for _ in range(20):
        K = with_spectrum(rng, smallest)
        scale = 1.0 / np.sqrt(np.max(np.abs(K[0]), axis=0))
        truth = np.linalg.cond(K[0] * scale * scale[:, None])
        estimate = float(refined(K, make, np.ones(K.shape[1])).condition[0])
        assert truth / 10.0 <= estimate <= truth * 10.0


def test_singular_systems_are_detected(make: Make, rng: np.random.Generator) -> None:
    K = np.concatenate([with_duplicate_rows(rng, 2), regular(rng, 1)])
    factor = refined(K, make)
    np.testing.assert_array_equal(factor.condition >= SINGULAR, [True, True, False])
    direction = factor.null_direction[:2]
    np.testing.assert_allclose(np.max(np.abs(direction), axis=1), 1.0)
    np.testing.assert_allclose(times(K[:2], direction), 0.0, atol=1e-7)


def test_null_direction_of_a_badly_scaled_matrix(make: Make, rng: np.random.Generator) -> None:
    scale = np.geomspace(1e-4, 1e4, N + M)
    K = with_duplicate_rows(rng, 2) * scale * scale[:, None]
    direction = refined(K, make).null_direction
    np.testing.assert_allclose(direction[:, -1] * scale[-1], -direction[:, -2] * scale[-2], rtol=1e-6)


def test_consistent_singular_systems_are_solved(make: Make, rng: np.random.Generator) -> None:
    K = with_duplicate_rows(rng, 4)
    rhs = times(K, rng.normal(size=(4, N + M)))
    solved, residual = refined(K, make).refine(rhs)
    assert np.all(residual <= RESIDUAL_TOL)
    np.testing.assert_allclose(times(K, solved), rhs, atol=1e-9)


@pytest.mark.parametrize("span", [1.0, 1e4])
def test_minimum_norm(make: Make, rng: np.random.Generator, span: float) -> None:
    K = with_duplicate_rows(rng, 4)
    null = null_direction(K)
    scale = np.geomspace(1.0, span, N + M)
    scale[-2:] = scale[-1]  # duplicate rows remain duplicates
    K = K * scale * scale[:, None]
    z = rng.normal(size=(4, N + M)) / scale
    least = z - np.sum(z * null, axis=1, keepdims=True) * null
    index = np.array([3, 1])
    rhs = times(K, z)
    solved, residual = refined(K, make).minimum_norm(rhs, index)
    assert np.all(residual <= RESIDUAL_TOL)
    np.testing.assert_allclose(solved * scale, least[index] * scale, atol=1e-9)
    inconsistent, distance = refined(K, make).minimum_norm(rhs + 3.0 * null * np.max(np.abs(rhs)), index)
    assert np.all(distance > 1e-3)
    np.testing.assert_allclose(inconsistent * scale, least[index] * scale, atol=1e-7)


@pytest.mark.parametrize("slow", [1e-6, 2e-8, 1e-9])
def test_null_direction_beside_slow_directions(make: Make, rng: np.random.Generator, slow: float) -> None:
    """A slow direction does not hide the null direction."""
    Q = np.linalg.qr(rng.normal(size=(15, 15)))[0]
    null = np.zeros(15)
    null[:2] = [1.0, -1.0]
    Q[:, 0] = null / np.sqrt(2.0)
    Q = np.linalg.qr(Q)[0]
    spectrum = np.ones(15)
    spectrum[:2] = [0.0, slow]
    K = (Q * spectrum) @ Q.T
    K[:, 1] = K[:, 0]  # exactly equal
    K[1] = K[0]
    (space,) = refined(K[None], make, np.ones(15)).null_spaces(np.array([0]))
    assert space.complete
    assert space.basis.shape == (1, 15)
    np.testing.assert_allclose(np.abs(space.basis[0] @ null), np.sqrt(2.0), atol=1e-6)


def test_large_null_spaces_are_projected_out_by_iteration(
    make: Make, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a basis would be too expensive; with unit scales the result is the minimum-norm solution."""
    monkeypatch.setattr(null_space, "MAX_BASIS_FLOPS", 0.0)
    n, m = 8, 12
    A = rng.normal(size=(6, n))
    A = np.concatenate([A, A])  # six dependent rows
    K = np.block([[np.eye(n), A.T], [A, np.zeros((m, m))]])[None]
    factor = refined(K, make, np.concatenate([np.ones(n), -np.ones(m)]))
    (some,) = factor.null_directions(np.array([0]))
    assert not some.complete
    np.testing.assert_allclose(some.basis @ K[0], 0.0, atol=1e-9)
    z = rng.normal(size=(1, n + m))
    solved, residual = factor.minimum_norm(times(K, z), np.array([0]))
    assert np.all(residual <= RESIDUAL_TOL)
    scale = factor.equilibrated(np.array([0]))[0]
    expected = np.linalg.pinv(K[0] * scale * scale[0][:, None]) @ (scale[0] * times(K, z)[0])
    np.testing.assert_allclose(solved[0], scale[0] * expected, atol=1e-7)


def test_zero_right_hand_side(make: Make, rng: np.random.Generator) -> None:
    rhs = np.zeros((2, N + M))
    rhs[1] = 1.0
    solved, residual = refined(regular(rng, 2), make).refine(rhs)
    np.testing.assert_array_equal(solved[0], 0.0)
    assert residual[0] == 0.0
    assert 0.0 < residual[1] <= 1e-14


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_right_hand_side(make: Make, rng: np.random.Generator, value: float) -> None:
    K, z = regular(rng, 3), rng.normal(size=(3, N + M))
    rhs = times(K, z)
    rhs[1, 0] = value
    solved, residual = refined(K, make).refine(rhs)
    np.testing.assert_allclose(solved[[0, 2]], z[[0, 2]], atol=1e-12)
    assert np.all(np.isnan(solved[1]))
    assert np.isnan(residual[1])


@pytest.mark.parametrize("magnitude", [1e-200, 1e200])
def test_solution_scales_with_the_right_hand_side(make: Make, rng: np.random.Generator, magnitude: float) -> None:
    K, z = regular(rng, 2), rng.normal(size=(2, N + M))
    solved, residual = refined(K, make).refine(magnitude * times(K, z))
    assert np.all(residual <= 1e-14)
    np.testing.assert_allclose(solved / magnitude, z, atol=1e-12)


def test_element_of_a_batch_equals_the_element_alone(make: Make, rng: np.random.Generator) -> None:
    K, rhs = quasi_definite(rng, 3), rng.normal(size=(3, N + M))
    together = refined(K, make)
    for i in range(3):
        alone = refined(K[i : i + 1], make)
        np.testing.assert_allclose(alone.refine(rhs[i : i + 1])[0][0], together.refine(rhs)[0][i], atol=1e-13)
        np.testing.assert_allclose(alone.condition[0], together.condition[i], rtol=1e-9)


def test_sparse_matrix_with_many_dependent_rows(make: Make, rng: np.random.Generator) -> None:
    """Many dependent rows, whose pivots are as small as the regularisation."""
    n, m = 60, 40
    for _ in range(10):
        K = quasi_definite(rng, 1, n=n, m=m, density=0.08)
        K[:, n + m // 2 :, :n] = K[:, n : n + m // 2, :n]
        K[:, :n, n + m // 2 :] = K[:, :n, n : n + m // 2]
        K[:, range(n, n + m), range(n, n + m)] = 0.0
        signs = np.concatenate([np.ones(n), -np.ones(m)])
        rhs = times(K, rng.normal(size=(1, n + m)))
        assert refined(K, make, signs).refine(rhs)[1][0] <= 1e-8


@pytest.mark.parametrize("make", [FACTORISERS["dense"], FACTORISERS["lanes"]], ids=["dense", "lanes"])
def test_matrix_without_rows(make: Make) -> None:
    factor = refined(np.zeros((2, 0, 0)), make, np.zeros(0))
    solved, residual = factor.refine(np.zeros((2, 0)))
    assert solved.shape == factor.null_direction.shape == (2, 0)
    np.testing.assert_array_equal(residual, 0.0)
    assert np.all(factor.condition < SINGULAR)


def test_zero_matrix_is_singular(make: Make) -> None:
    rhs = np.ones((1, N + M))
    factor = refined(np.zeros((1, N + M, N + M)), make)
    assert factor.condition[0] >= SINGULAR
    solved, residual = factor.minimum_norm(rhs, np.array([0]))
    np.testing.assert_array_equal(solved, 0.0)
    np.testing.assert_array_equal(residual, 1.0)
