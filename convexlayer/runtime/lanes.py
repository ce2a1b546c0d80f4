"""The number of SIMD lanes of a batch."""

from __future__ import annotations

from convexlayer.runtime.threads import WORKERS

__all__ = ["LANES", "batch_of_width", "lanes_for"]

LANES = 8
"""Elements computed together: the doubles of an AVX-512 register. They take about as long as three single elements."""

SINGLE_UP_TO = 2 * WORKERS
"""Largest batch whose elements are computed one at a time on all threads, because most lanes would be idle."""


def lanes_for(batch: int) -> tuple[float, ...]:
    """The argument of the kernels whose length sets the number of lanes, for a batch of this size."""
    return (0.0,) * (LANES if batch > SINGLE_UP_TO else 1)


def batch_of_width(width: str) -> int:
    """The smallest batch that is computed one element at a time (``single``) or in lanes (``lanes``)."""
    return 1 if width == "single" else SINGLE_UP_TO + 1
