"""Index arrays of the KKT system for the kernels, made once per structure.

All integers are packed in one array, which is faster to pass to a kernel than thirty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from convexlayer.cones.kernels.block import Blocks
from convexlayer.diff.rows import BLOCK_FIELDS, SystemColumns
from convexlayer.program import Array, IndexArray, Structure
from convexlayer.sparse import EntriesOfSystem
from convexlayer.sparse.structures import Patterns

__all__ = ["BlockColumns", "Sizes", "SystemLayout", "pack_layout", "unpack_layout"]

Integers = NDArray[np.int64]


class BlockColumns(NamedTuple):
    """A block's part of the index arrays; see ``rows.SystemColumns``."""

    columns: int
    first: int
    stop: int
    xi: int
    nu: int
    xi_place: int
    nu_place: int


class Sizes(NamedTuple):
    """Sizes of a structure.

    Attributes:
        n: number of variables.
        m: number of rows.
        zero: number of rows of the zero cone.
        flat: number of rows of the zero and nonnegative cones.
        unknowns: order of K.
        entries: number of entries of its upper triangle.
        saved: number of results that the projections of an element save.
        basis: number of entries of the bases of an element.
    """

    n: int
    m: int
    zero: int
    flat: int
    unknowns: int
    entries: int
    saved: int
    basis: int


class SystemLayout(NamedTuple):
    """Where the entries and unknowns of K are (see ``kkt_system`` and ``rows``).

    Attributes:
        sizes: the sizes.
        patterns: the patterns of P and A.
        positions: the entries of flat rows.
        starts: first rows of the blocks of curved cones, and m (``ProductCone.blocks``).
        blocks: the blocks of curved cones.
        columns: the fields of ``BlockColumns`` of each block, (blocks, fields).
        diagonal: see ``rows.SystemColumns``, as the next four.
        place: integers.
        source: integers.
        entries: (entries, 4).
        extra: (rows, 2).
        single_row: rows with one entry in A.
        single_column: the column of each of them.
    """

    sizes: Sizes
    patterns: Patterns
    positions: EntriesOfSystem
    starts: Integers
    blocks: Blocks
    columns: Integers
    diagonal: Integers
    place: Integers
    source: Integers
    entries: Integers
    extra: Integers
    single_row: Integers
    single_column: Integers


def pack_layout(
    structure: Structure,
    sizes: Sizes,
    positions: EntriesOfSystem,
    starts: IndexArray,
    blocks: Sequence[Array],
    columns: SystemColumns,
) -> tuple[Integers, Array]:
    """Pack the integers of a ``SystemLayout``; returns them, and the exponents of its blocks.

    The array begins with the start of each part and the end of the last one.
    """
    first, integers, exponents = blocks
    P, A = structure.P, structure.A
    parts = [
        np.array(sizes), P.rows, P.indptr, A.rows, A.indptr, *positions, starts, first, integers.ravel(),
        columns.blocks.ravel(), columns.diagonal, columns.place, columns.source, columns.entries.ravel(),
        columns.extra.ravel(), A.rows[A.row_singletons], A.cols[A.row_singletons],
    ]  # fmt: skip
    offsets = np.cumsum([len(parts) + 1, *map(len, parts)])
    return np.concatenate([offsets, *parts]).astype(np.int64), exponents


@njit(nogil=True)
def _part(packed: Integers, i: int) -> Integers:
    return packed[packed[i] : packed[i + 1]]


@njit(nogil=True)
def unpack_layout(packed: Integers, exponents: Array) -> SystemLayout:
    """The layout from the result of ``pack_layout``."""
    s = _part(packed, 0)
    first = _part(packed, 12)
    count = len(exponents)
    return SystemLayout(
        Sizes(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]),
        Patterns(_part(packed, 1), _part(packed, 2), _part(packed, 3), _part(packed, 4)),
        EntriesOfSystem(
            _part(packed, 5), _part(packed, 6), _part(packed, 7), _part(packed, 8), _part(packed, 9), _part(packed, 10)
        ),
        _part(packed, 11),
        Blocks(first, _part(packed, 13).reshape(count, 6), exponents),
        _part(packed, 14).reshape(count, BLOCK_FIELDS),
        _part(packed, 15), _part(packed, 16), _part(packed, 17),
        _part(packed, 18).reshape(len(_part(packed, 18)) // 4, 4),
        _part(packed, 19).reshape(len(_part(packed, 19)) // 2, 2),
        _part(packed, 20), _part(packed, 21),
    )  # fmt: skip
