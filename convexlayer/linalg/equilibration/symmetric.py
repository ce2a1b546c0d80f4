"""Ruiz equilibration of a batch of sparse symmetric matrices, in NumPy (see ``ruiz``)."""

from __future__ import annotations

import numpy as np

from convexlayer.linalg.equilibration.ruiz import SYMMETRIC_PASSES
from convexlayer.program import Array, Pattern

__all__ = ["equilibration"]


def equilibration(pattern: Pattern, values: Array) -> Array:
    """Scales (B, N) that bring the maximum norm of every row of the symmetric matrices near 1."""
    size = pattern.shape[0]
    scale = np.ones((values.shape[0], size))
    if size == 0:
        return scale
    rows = np.concatenate([pattern.rows, pattern.cols])
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], np.arange(size))
    source = order % pattern.nnz
    magnitude = np.abs(values)
    for _ in range(SYMMETRIC_PASSES):
        scaled = magnitude * scale[:, pattern.rows] * scale[:, pattern.cols]
        largest = np.maximum.reduceat(scaled[:, source], starts, axis=1)
        scale /= np.sqrt(np.where(largest > 0, largest, 1.0))
    return scale
