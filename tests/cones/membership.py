"""Independent membership tests of every cone, as contracts to subclass with a cone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from convexlayer.cones import Power
from convexlayer.program import Array
from convexlayer.testing import ConeContract

Mask = NDArray[np.bool_]


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


class ZeroContract(ConeContract):
    def in_primal(self, s: Array) -> Mask:
        return np.asarray(np.all(s == 0, axis=-1))

    def in_dual(self, y: Array) -> Mask:
        return np.asarray(np.all(np.isfinite(y), axis=-1))


class NonnegativeContract(ConeContract):
    def in_primal(self, s: Array) -> Mask:
        return np.asarray(np.all(s >= 0, axis=-1))

    def in_dual(self, y: Array) -> Mask:
        return self.in_primal(y)


class SecondOrderContract(ConeContract):
    def in_primal(self, s: Array) -> Mask:
        return np.asarray(np.linalg.norm(s[..., 1:], axis=-1) <= s[..., 0])

    def in_dual(self, y: Array) -> Mask:
        return self.in_primal(y)


class SemidefiniteContract(ConeContract):
    def in_primal(self, s: Array) -> Mask:
        order = int(np.sqrt(2 * s.shape[-1]))
        return np.asarray(np.linalg.eigvalsh(matrices(s, order))[..., 0] >= 0)

    def in_dual(self, y: Array) -> Mask:
        return self.in_primal(y)


class ExponentialContract(ConeContract):
    def in_primal(self, s: Array) -> Mask:
        """Whether y log(z / y) >= x, in the interior of the half-spaces y > 0 and z > 0."""
        x, y, z = np.moveaxis(s, -1, 0)
        inside = (y > 0) & (z > 0)
        y, z = np.where(inside, y, 1.0), np.where(inside, z, 1.0)
        return np.asarray(inside & (y * (np.log(z) - np.log(y)) >= x))

    def in_dual(self, y: Array) -> Mask:
        """Whether y - x + x log(-x / z) >= 0, in the interior of the half-spaces x < 0 and z > 0."""
        x, v, z = np.moveaxis(y, -1, 0)
        inside = (x < 0) & (z > 0)
        a, z = np.where(inside, -x, 1.0), np.where(inside, z, 1.0)
        return np.asarray(inside & (v + a + a * (np.log(z) - np.log(a)) >= 0))


class PowerContract(ConeContract):
    """The power cones with exponents alpha, (points,)."""

    alpha: Array

    def in_primal(self, s: Array) -> Mask:
        return self._member(s, np.ones(2))

    def in_dual(self, y: Array) -> Mask:
        return self._member(y, self._exponents)

    def is_smooth_near(self, w: Array) -> Mask:
        """Near z = 0 the projection is smooth only on the scale of z."""
        return np.asarray(np.abs(w[:, -1]) > 0.1)

    @property
    def _exponents(self) -> Array:
        return np.stack((self.alpha, 1.0 - self.alpha), axis=-1)

    def _member(self, x: Array, weights: Array) -> Mask:
        inside = np.all(x[..., :2] > 0, axis=-1)
        head = np.where(inside[..., None], x[..., :2], 1.0)
        with np.errstate(divide="ignore"):
            z = np.log(np.abs(x[..., 2]))
        return np.asarray(inside & (np.sum(self._exponents * np.log(head / weights), axis=-1) >= z))


def power(exponents: Array) -> PowerContract:
    """The contract of the power cones with these exponents."""

    class Contract(PowerContract):
        cone = Power(exponents)
        alpha = exponents
        points = len(exponents)

    return Contract()
