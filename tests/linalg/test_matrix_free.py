"""Matrix-free systems against stored ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import final

import numpy as np
import pytest

from convexlayer.linalg import (
    EPS,
    RESIDUAL_TOL,
    SINGULAR,
    AbstractInverse,
    AbstractMatrix,
    FactoredInverse,
    KrylovInverse,
    MatrixFree,
    MatrixFreeFactor,
)
from convexlayer.linalg.matrix_free import MAX_NULL_DIMENSION
from convexlayer.linalg.null_space import INITIAL_VECTORS
from convexlayer.program import Array

from .matrices import SIGNS, M, N, quasi_definite

SIZE = N + M

Make = Callable[[Array], AbstractInverse]


def factored(E: Array) -> AbstractInverse:
    inverse = np.linalg.inv(E + EPS * np.diag(SIGNS))
    return FactoredInverse(lambda z: E @ z, lambda z: inverse @ z, SIZE)


def given(inverse: AbstractInverse) -> AbstractInverse:
    return inverse


def krylov(E: Array, limit: int = 500) -> AbstractInverse:
    return KrylovInverse(lambda z: E @ z, SIZE, limit)


@pytest.fixture(params=[factored, krylov], ids=["factored", "krylov"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@final
class Stored(AbstractMatrix):
    """A stored matrix as an ``AbstractMatrix``."""

    def __init__(self, E: Array) -> None:
        self.E = E

    def multiply(self, x: Array) -> Array:
        return np.asarray(self.E @ x)

    def terms(self, x: Array) -> Array:
        return np.asarray(np.abs(self.E) @ np.abs(x))


def of(E: Array, *inverses: Make) -> MatrixFree:
    scale = np.geomspace(0.5, 2.0, SIZE)
    return MatrixFree(scale, Stored(E), [partial(made, E) for made in inverses])


def unscaled(E: Array) -> Array:
    """K of E = S K S."""
    scale = np.geomspace(0.5, 2.0, SIZE)
    return E / scale / scale[:, None]


def with_a_null_direction(rng: np.random.Generator) -> tuple[Array, Array]:
    """A matrix whose last two rows (and columns) are equal, and its null direction, largest entry 1."""
    E = quasi_definite(rng, 1)[0]
    E[-1, :N] = E[-2, :N]
    E[:N, -1] = E[:N, -2]
    E[-2:, -2:] = 0.0
    direction = np.zeros(SIZE)
    direction[-2:] = [1.0, -1.0]
    return E, direction


def test_regular_systems(make: Make, rng: np.random.Generator) -> None:
    E = quasi_definite(rng, 3)
    factor = MatrixFreeFactor([of(each, make) for each in E], SIZE)
    z = rng.normal(size=(3, SIZE))
    rhs = np.stack([unscaled(each) @ v for each, v in zip(E, z, strict=True)])
    solved, residual = factor.refine(rhs)
    assert np.all(residual <= RESIDUAL_TOL)
    np.testing.assert_allclose(solved, z, atol=1e-9)
    true = np.linalg.cond(E)
    assert np.all((factor.condition <= 1.1 * true) & (factor.condition >= 0.02 * true))


def test_a_null_direction_is_found(make: Make, rng: np.random.Generator) -> None:
    E, null = with_a_null_direction(rng)
    factor = MatrixFreeFactor([of(E, make), of(quasi_definite(rng, 1)[0], make)], SIZE)
    singular = factor.condition >= SINGULAR
    np.testing.assert_array_equal(singular, [True, False])
    direction = factor.null_direction[0]
    scaled = np.geomspace(0.5, 2.0, SIZE) * null
    np.testing.assert_allclose(direction * np.sign(direction[-1]), -scaled / np.max(np.abs(scaled)), atol=1e-5)


def test_least_squares_solutions_of_minimum_norm(make: Make, rng: np.random.Generator) -> None:
    E, _ = with_a_null_direction(rng)
    factor = MatrixFreeFactor([of(quasi_definite(rng, 1)[0], make), of(E, make)], SIZE)
    for rhs, consistent in ((unscaled(E) @ rng.normal(size=SIZE), True), (rng.normal(size=SIZE), False)):
        solved, residual = factor.minimum_norm(np.stack([rhs, rhs]), np.array([1]))
        expected = np.linalg.pinv(unscaled(E), rcond=1e-12) @ rhs
        np.testing.assert_allclose(solved[0], expected, atol=1e-8 * np.max(np.abs(expected)))
        assert (residual[0] <= RESIDUAL_TOL) is np.bool_(consistent)


def test_null_spaces_are_computed_once(make: Make, rng: np.random.Generator) -> None:
    """The last three rows are equal, so the null space has dimension two."""
    E = quasi_definite(rng, 1)[0]
    E[-3:-1, :N] = E[-1, :N]
    E[:N, -3:-1] = E[:N, [-1]]
    E[-3:, -3:] = 0.0
    factor = MatrixFreeFactor([of(E, make)], SIZE)
    (space,) = factor.null_spaces(np.array([0]))
    assert space.basis.shape == (2, SIZE)
    np.testing.assert_allclose(space.basis @ space.basis.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(unscaled(E) @ space.basis.T, 0.0, atol=1e-11)
    assert factor.null_spaces(np.array([0]))[0] is space


def test_random_members_represent_a_large_null_space(make: Make, rng: np.random.Generator) -> None:
    """Null spaces of dimension 80, above the limit, and 20, below it."""
    for dimension, members in ((MAX_NULL_DIMENSION + 16, INITIAL_VECTORS), (20, 20)):
        size = dimension + SIZE
        Q = np.linalg.qr(rng.normal(size=(size, size)))[0]
        E = Q[:, dimension:] @ quasi_definite(rng, 1)[0] @ Q[:, dimension:].T
        product = lambda z, E=E: E @ z  # noqa: E731
        inverse = np.linalg.inv(E + EPS * np.eye(size))
        made = (
            KrylovInverse(product, size, 500) if make is krylov else FactoredInverse(product, inverse.__matmul__, size)
        )
        factor = MatrixFreeFactor([MatrixFree(np.ones(size), Stored(E), [partial(given, made)])], size)
        assert factor.condition[0] >= SINGULAR
        (space,) = factor.null_spaces(np.array([0]))
        assert space.certain
        assert space.basis.shape == (members, size)
        np.testing.assert_allclose(space.basis @ space.basis.T, np.eye(members), atol=1e-12)
        np.testing.assert_allclose(E @ space.basis.T, 0.0, atol=1e-11)
        seen = np.abs(space.basis @ Q[:, :dimension])  # random members have components along every null direction
        assert np.all(seen.max(axis=0) > 1e-3)


def test_null_space_is_not_certain_if_minres_does_not_converge(rng: np.random.Generator) -> None:
    """MINRES with too few products: K counts as singular, and its null space is not claimed to be empty."""
    factor = MatrixFreeFactor([of(quasi_definite(rng, 1)[0], lambda E: krylov(E, limit=4))], SIZE)
    assert factor.condition[0] >= SINGULAR
    (space,) = factor.null_spaces(np.array([0]))
    assert not space.certain
    assert len(space.basis) == 0


def test_null_space_is_not_certain_if_the_solves_do_not_converge(rng: np.random.Generator) -> None:
    """The probe converges at its low accuracy, but the solves that would determine the null space do not."""
    E, _ = with_a_null_direction(rng)
    inverse = krylov(E)
    count = iter(range(100))
    slow = KrylovInverse(lambda z: E @ z, SIZE, 3)

    @final
    class Late(AbstractInverse):
        target = inverse.target

        def solve(self, rhs: Array, size: float) -> tuple[Array, bool]:
            next(count)
            return slow.solve(rhs, size)

        def probe(self) -> tuple[float, Array] | None:
            return inverse.probe()

    factor = MatrixFreeFactor([of(E, lambda E: Late())], SIZE)
    assert factor.condition[0] >= SINGULAR
    (space,) = factor.null_spaces(np.array([0]))
    assert not space.certain
    assert next(count) <= 2 * INITIAL_VECTORS  # few solves are wasted


def test_the_next_inverse_is_used_if_one_does_not_converge(rng: np.random.Generator) -> None:
    E = quasi_definite(rng, 1)[0]
    asked: list[str] = []

    def short(E: Array) -> AbstractInverse:
        asked.append("short")
        return krylov(E, limit=3)

    def long(E: Array) -> AbstractInverse:
        asked.append("long")
        return factored(E)

    rhs = rng.normal(size=SIZE)
    element = of(E, short, long)
    solved, residual = element.refine(rhs, 12)
    assert asked == ["short", "long"]
    assert residual <= 1e-13
    np.testing.assert_allclose(unscaled(E) @ solved, rhs, atol=1e-10)
    element.refine(rhs, 12)
    assert asked == ["short", "long"]  # the switch is permanent
    assert of(E, short, long).probed[0] < SINGULAR
    condition, _ = of(E, short).probed
    assert condition >= SINGULAR  # without an estimate K counts as singular


def test_nonfinite_elements_and_right_hand_sides(make: Make, rng: np.random.Generator) -> None:
    E = quasi_definite(rng, 1)[0]
    factor = MatrixFreeFactor([of(E, make), None, of(E, make)], SIZE)
    rhs = rng.normal(size=(3, SIZE))
    rhs[2, 0] = np.inf
    solved, residual = factor.refine(rhs)
    assert np.all(np.isfinite(solved[0]))
    assert np.all(np.isnan(solved[1:]))
    np.testing.assert_array_equal(np.isnan(residual), [False, True, True])
    np.testing.assert_array_equal(np.isnan(factor.condition), [False, True, False])
    assert np.all(np.isnan(factor.null_direction[1]))


def test_zero_right_hand_side_and_empty_batch(make: Make, rng: np.random.Generator) -> None:
    solved, residual = MatrixFreeFactor([of(quasi_definite(rng, 1)[0], make)], SIZE).refine(np.zeros((1, SIZE)))
    np.testing.assert_array_equal(solved, 0.0)
    np.testing.assert_array_equal(residual, 0.0)
    empty = MatrixFreeFactor([], SIZE)
    assert empty.refine(np.zeros((0, SIZE)))[0].shape == empty.null_direction.shape == (0, SIZE)
    assert empty.condition.shape == (0,)
    assert empty.product(np.zeros((0, SIZE))).shape == empty.terms(np.zeros((0, SIZE))).shape == (0, SIZE)
