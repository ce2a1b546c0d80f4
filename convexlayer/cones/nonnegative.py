"""The nonnegative cone, which is its own dual."""

from __future__ import annotations

from typing import final

from array_api_compat import array_namespace

from convexlayer.cones.base import AbstractCone, Array, Eigenbasis

__all__ = ["Nonnegative"]


@final
class Nonnegative(AbstractCone):
    """K = K* = {t >= 0}, one row a block."""

    size = 1

    def project_dual(self, w: Array) -> Array:
        """max(w, 0)."""
        return array_namespace(w).maximum(w, 0.0)

    def derivative(self, w: Array) -> Eigenbasis:
        """D = 1 where w > 0, else 0."""
        xp = array_namespace(w)
        d = xp.astype(w > 0, w.dtype)
        return Eigenbasis(None, d, 1.0 - d, lambda: self.margin(w))

    def margin(self, w: Array) -> Array:
        """abs(w)."""
        return array_namespace(w).abs(w[..., 0])
