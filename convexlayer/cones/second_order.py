"""The second-order cone (t, u), norm(u) <= t, which is its own dual."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
from array_api_compat import device
from numpy.typing import NDArray

from convexlayer.cones.base import AbstractCone, Array, BlockKind, ConePoint, Eigenbasis, RankTwo, namespace
from convexlayer.cones.compiled import compiled_eigenbasis, compiled_rank_two, is_compiled

__all__ = ["SecondOrder"]


@final
class SecondOrder(AbstractCone):
    """K = K* = {(t, u): norm(u) <= t}.

    With h = u / norm(u) and abs(t) < norm(u):   y = (t + norm(u)) / 2 (1, h).

    Args:
        size: 1 + length of u; size 1 is the half-line t >= 0.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    @property
    def centre(self) -> NDArray[np.float64]:
        """A direction in the interior of K and K*."""
        return np.eye(1, self.size)[0]

    @property
    def recession_rows(self) -> NDArray[np.bool_]:
        """Only t may grow."""
        return np.arange(self.size) == 0

    def kinds(self, blocks: int, *, rank_two: bool) -> tuple[BlockKind, ...]:
        """Equal blocks."""
        return (BlockKind("second_order", self.size, rank_two=rank_two),) * blocks

    def at(self, w: Array) -> ConePoint[Eigenbasis]:
        """The projection and the eigenbasis of its derivative.

        The projection is w if t >= norm(u), 0 if t <= -norm(u), else (t + norm(u)) / 2 (1, h) with
        Q = ((1, h) / sqrt 2, (1, -h) / sqrt 2, any basis of the complement), d = (1, 0, (1 + t / norm(u)) / 2).
        """
        if is_compiled(w):
            return compiled_eigenbasis(self.kinds(1, rank_two=False), w, self._distance)
        parts = _parts(namespace(w), w)
        return ConePoint(_projection(w, *parts), lambda: self._eigenbasis(w, *parts))

    def rank_two_at(self, w: Array) -> ConePoint[RankTwo]:
        """As ``at``, with D as a rank-two form: q1 = (1, h) / sqrt 2 and q2 = (1, -h) / sqrt 2.

        If u = 0, then h = 0, and D is I or 0.
        """
        if is_compiled(w):
            return compiled_rank_two(self.kinds(1, rank_two=True), w, self._distance)
        parts = _parts(namespace(w), w)
        return ConePoint(_projection(w, *parts), lambda: self._rank_two(*parts))

    def _distance(self, w: Array) -> Array:
        xp = namespace(w)
        t, _, norm, _ = _parts(xp, w)
        return self._margin(xp, t, norm)

    def _eigenbasis(self, w: Array, t: Array, u: Array, norm: Array, unit_scale: Array) -> Eigenbasis:
        xp = namespace(w)
        ones = xp.ones_like(t)
        if self.size == 1:
            d = xp.astype(t > 0, w.dtype)
            return Eigenbasis(None, d, 1.0 - d, lambda: self._margin(xp, t, norm))
        inside, polar, rest, corest = _regions(xp, t, norm, unit_scale)
        first = xp.where(polar, 0.0, ones)
        second = xp.where(inside, ones, 0.0)
        tail = (*t.shape[:-1], self.size - 2)
        d = xp.concat((first, second, xp.broadcast_to(rest, tail)), axis=-1)
        complement = xp.concat((1.0 - first, 1.0 - second, xp.broadcast_to(corest, tail)), axis=-1)
        return Eigenbasis(self._basis(xp, u, norm, unit_scale), d, complement, lambda: self._margin(xp, t, norm))

    def _rank_two(self, t: Array, u: Array, norm: Array, unit_scale: Array) -> RankTwo:
        xp = namespace(t)
        inside, polar, delta, complement = _regions(xp, t, norm, unit_scale)
        curved = xp.astype(~(inside | polar), t.dtype) * math.sqrt(0.5)
        tail = u * (unit_scale * curved)
        q1, q2 = xp.concat((curved, tail), axis=-1), xp.concat((curved, -tail), axis=-1)
        return RankTwo(q1, q2, delta, complement, lambda: self._margin(xp, t, norm))

    def _margin(self, xp: Any, t: Array, norm: Array) -> Array:
        """abs(abs(t) - norm(u)) / sqrt 2, the distance to the boundaries of K and -K."""
        distance = xp.abs(xp.abs(t) - norm)[..., 0]
        return distance if self.size == 1 else distance * math.sqrt(0.5)

    def _basis(self, xp: Any, u: Array, norm: Array, unit_scale: Array) -> Array:
        """The orthogonal Q, (..., size, size), whose last columns come from the Householder reflector of h."""
        identity = xp.eye(self.size - 1, dtype=u.dtype, device=device(u))
        h = xp.where(norm > 0, u * unit_scale, identity[0, :])
        sign = xp.copysign(xp.ones_like(norm), h[..., :1])
        reflector = xp.concat((h[..., :1] + sign, h[..., 1:]), axis=-1)
        scaled = reflector / (1.0 + xp.abs(h[..., :1]))
        rest = identity[:, 1:] - scaled[..., :, None] * reflector[..., None, 1:]
        rest = xp.concat((xp.zeros_like(rest[..., :1, :]), rest), axis=-2)
        root = math.sqrt(0.5)
        head = xp.full_like(norm, root)
        first = xp.concat((head, root * h), axis=-1)
        second = xp.concat((head, -root * h), axis=-1)
        return xp.concat((first[..., None], second[..., None], rest), axis=-1)


def _projection(w: Array, t: Array, u: Array, norm: Array, unit_scale: Array) -> Array:
    """The projection of w, from its parts (see ``_parts``)."""
    xp = namespace(w)
    head = xp.maximum(0.5 * (t + norm), 0.0)
    curved = xp.concat((head, u * (head * unit_scale)), axis=-1)
    return xp.where(t >= norm, w, curved)


def _parts(xp: Any, w: Array) -> tuple[Array, Array, Array, Array]:
    """(t, u, norm(u), 1 / norm(u)), each with a last axis; the inverse is 1 if u = 0."""
    u = w[..., 1:]
    norm = xp.linalg.vector_norm(u, axis=-1, keepdims=True)
    return w[..., :1], u, norm, 1.0 / xp.where(norm > 0, norm, 1.0)


def _regions(xp: Any, t: Array, norm: Array, unit_scale: Array) -> tuple[Array, Array, Array, Array]:
    """Masks of D = I and of D = 0, the remaining eigenvalue delta, and 1 - delta without cancellation."""
    inside, polar = (t >= norm) & (t > 0), t <= -norm
    half = 0.5 * unit_scale
    delta = xp.where(inside, 1.0, xp.where(polar, 0.0, half * (norm + t)))
    complement = xp.where(inside, 0.0, xp.where(polar, 1.0, half * (norm - t)))
    return inside, polar, delta, complement
