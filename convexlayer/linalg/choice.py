"""How systems of a pattern are factorised."""

from __future__ import annotations

from convexlayer.linalg.base import AbstractBackend
from convexlayer.linalg.dense import DenseBackend
from convexlayer.linalg.portable import PortableFactoriser
from convexlayer.linalg.refined import AbstractFactoriser
from convexlayer.linalg.sparse import SparseBackend
from convexlayer.program import Array, Pattern
from convexlayer.runtime import kernel_cache

__all__ = ["choose_backend", "choose_factoriser"]

DENSE_UP_TO = 64
"""Below this size a batched dense factorisation beats a sparse one at any density."""

DENSE_FROM_FILL = 0.25
"""Above this share of stored entries (and below DENSE_LIMIT) dense wins too."""

DENSE_LIMIT = 1500
"""Above this size dense matrices of a batch take too much memory."""


def choose_factoriser(
    pattern: Pattern, signs: Array, backend: AbstractBackend | None = None, device: str = "cpu"
) -> AbstractFactoriser:
    """The factoriser for the upper triangle of a symmetric pattern: compiled where that is ready, else portable.

    Args:
        pattern: upper triangle, every diagonal entry stored.
        signs: expected signs of the pivots, (N,).
        backend: who factorises instead.
        device: a torch device that factorises, as dense matrices, what is small enough.
    """
    if backend is None and device != "cpu" and pattern.shape[0] <= DENSE_LIMIT:
        backend = DenseBackend(device)
    if backend is None and kernel_cache.ready():
        from convexlayer.linalg.laned import LaneFactoriser

        return LaneFactoriser(pattern, signs)
    return PortableFactoriser(pattern, signs, backend or choose_backend(pattern))


def choose_backend(pattern: Pattern) -> AbstractBackend:
    """The portable backend for the upper triangle of a symmetric pattern, on the CPU."""
    size = pattern.shape[0]
    fill = 2.0 * pattern.nnz / max(size * size, 1)
    if size <= DENSE_UP_TO or (size <= DENSE_LIMIT and fill >= DENSE_FROM_FILL):
        return DenseBackend()
    return SparseBackend()
