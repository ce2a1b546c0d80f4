"""Norms of rows of a batch, and of blocks of rows."""

from __future__ import annotations

import math

import numpy as np

from convexlayer.sparse.structures import Floats, Positions

__all__ = ["is_finite", "largest_of_blocks", "max_norm"]

SINGLE_THREAD_LENGTH = 4096
"""Length of a dot product up to which BLAS libraries use one thread."""


def max_norm(rows: Floats) -> Floats:
    """Maximum norm of each element's row, (B, entries) -> (B,); 0 for rows without entries."""
    norms: Floats = np.max(np.abs(rows), axis=1, initial=0.0)
    return norms


def is_finite(values: Floats) -> bool:
    """Whether all entries are finite.

    For short arrays a finite sum of squares proves it in a third of the time (it may overflow for huge entries). Long
    dot products would start BLAS threads, which then spin for a while.
    """
    if values.size <= SINGLE_THREAD_LENGTH and math.isfinite(np.vdot(values, values)):
        return True
    return bool(np.isfinite(values).all())


def largest_of_blocks(v: Floats, blocks: Positions) -> Floats:
    """Each row of v (B, m) replaced by the maximum of its block.

    Args:
        v: (B, m).
        blocks: first rows of the blocks, and m; each earlier row is a block.
    """
    first, starts = blocks[0], blocks[:-1] - blocks[0]
    if not len(starts):
        return v
    largest = np.maximum.reduceat(v[:, first:], starts, axis=1)
    return np.concatenate([v[:, :first], np.repeat(largest, np.diff(blocks), axis=1)], axis=1)
