"""The zero cone K = {0}, for equality constraints. Its dual is the real line."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from convexlayer.cones.base import AbstractCone, Array, ConePoint, Eigenbasis, namespace

__all__ = ["Zero"]


@final
class Zero(AbstractCone):
    """K = {0}, K* = R, one row per block: the projection is the identity."""

    size = 1

    @property
    def centre(self) -> NDArray[np.float64]:
        """A direction in the interior of K and K*."""
        return np.zeros(1)

    @property
    def recession_rows(self) -> NDArray[np.bool_]:
        """No row may grow."""
        return np.array([False])

    def at(self, w: Array) -> ConePoint[Eigenbasis]:
        """The identity, with D = I everywhere."""
        xp = namespace(w)

        def derive() -> Eigenbasis:
            return Eigenbasis(None, xp.ones_like(w), xp.zeros_like(w), lambda: xp.full_like(w[..., 0], xp.inf))

        return ConePoint(w, derive)
