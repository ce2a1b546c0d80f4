"""Fixtures of the cone tests: the cones and independent membership tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convexlayer.cones import (
    AbstractCone,
    Exponential,
    Nonnegative,
    PositiveSemidefinite,
    Power,
    SecondOrder,
    Zero,
)
from convexlayer.program import Array

POINTS = 300
ALPHA = np.random.default_rng(5).uniform(0.05, 0.95, POINTS)

Membership = Callable[[Array], NDArray[np.bool_]]


@dataclass(frozen=True)
class Case:
    """A cone, independent membership tests of it and its dual, and a direction in the interior of both.

    A point is within `distance` of the cone if it is a member after that step along the unit `interior`.
    """

    cone: AbstractCone
    in_primal: Membership
    in_dual: Membership
    interior: Array

    def near_primal(self, s: Array, distance: Array) -> NDArray[np.bool_]:
        """Whether s (N, size) is within distance (N,) of K."""
        return self.in_primal(s + distance[:, None] * self.interior)

    def near_dual(self, y: Array, distance: Array) -> NDArray[np.bool_]:
        """Whether y (N, size) is within distance (N,) of K*."""
        return self.in_dual(y + distance[:, None] * self.interior)


def check_depth(margin: Callable[[Array], Array], w: Array, rays: Array) -> None:
    """Check that the margin of interior w is a lower bound of the distance to the boundary rays, exact if small."""
    units = rays / np.linalg.norm(rays, axis=-1, keepdims=True)

    def distances(x: Array) -> tuple[Array, Array]:
        feet = np.maximum(units @ x, 0.0)[:, None] * units
        return feet, np.linalg.norm(x - feet, axis=-1)

    feet, lengths = distances(w)
    nearest, size = np.argmin(lengths), np.linalg.norm(w)
    assert 1e-3 * size <= margin(w) <= lengths[nearest] * (1 + 1e-4)
    close = feet[nearest] + 8e-4 * size / lengths[nearest] * (w - feet[nearest])
    np.testing.assert_allclose(margin(close), np.min(distances(close)[1]), rtol=1e-2)


def matrices(x: Array, order: int) -> Array:
    """The symmetric matrices of scaled lower triangles, assembled entry by entry."""
    out = np.zeros((*x.shape[:-1], order, order))
    position = 0
    for col in range(order):
        for row in range(col, order):
            value = x[..., position] if row == col else x[..., position] / np.sqrt(2.0)
            out[..., row, col] = out[..., col, row] = value
            position += 1
    return out


def triangles(X: Array) -> Array:
    """The inverse of `matrices`."""
    order = X.shape[-1]
    pairs = [(row, col) for col in range(order) for row in range(col, order)]
    return np.stack([X[..., row, col] * (1.0 if row == col else np.sqrt(2.0)) for row, col in pairs], axis=-1)


def _nonnegative(x: Array) -> NDArray[np.bool_]:
    return np.asarray(np.all(x >= 0, axis=-1))


def _second_order(x: Array) -> NDArray[np.bool_]:
    return np.asarray(np.linalg.norm(x[..., 1:], axis=-1) <= x[..., 0])


def _psd(order: int) -> Case:
    def member(x: Array) -> NDArray[np.bool_]:
        return np.asarray(np.linalg.eigvalsh(matrices(x, order))[..., 0] >= 0)

    return Case(PositiveSemidefinite(order), member, member, triangles(np.eye(order) / np.sqrt(order)))


def _log(x: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(x, 0.0))


def _exponential_primal(s: Array) -> NDArray[np.bool_]:
    """Whether y log(z / y) >= x, in the interior of the half-spaces y > 0 and z > 0."""
    x, y, z = np.moveaxis(s, -1, 0)
    inside = (y > 0) & (z > 0)
    y, z = np.where(inside, y, 1.0), np.where(inside, z, 1.0)
    return np.asarray(inside & (y * (np.log(z) - np.log(y)) >= x))


def _exponential_dual(y: Array) -> NDArray[np.bool_]:
    """Whether y - x + x log(-x / z) >= 0, in the interior of the half-spaces x < 0 and z > 0."""
    x, v, z = np.moveaxis(y, -1, 0)
    inside = (x < 0) & (z > 0)
    a, z = np.where(inside, -x, 1.0), np.where(inside, z, 1.0)
    return np.asarray(inside & (v + a + a * (np.log(z) - np.log(a)) >= 0))


def power(alpha: Array) -> Case:
    """The power cones with these exponents."""
    exponents = np.stack((alpha, 1.0 - alpha), axis=-1)

    def member(x: Array, weights: Any) -> NDArray[np.bool_]:
        inside = np.all(x[..., :2] > 0, axis=-1)
        head = np.where(inside[..., None], x[..., :2], 1.0)
        return np.asarray(inside & (np.sum(exponents * np.log(head / weights), axis=-1) >= _log(np.abs(x[..., 2]))))

    interior = np.array([1.0, 1.0, 0.0]) / np.sqrt(2.0)
    return Case(Power(alpha), lambda s: member(s, 1.0), lambda y: member(y, exponents), interior)


def _cases() -> dict[str, Case]:
    cases = {
        "zero": Case(Zero(), lambda s: s[..., 0] == 0, lambda y: np.isfinite(y[..., 0]), np.zeros(1)),
        "nonnegative": Case(Nonnegative(), _nonnegative, _nonnegative, np.ones(1)),
        "exponential": Case(
            Exponential(), _exponential_primal, _exponential_dual, np.array([-1.0, 1.0, 1.0]) / np.sqrt(3.0)
        ),
        "power": power(ALPHA),
    }
    for size in (1, 2, 3, 7):
        cases[f"second_order_{size}"] = Case(SecondOrder(size), _second_order, _second_order, np.eye(size)[0])
    for order in (1, 2, 4):
        cases[f"psd_{order}"] = _psd(order)
    return cases


CASES = _cases()


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """Each cone in turn."""
    return CASES[request.param]
