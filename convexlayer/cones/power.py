"""The power cone: x^alpha y^(1 - alpha) >= abs(z), x, y >= 0.

With v = -w, outside K and -K*, and with r = abs(s3), g = abs(y3), so that r + g = abs(v3):

    s1 y1 = alpha r g,   s2 y2 = (1 - alpha) r g,   s1 - y1 = v1,   s2 - y2 = v2,   s1^alpha s2^(1 - alpha) = r

(Hien, Differential properties of Euclidean projection onto power cone, 2015.) The unknown is x = logit(r / abs(v3)), in
which f(x) = log r - alpha log s1 - (1 - alpha) log s2 increases. Quantities that may underflow are kept as logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np
from array_api_compat import device
from numpy.typing import NDArray

from convexlayer.cones.base import AbstractCone, Array, BlockKind, ConePoint, Eigenbasis, namespace
from convexlayer.cones.compiled import compiled_eigenbasis, is_compiled
from convexlayer.cones.rays import boundary_distance, cross_product, depth_bound
from convexlayer.cones.roots import increasing_root
from convexlayer.errors import ProblemError

__all__ = ["Power"]

TINY = 1e-300
"""Lower bound of arguments of logarithms and of divisors."""

CENTRE, RADIUS = (math.sqrt(0.5), math.sqrt(0.5), 0.0), 0.49
"""A unit vector in the interior of K and K*, and the radius of a ball around it that both contain."""

LOG_ZERO = -1e6
"""Finite substitute for log 0 if v3 = 0; D is then its limit as v3 goes to 0."""

BRACKET_START, BRACKET_SLOPE = 100.0, 4.0
"""The root x is in the bracket +-(BRACKET_START - BRACKET_SLOPE log abs(v3)) / min(alpha, 1 - alpha)."""

MAX_LOG_RATIO = 700.0
"""Bound of log((1 - delta) / delta), so that its exponential is finite (the limit for doubles is 709)."""


class _Region(NamedTuple):
    """Region of w, and logarithms (..., 3) of abs(y) and abs(s), relative to max(abs(w)), in the curved region."""

    dual: Array  # w in K*
    polar: Array  # w in -K
    scale: Array
    log_y: Array
    log_s: Array
    y12: Array  # y1, y2 computed without logarithms


@final
class Power(AbstractCone):
    """K = {x^alpha y^(1 - alpha) >= abs(z)}, K* = {(x / alpha)^alpha (y / (1 - alpha))^(1 - alpha) >= abs(z)}.

    Args:
        alpha: exponents, each in (0, 1), one per block.

    Raises:
        ProblemError: an exponent is not in (0, 1).
    """

    size = 3

    def __init__(self, alpha: Sequence[float] | Array) -> None:
        self.alpha = np.asarray(alpha, dtype=np.float64)
        wrong = ~((self.alpha > 0) & (self.alpha < 1))
        if np.any(wrong):
            raise ProblemError(
                f"the exponents of power cones must be strictly between 0 and 1, got {self.alpha[wrong][0]}; "
                "with 0 or 1 the cone is abs(z) <= y or abs(z) <= x: write it so"
            )
        self._exponents = np.stack((self.alpha, 1.0 - self.alpha), axis=-1)

    @property
    def centre(self) -> NDArray[np.float64]:
        """A direction in the interior of K and K*."""
        return np.array(CENTRE)

    @property
    def recession_rows(self) -> NDArray[np.bool_]:
        """Only x and y may grow."""
        return np.array([True, True, False])

    def kinds(self, blocks: int, *, rank_two: bool) -> tuple[BlockKind, ...]:
        """One block per exponent."""
        return tuple(BlockKind("power", 3, exponent=exponent) for exponent in self.alpha.tolist())

    def at(self, w: Array) -> ConePoint[Eigenbasis]:
        """Pi_{K*}(w), (..., blocks, 3), and its derivative."""
        if is_compiled(w):
            return compiled_eigenbasis(self.kinds(len(self.alpha), rank_two=False), w, self._distance)
        xp = namespace(w)
        region = self._locate(xp, w)
        return ConePoint(_assemble(xp, w, region), lambda: self._eigenbasis(xp, w, region))

    def _distance(self, w: Array) -> Array:
        xp = namespace(w)
        return self._margin(xp, w, self._locate(xp, w))

    def _eigenbasis(self, xp: Any, w: Array, region: _Region) -> Eigenbasis:
        """Q = (y / norm y, s / norm s, their cross product), d = (1, 0, delta) in the curved region.

        (1 - delta) / delta = s1^2 s2^2 norm(y)^2 / (alpha (1 - alpha) abs(y3)^3 abs(s3) norm(s)^2)
        """
        sign = xp.copysign(xp.ones_like(w[..., 2:]), w[..., 2:])
        y, log_y = _unit(xp, region.log_y, sign)
        s, log_s = _unit(xp, region.log_s, -sign)
        s = s - y * xp.sum(y * s, axis=-1, keepdims=True)
        s = s / xp.linalg.vector_norm(s, axis=-1, keepdims=True)
        exponents = xp.asarray(self._exponents, device=device(w))
        log_ratio = 2.0 * (xp.sum(region.log_s[..., :2], axis=-1) + log_y - log_s) - xp.sum(xp.log(exponents), axis=-1)
        log_ratio = xp.clip(
            log_ratio - 3.0 * region.log_y[..., 2] - region.log_s[..., 2], -MAX_LOG_RATIO, MAX_LOG_RATIO
        )
        zero, one = xp.zeros_like(log_ratio), xp.ones_like(log_ratio)
        d = xp.stack((one, zero, 1.0 / (1.0 + xp.exp(log_ratio))), axis=-1)
        complement = xp.stack((zero, one, 1.0 / (1.0 + xp.exp(-log_ratio))), axis=-1)
        Q = xp.stack((y, s, cross_product(xp, y, s)), axis=-1)
        identity = xp.eye(3, dtype=w.dtype, device=device(w))
        flat = (region.dual | region.polar)[..., None]
        flat_d = xp.astype(region.dual, w.dtype)[..., None]
        return Eigenbasis(
            xp.where(flat[..., None], identity, Q),
            xp.where(flat, flat_d, d),
            xp.where(flat, 1.0 - flat_d, complement),
            lambda: self._margin(xp, w, region),
        )

    def _margin(self, xp: Any, w: Array, region: _Region) -> Array:
        """Distance of points with known region to the boundaries of K* and -K."""
        y = _assemble(xp, w, region)
        margin = xp.minimum(xp.linalg.vector_norm(y, axis=-1), xp.linalg.vector_norm(y - w, axis=-1))
        interior = region.dual | region.polar
        if xp.any(interior):
            exponents = xp.broadcast_to(xp.asarray(self._exponents, device=device(w)), (*w.shape[:-1], 2))
            margin[interior] = _depth(xp, w[interior], region.dual[interior], exponents[interior])
        return margin

    def _locate(self, xp: Any, w: Array) -> _Region:
        """Region of w, and the projection in the curved region (finite placeholder values in other regions)."""
        exponents = xp.asarray(self._exponents, device=device(w))
        scale = xp.max(xp.abs(w), axis=-1)
        safe_scale = xp.where(scale > 0, scale, 1.0)
        v = -w[..., :2] / safe_scale[..., None]
        z = xp.abs(w[..., 2]) / safe_scale
        log_z = xp.where(z > 0, xp.log(xp.maximum(z, TINY)), LOG_ZERO)
        log_v = xp.log(xp.maximum(xp.abs(v), TINY))
        primal_value = xp.sum(exponents * log_v, axis=-1)
        dual_value = xp.sum(exponents * (log_v - xp.log(exponents)), axis=-1)
        flat_z = z == 0
        polar = xp.all(v >= 0, axis=-1) & (flat_z | (xp.all(v > 0, axis=-1) & (primal_value >= log_z)))
        dual = xp.all(v <= 0, axis=-1) & (flat_z | (xp.all(v < 0, axis=-1) & (dual_value >= log_z))) & ~polar
        flat = dual | polar
        v, z = xp.where(flat[..., None], 0.0, v), xp.where(flat, 1.0, z)
        log_z = xp.where(flat, 0.0, log_z)
        return _Region(dual, polar, safe_scale, *_curved(xp, exponents, v, z, log_z))


def _curved(xp: Any, exponents: Array, v: Array, z: Array, log_z: Array) -> tuple[Array, Array, Array]:
    """Logarithms of abs(y) and abs(s), and (y1, y2) at the root, for (v1, v2), abs(v3) = z and its logarithm."""
    magnitude, positive = xp.abs(v), v >= 0
    square = v * v
    log_exponents = xp.log(exponents)

    def parts(x: Array) -> tuple[Array, Array, Array, Array]:
        """Logarithms of r, g, exponent r g, and the larger of s_i and y_i."""
        softplus = xp.log1p(xp.exp(-xp.abs(x)))
        log_r = log_z + xp.minimum(x, 0.0) - softplus
        log_g = log_z - xp.maximum(x, 0.0) - softplus
        log_product = log_exponents + (log_r + log_g)[..., None]
        large = 0.5 * (magnitude + xp.sqrt(square + 4.0 * xp.exp(log_product) + TINY))
        return log_r, log_g, log_product, xp.maximum(xp.log(large), 0.5 * log_product)

    def function(x: Array) -> tuple[Array, Array]:
        log_r, log_g, log_product, log_large = parts(x)
        log_s = xp.where(positive, log_large, log_product - log_large)
        ratio = xp.exp(log_product - 2.0 * log_large)
        share = xp.sum(exponents * xp.where(positive, ratio, 1.0) / (1.0 + ratio), axis=-1)
        coshare = xp.sum(exponents * xp.where(positive, 1.0, ratio) / (1.0 + ratio), axis=-1)
        slope = xp.exp(log_g - log_z) * coshare + xp.exp(log_r - log_z) * share
        return log_r - xp.sum(exponents * log_s, axis=-1), slope + TINY

    high = (BRACKET_START - BRACKET_SLOPE * log_z) / xp.min(exponents, axis=-1)
    x = increasing_root(xp, function, xp.zeros_like(z), -high, high)
    log_r, log_g, log_product, log_large = parts(x)
    log_small = log_product - log_large
    log_y12 = xp.where(positive, log_small, log_large)
    log_s12 = xp.where(positive, log_large, log_small)
    decay = xp.exp(-xp.abs(x))
    product = exponents * (z * z * decay / (1.0 + decay) ** 2)[..., None]
    large = 0.5 * (magnitude + xp.sqrt(square + 4.0 * product + TINY))
    y12 = xp.where(positive, product / large, large)
    log_y = xp.concat((log_y12, log_g[..., None]), axis=-1)
    log_s = xp.concat((log_s12, log_r[..., None]), axis=-1)
    return log_y, log_s, y12


def _assemble(xp: Any, w: Array, region: _Region) -> Array:
    """The projection, selected by region."""
    sign = xp.sign(w[..., 2:])
    curved = xp.concat((region.y12, sign * xp.exp(region.log_y[..., 2:])), axis=-1) * region.scale[..., None]
    return xp.where(region.dual[..., None], w, xp.where(region.polar[..., None], 0.0, curved))


def _unit(xp: Any, logs: Array, sign: Array) -> tuple[Array, Array]:
    """Normalise exp(logs): the unit vector, with the sign of its third entry, and the logarithm of the norm."""
    largest = xp.max(logs, axis=-1, keepdims=True)
    x = xp.exp(logs - largest)
    norm = xp.linalg.vector_norm(x, axis=-1, keepdims=True)
    x = xp.concat((x[..., :2], x[..., 2:] * sign), axis=-1) / norm
    return x, (largest + xp.log(norm))[..., 0]


def _depth(xp: Any, w: Array, dual: Array, exponents: Array) -> Array:
    """Distance (points,) of w (points, 3) to the boundary of K* where dual, else of -w to the boundary of K.

    A lower bound for points far from the boundary.
    """
    x = xp.abs(w)
    offset = xp.where(dual, xp.sum(exponents * xp.log(exponents), axis=-1), 0.0)

    def inside(x: Array) -> Array:
        positive = xp.all(x[..., :2] > 0, axis=-1)
        head = xp.log(xp.where(positive[..., None], x[..., :2], 1.0))
        value = xp.sum(exponents[:, None] * head, axis=-1) - offset[:, None]
        return positive & (value >= xp.log(xp.maximum(xp.abs(x[..., 2]), TINY)))

    bound = depth_bound(x, inside, CENTRE, RADIUS)
    near = bound == 0
    if xp.any(near):
        bound[near] = _exact_depth(xp, x[near], dual[near], exponents[near])
    return bound


def _exact_depth(xp: Any, x: Array, dual: Array, exponents: Array) -> Array:
    """Distance (points,) of x (points, 3) to the boundary of K* where dual, else to the boundary of K."""
    x1, x2, x3 = x[:, :1], x[:, 1:2], x[:, 2:]
    weights = xp.where(dual[:, None], 1.0, exponents)
    log_weight1, log_weight2 = xp.log(weights[:, :1]), xp.log(weights[:, 1:])
    alpha, beta = exponents[:, :1], exponents[:, 1:]

    def products(tau: Array) -> Array:
        log1, log2 = log_weight1 + beta * tau, log_weight2 - alpha * tau
        largest = xp.maximum(xp.maximum(log1, log2), 0.0)
        n1, n2, n3 = xp.exp(log1 - largest), xp.exp(log2 - largest), xp.exp(-largest)
        return (x1 * n1 + x2 * n2 - x3 * n3) / xp.sqrt(n1 * n1 + n2 * n2 + n3 * n3)

    return xp.maximum(boundary_distance(x, products), 0.0)
