"""The loops behind ``products``, compiled: element after element, so that everything touched fits in the cache."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convexlayer.entry import entry

__all__ = ["accumulate", "outer_entries", "times", "warm_up"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]


@entry
def times(
    start: Integers, column: Integers, value: Floats, constant: Floats, x: Floats, out: Floats, first: int, last: int
) -> None:
    """out[e] = constant + M x[e] for first <= e < last, of M by rows (CSR)."""
    for e in range(first, last):
        for i in range(len(start) - 1):
            total = constant[i]
            for p in range(start[i], start[i + 1]):
                total += value[p] * x[e, column[p]]
            out[e, i] = total


@entry
def accumulate(
    into: NDArray[np.int64],
    of: NDArray[np.int64],
    values: Floats,
    x: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """out[e, into[p]] += values[e, p] x[e, of[p]], for first <= e < last; out is zero on entry."""
    for e in range(first, last):
        for p in range(len(into)):
            out[e, into[p]] += values[e, p] * x[e, of[p]]


@entry
def outer_entries(
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    u1: Floats,
    v1: Floats,
    u2: Floats,
    v2: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """out[e, p] = (u1 v1' + u2 v2')[rows[p], cols[p]] of element e, for first <= e < last."""
    for e in range(first, last):
        for p in range(len(rows)):
            i, j = rows[p], cols[p]
            out[e, p] = u1[e, i] * v1[e, j] + u2[e, i] * v2[e, j]


def warm_up() -> None:
    """Compile whatever this part of the library calls from Python."""
    one, index, short = np.ones((1, 1)), np.zeros(1, np.int64), np.zeros(1, np.int32)
    times(np.zeros(2, np.int32), short, np.ones(1), np.ones(1), one, one.copy(), 0, 1)
    accumulate(index, index, one, one, one.copy(), 0, 1)
    outer_entries(index, index, one, one, one, one, one.copy(), 0, 1)
