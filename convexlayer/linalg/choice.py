"""Choice of the factorisation for a sparsity pattern."""

from __future__ import annotations

from convexlayer.linalg.base import AbstractBackend
from convexlayer.linalg.dense.batched import DenseBackend
from convexlayer.linalg.ldl.portable import PortableFactoriser
from convexlayer.linalg.ldl.qdldl_ import SparseBackend
from convexlayer.linalg.refined import AbstractFactoriser
from convexlayer.program import Array, Pattern
from convexlayer.runtime import kernel_cache

__all__ = ["choose_backend", "choose_factoriser"]

DENSE_UP_TO = 64
"""Order N up to which a batched dense factorisation is faster than a sparse one at any density."""

DENSE_FROM_FILL = 0.25
"""Density (stored entries over N^2) from which the dense factorisation is faster, up to order DENSE_LIMIT."""

DENSE_LIMIT = 1500
"""Largest order N of dense factorisations: a matrix of this order takes 18 MB per element."""


def choose_factoriser(
    pattern: Pattern, signs: Array, backend: AbstractBackend | None = None, device: str = "cpu"
) -> AbstractFactoriser:
    """The factoriser for a symmetric pattern: by kernels if they are compiled, else portable.

    Args:
        pattern: upper triangle, every diagonal entry stored.
        signs: expected signs of the pivots, (N,).
        backend: the backend to use instead of the default one.
        device: a torch device for dense factorisations up to DENSE_LIMIT; "cpu" for the choice on the CPU.
    """
    if backend is None and device != "cpu" and pattern.shape[0] <= DENSE_LIMIT:
        backend = DenseBackend(device)
    if backend is None and kernel_cache.ready():
        from convexlayer.linalg.ldl.laned import LaneFactoriser

        return LaneFactoriser(pattern, signs)
    return PortableFactoriser(pattern, signs, backend or choose_backend(pattern))


def choose_backend(pattern: Pattern) -> AbstractBackend:
    """The portable CPU backend for a symmetric pattern, given by its upper triangle: dense or sparse."""
    size = pattern.shape[0]
    fill = 2.0 * pattern.nnz / max(size * size, 1)
    if size <= DENSE_UP_TO or (size <= DENSE_LIMIT and fill >= DENSE_FROM_FILL):
        return DenseBackend()
    return SparseBackend()
