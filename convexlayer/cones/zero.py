"""The zero cone K = {0}: equalities. Its dual is the whole line."""

from __future__ import annotations

from typing import final

from array_api_compat import array_namespace

from convexlayer.cones.base import AbstractCone, Array, Eigenbasis

__all__ = ["Zero"]


@final
class Zero(AbstractCone):
    """K = {0}, K* = R, one row a block: the projection is the identity."""

    size = 1

    def project_dual(self, w: Array) -> Array:
        """The identity."""
        return w

    def derivative(self, w: Array) -> Eigenbasis:
        """D = I."""
        xp = array_namespace(w)
        return Eigenbasis(None, xp.ones_like(w), xp.zeros_like(w), lambda: self.margin(w))

    def margin(self, w: Array) -> Array:
        """Infinite: D never jumps."""
        xp = array_namespace(w)
        return xp.full_like(w[..., 0], xp.inf)
