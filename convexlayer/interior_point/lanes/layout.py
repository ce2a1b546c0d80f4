"""The structures of the kernels: index arrays of a program, blocks of cones, and what the lanes hold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convexlayer.linalg.ldl.lanes import Indices
from convexlayer.program import Array
from convexlayer.runtime.inner_function import inner_function
from convexlayer.solution import BoolArray

__all__ = [
    "Block",
    "Blocks",
    "Data",
    "Layout",
    "Places",
    "Point",
    "Products",
    "Scaling",
    "block_at",
    "blocks_of",
    "new_point",
    "places_of",
]


class Block(NamedTuple):
    """One block of a cone.

    Attributes:
        start: first row of the block.
        size: number of its rows.
        order: order of the matrix of a semidefinite block, else 0.
        factor: first row in ``Scaling.factors`` of what the cone stores of its scaling.
        packed: first row in ``Scaling.packed`` of its H, or -1 if H is not stored as a dense triangle.
        expanded: start, in ``Places.expanded``, of the positions of an expanded H, or -1 (see ``second_order``).
        extra: index in K of the first of the two additional unknowns of an expanded H, or -1.
        exponent: exponent of a power block, else 0.
    """

    start: int
    size: int
    order: int
    factor: int
    packed: int
    expanded: int
    extra: int
    exponent: float


class Blocks(NamedTuple):
    """The product cone: the rows of the zero cone, then all blocks.

    Attributes:
        zero: number of rows of the zero cone.
        first: index of the first block of each cone of the table, and the number of blocks, (cones + 1,).
        integers: the integers of every ``Block``, in row order, (blocks, 7).
        exponents: the exponents of the blocks, (blocks,).
    """

    zero: int
    first: Indices
    integers: Indices
    exponents: Array


class Places(NamedTuple):
    """Where the entries of -H are in the KKT matrix, as positions among its values.

    Attributes:
        n: number of variables, the index of the first row of the cones in K.
        diagonal: the diagonal of K, (N,).
        packed: the entries of all packed triangles.
        expanded: the entries of all expanded blocks.
    """

    n: int
    diagonal: Indices
    packed: Indices
    expanded: Indices


class Layout(NamedTuple):
    """Index arrays of a structure. Positions refer to the values of the KKT matrix in the order of the LanePlan.

    The KKT matrix is, for the scaling H of the cones,

        K = [ P  A' ]
            [ A  -H ]

    A large second-order block is expanded: two additional unknowns keep K as sparse as A. Every other block that is not
    diagonal is stored dense, as a packed upper triangle.

    Attributes:
        P_start: column starts of the upper triangle of P, (n + 1,).
        P_row: row of each of its entries.
        P_source: index of each of its entries among the values of P.
        P_position: position of each of its entries in K.
        A_start: column starts of A, (n + 1,).
        A_row: row of each entry of A.
        A_position: position of each entry of A in K.
        A_single: whether an entry of A is the only one of its row.
        diagonal: positions of the diagonal of K, (N,).
        packed_position: see ``Places.packed``.
        expanded_position: see ``Places.expanded``.
        uniform: first row of each block on which the scale of the rows must be constant, ascending, and m.
        first_block: see ``Blocks.first``.
        block_integers: see ``Blocks.integers``.
        exponents: see ``Blocks.exponents``.
        n: number of variables.
        zero: number of rows of the zero cone.
        orthant: index after the last row of the nonnegative cone.
        degree: degree of the barrier of the product cone.
        symmetric: whether every cone is symmetric.
        factor_rows: number of rows of ``Scaling.factors``.
        scratch_rows: number of rows of ``Scaling.work``.
    """

    P_start: Indices
    P_row: Indices
    P_source: Indices
    P_position: Indices
    A_start: Indices
    A_row: Indices
    A_position: Indices
    A_single: BoolArray
    diagonal: Indices
    packed_position: Indices
    expanded_position: Indices
    uniform: Indices
    first_block: Indices
    block_integers: Indices
    exponents: Array
    n: int
    zero: int
    orthant: int
    degree: int
    symmetric: bool
    factor_rows: int
    scratch_rows: int


class Data(NamedTuple):
    """Equilibrated data of the elements in the lanes, and their scales.

    Attributes:
        P: values of the upper triangle, (nnz, V).
        q: (n, V).
        A: values, (nnz, V).
        b: (m, V).
        d: scales of the variables, (n, V).
        e: scales of the rows, (m, V).
        scalars: rows OBJECTIVE (scale of the objective), Q_NORM and B_NORM (maximum norms before scaling) of ``steps``,
            (3, V).
    """

    P: Array
    q: Array
    A: Array
    b: Array
    d: Array
    e: Array
    scalars: Array


class Point(NamedTuple):
    """A point or a direction in each lane: x (n, V), s (m, V) and y (m, V)."""

    x: Array
    s: Array
    y: Array


class Products(NamedTuple):
    """Products with the data at a point, and those of a step that the predictor and the corrector share.

    Attributes:
        Px: (n, V).
        Aty: A'y, (n, V).
        Ax: (m, V).
        difference: x2 - x / tau for the constant solution x2, (n, V).
        P_difference: P difference, (n, V).
    """

    Px: Array
    Aty: Array
    Ax: Array
    difference: Array
    P_difference: Array


class Scaling(NamedTuple):
    """The scaling H of every block, H y = s.

    Attributes:
        packed: the H that are stored dense, as packed upper triangles by columns, (entries, V).
        factors: what each cone stores of its scaling, one block after another, (factor_rows, V).
        work: scratch for one block at a time, (scratch_rows, V).
        ok: 1 in lanes where the scaling of every block is defined, else 0, (V,).
    """

    packed: Array
    factors: Array
    work: Array
    ok: Array


@inner_function
def blocks_of(layout: Layout) -> Blocks:
    """The product cone."""
    return Blocks(layout.zero, layout.first_block, layout.block_integers, layout.exponents)


@inner_function
def block_at(blocks: Blocks, k: int) -> Block:
    """Block k."""
    row = blocks.integers[k]
    return Block(row[0], row[1], row[2], row[3], row[4], row[5], row[6], blocks.exponents[k])


@inner_function
def places_of(layout: Layout) -> Places:
    """Where the entries of -H are in the KKT matrix."""
    return Places(layout.n, layout.diagonal, layout.packed_position, layout.expanded_position)


@inner_function
def new_point(n: int, m: int, V: int) -> Point:
    """The origin, in V lanes."""
    return Point(np.zeros((n, V)), np.zeros((m, V)), np.zeros((m, V)))
