"""Index arrays of the KKT system for the kernels, made once per structure.

All integers are packed in one array, which is faster to pass to a kernel than thirty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convexlayer.cones.kernels.block import INTEGER_FIELDS, Blocks
from convexlayer.diff.rows import BLOCK_FIELDS, SystemColumns
from convexlayer.program import Array, IndexArray, Structure
from convexlayer.runtime.inner_function import inner_function
from convexlayer.sparse import EntriesOfSystem
from convexlayer.sparse.structures import Patterns

__all__ = [
    "DIAGONAL",
    "ENTRIES",
    "EXTRA",
    "FIRST_POSITION",
    "PLACE",
    "SINGLE_COLUMN",
    "SINGLE_ROW",
    "SOURCE",
    "STARTS",
    "BlockColumns",
    "Layout",
    "Sizes",
    "blocks_of",
    "columns_of",
    "pack_layout",
    "part",
    "patterns_of",
    "sizes_of",
]

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


class Layout(NamedTuple):
    """Where the entries and unknowns of K are (see ``kkt_system`` and ``rows``), packed by ``pack_layout``.

    Kernels pass this pair on, and each function takes views of the parts that it needs: compiling a call with thirty
    arrays takes a second.

    Attributes:
        packed: the start of each part and the end of the last one, then the parts.
        exponents: exponents of the blocks of curved cones, (blocks,).
    """

    packed: Integers
    exponents: Array


def pack_layout(
    structure: Structure,
    sizes: Sizes,
    positions: EntriesOfSystem,
    starts: IndexArray,
    blocks: Sequence[Array],
    columns: SystemColumns,
) -> Layout:
    """Pack the index arrays of a structure.

    Args:
        structure: structure of the programs.
        sizes: its sizes.
        positions: where the entries of flat rows are in K.
        starts: first rows of the blocks of curved cones, and m (``ProductCone.blocks``).
        blocks: the fields of ``cones.kernels.block.Blocks``.
        columns: where the entries of curved rows are.
    """
    first, integers, exponents = blocks
    P, A = structure.P, structure.A
    parts = [
        np.array(sizes), P.rows, P.indptr, A.rows, A.indptr, *positions, starts, first, integers.ravel(),
        columns.blocks.ravel(), columns.diagonal, columns.place, columns.source, columns.entries.ravel(),
        columns.extra.ravel(), A.rows[A.row_singletons], A.cols[A.row_singletons],
    ]  # fmt: skip
    offsets = np.cumsum([len(parts) + 1, *map(len, parts)])
    return Layout(np.concatenate([offsets, *parts]).astype(np.int64), exponents)


FIRST_PATTERN, FIRST_POSITION, STARTS, FIRST_BLOCK, BLOCK_INTEGERS, COLUMNS = 1, 5, 11, 12, 13, 14
DIAGONAL, PLACE, SOURCE, ENTRIES, EXTRA, SINGLE_ROW, SINGLE_COLUMN = range(15, 22)
"""Numbers of the parts; the sizes are part 0."""


@inner_function
def part(layout: Layout, i: int) -> Integers:
    """Part i."""
    return layout.packed[layout.packed[i] : layout.packed[i + 1]]


@inner_function
def sizes_of(layout: Layout) -> Sizes:
    """The sizes."""
    s = part(layout, 0)
    return Sizes(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7])


@inner_function
def patterns_of(layout: Layout) -> Patterns:
    """The patterns of P and A."""
    k = FIRST_PATTERN
    return Patterns(part(layout, k), part(layout, k + 1), part(layout, k + 2), part(layout, k + 3))


@inner_function
def blocks_of(layout: Layout) -> Blocks:
    """The blocks of curved cones."""
    integers = part(layout, BLOCK_INTEGERS)
    return Blocks(part(layout, FIRST_BLOCK), integers.reshape(len(layout.exponents), INTEGER_FIELDS), layout.exponents)


@inner_function
def columns_of(layout: Layout, k: int) -> BlockColumns:
    """Block k's part of the index arrays."""
    row = part(layout, COLUMNS)[k * BLOCK_FIELDS : (k + 1) * BLOCK_FIELDS]
    return BlockColumns(row[0], row[1], row[2], row[3], row[4], row[5], row[6])
