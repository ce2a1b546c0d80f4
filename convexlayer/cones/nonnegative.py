"""The nonnegative cone, which is its own dual."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from convexlayer.cones.base import AbstractCone, Array, ConePoint, Eigenbasis, namespace

__all__ = ["Nonnegative"]


@final
class Nonnegative(AbstractCone):
    """K = K* = {t >= 0}, one row per block."""

    size = 1

    @property
    def centre(self) -> NDArray[np.float64]:
        """A direction in the interior of K and K*."""
        return np.ones(1)

    @property
    def recession_rows(self) -> NDArray[np.bool_]:
        """Every row may grow."""
        return np.array([True])

    def at(self, w: Array) -> ConePoint[Eigenbasis]:
        """max(w, 0), and D = 1 where w > 0, else 0; the margin is abs(w)."""
        xp = namespace(w)

        def derive() -> Eigenbasis:
            d = xp.astype(w > 0, w.dtype)
            return Eigenbasis(None, d, 1.0 - d, lambda: xp.abs(w[..., 0]))

        return ConePoint(xp.maximum(w, 0.0), derive)
