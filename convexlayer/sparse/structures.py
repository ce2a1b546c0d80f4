"""The arguments that the kernels share, arrays of a batch or, without the batch axis, of one element.

A kernel takes the fields of a structure as a plain tuple, which is some microseconds faster to pass from Python than a
named one, and makes the structure of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Denominators",
    "Entries",
    "Floats",
    "Integers",
    "Patterns",
    "Point",
    "Positions",
    "ProgramBlocks",
    "RowScales",
    "Values",
]

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]
Integers = NDArray[np.int32]


class Patterns(NamedTuple):
    """Row indices and column starts of P and of A, by columns (CSC)."""

    P_rows: Positions
    P_starts: Positions
    A_rows: Positions
    A_starts: Positions


class Values(NamedTuple):
    """The values of a batch of programs, P (B, nnz(P)), q (B, n), A (B, nnz(A)) and b (B, m)."""

    P: Floats
    q: Floats
    A: Floats
    b: Floats


class Point(NamedTuple):
    """A point of each program, x (B, n), y (B, m) and s (B, m)."""

    x: Floats
    y: Floats
    s: Floats


class RowScales(NamedTuple):
    """The fields of ``certificate.Scales``, which documents them; (B, n) or (B, m)."""

    variable: Floats
    dual: Floats
    primal: Floats
    c: Floats
    size: Floats
    dual_rounding: Floats
    primal_rounding: Floats


class Denominators(NamedTuple):
    """Scales of the rows: c (B, m), and the denominators of backward errors, dual (B, n) and primal (B, m)."""

    c: Floats
    dual: Floats
    primal: Floats


class Entries(NamedTuple):
    """The entries of a matrix M whose rows are stacked P, q, r, A and b, in row order.

    Attributes:
        ends: index after the last entry of each block, (5,).
        column: column of each entry.
        row: row of each entry within its block.
        value: value of each entry.
    """

    ends: Integers
    column: Integers
    row: Integers
    value: Floats


class ProgramBlocks(NamedTuple):
    """The images of M, P (B, nnz(P)), q (B, n), r (B, 1), A (B, nnz(A)) and b (B, m)."""

    P: Floats
    q: Floats
    r: Floats
    A: Floats
    b: Floats
