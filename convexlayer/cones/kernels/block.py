"""What a kernel knows of a block, and what the modules of the cones provide.

A module of the table has these functions of one block of one element, whose vectors w, y (m,) and scratch are views of
arrays of a batch:

    saved_size(size, order)                      number of results that ``project`` saves for the other functions
    project(block, w, y, saved)                  the block's rows of y <- Pi_{K*}(w)
    derive(block, w, y, saved, derivative)       the block's part of the derivative of Pi_{K*} at w
    margin(block, w, y, saved)                   the strict complementarity margin, or NEEDS_DISTANCE

The formulas are those of the cone's portable form.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convexlayer.runtime.inner_function import inner_function

__all__ = ["INTEGER_FIELDS", "NEEDS_DISTANCE", "Block", "Blocks", "BlocksDerivative", "Floats", "block_at"]

Floats = NDArray[np.float64]

NEEDS_DISTANCE = -1.0
"""In place of the margin of an interior point of K* or -K near the boundary, which the portable form computes."""


class Block(NamedTuple):
    """A block of a curved cone.

    Attributes:
        number: its position among the blocks.
        start: first row.
        size: number of rows.
        order: side length of a semidefinite block.
        saved: start of what ``project`` saves.
        basis: start of its part of ``BlocksDerivative.basis``.
        rank_two: 1 if its derivative is a rank-two form, else 0.
        exponent: exponent of a power cone.
    """

    number: int
    start: int
    size: int
    order: int
    saved: int
    basis: int
    rank_two: int
    exponent: float


INTEGER_FIELDS = len(Block._fields) - 1
"""Number of integers of a block: all of its fields but the last."""


class Blocks(NamedTuple):
    """The blocks of all cones of the table, in row order.

    Attributes:
        first: the first block of each cone, and the number of blocks, (cones + 1,).
        integers: the fields of each ``Block`` but the last, (blocks, INTEGER_FIELDS).
        exponents: the last field, (blocks,).
    """

    first: NDArray[np.int64]
    integers: NDArray[np.int64]
    exponents: Floats


class BlocksDerivative(NamedTuple):
    """Derivatives of the projection of one element: D = Q diag(d) Q', or a rank-two form (see ``base.RankTwo``).

    Attributes:
        d: eigenvalues by row, (m,); in every row of a rank-two block delta.
        complement: 1 - d to full relative precision, (m,).
        basis: Q by rows of each block, or q1 and q2 of a rank-two block, one block after another.
    """

    d: Floats
    complement: Floats
    basis: Floats


@inner_function
def block_at(blocks: Blocks, k: int) -> Block:
    """Block k."""
    row = blocks.integers[k]
    return Block(row[0], row[1], row[2], row[3], row[4], row[5], row[6], blocks.exponents[k])
