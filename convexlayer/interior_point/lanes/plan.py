"""Symbolic analysis of a structure: sparsity pattern of the KKT matrix, and the position of each value in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from convexlayer.interior_point.lanes.cones.block import Shape
from convexlayer.interior_point.lanes.cones.table import CONES, SYMMETRIC_CONES
from convexlayer.interior_point.lanes.layout import Block, Layout
from convexlayer.linalg.ldl.lanes import Indices
from convexlayer.linalg.ldl.symbolic import Symbolic
from convexlayer.program import Pattern, Structure

__all__ = ["InteriorPointPlan"]

LARGE_BLOCK = 300
"""Dense blocks of at least this many rows are eliminated last, as one dense trailing block. Ordering them by minimum
degree would cost time and could not reduce their fill."""


@final
@dataclass(frozen=True, eq=False)
class InteriorPointPlan:
    """Symbolic analysis of one structure, computed once and shared by all solves.

    Attributes:
        layout: index arrays.
        packed: symbolic factorisation of K (see ``Symbolic.packed``).
        fill: number of entries of the factor.
        flops: multiply-adds of a numeric factorisation.
    """

    layout: Layout
    packed: Indices
    fill: int
    flops: int

    @staticmethod
    def of(structure: Structure) -> InteriorPointPlan:
        """Analyse a structure."""
        n, m, P, A, cones = structure.n, structure.m, structure.P, structure.A, structure.cones
        upper = np.flatnonzero(P.rows <= P.cols)
        shapes_of_cones = [cone.shapes(cones) for cone in CONES]
        shapes = [shape for of_cone in shapes_of_cones for shape in of_cone]
        blocks = _blocks(shapes, cones.zero, n + m)
        dense = [block for block in blocks if block.packed >= 0]
        expanded = [block for block in blocks if block.extra >= 0]
        size = n + m + 2 * len(expanded)

        rows, cols = [P.rows[upper], np.arange(size), A.cols], [P.cols[upper], np.arange(size), n + A.rows]
        for block in dense:
            low, high = np.tril_indices(block.size)[::-1]  # the upper triangle, column by column
            rows.append(n + block.start + low)
            cols.append(n + block.start + high)
        for block in expanded:
            for unknown in (block.extra, block.extra + 1):
                rows.append(n + block.start + np.arange(block.size))
                cols.append(np.full(block.size, unknown))
        ends = np.cumsum([len(part) for part in rows])
        keys, where = np.unique(np.concatenate(cols) * size + np.concatenate(rows), return_inverse=True)
        large = [n + block.start + np.arange(block.size) for block in dense if block.size >= LARGE_BLOCK]
        symbolic = Symbolic.of(
            Pattern((size, size), keys % size, keys // size),
            np.concatenate([np.ones(n), -np.ones(m), np.tile([-1.0, 1.0], len(expanded))]),
            np.concatenate([np.zeros(0, np.int64), *large]),
        )
        P_position, diagonal, A_position, *positions = np.split(symbolic.place[where].astype(np.int32), ends[:-1])
        layout = Layout(
            P_start=np.searchsorted(P.cols[upper], np.arange(n + 1)).astype(np.int32),
            P_row=P.rows[upper].astype(np.int32),
            P_source=upper.astype(np.int32),
            P_position=P_position,
            A_start=A.indptr.astype(np.int32),
            A_row=A.rows.astype(np.int32),
            A_position=A_position,
            A_single=A.row_singletons,
            diagonal=diagonal,
            packed_position=_joined(positions[: len(dense)]),
            expanded_position=_joined(positions[len(dense) :]),
            uniform=_indices(
                [block.start for block, shape in zip(blocks, shapes, strict=True) if shape.storage != "diagonal"] + [m]
            ),
            first_block=_indices(np.cumsum([0, *map(len, shapes_of_cones)])),
            block_integers=_indices([block[:-1] for block in blocks]).reshape(len(blocks), len(Block._fields) - 1),
            exponents=np.array([block.exponent for block in blocks], np.float64),
            n=n,
            zero=cones.zero,
            orthant=cones.zero + cones.nonnegative,
            degree=sum(shape.degree for shape in shapes),
            symmetric=not any(shapes_of_cones[len(SYMMETRIC_CONES) :]),
            factor_rows=sum(shape.factor_rows for shape in shapes),
            scratch_rows=max((shape.scratch_rows for shape in shapes), default=0),
        )
        return InteriorPointPlan(layout, symbolic.packed, symbolic.fill, symbolic.flops)


def _blocks(shapes: Sequence[Shape], first_row: int, first_unknown: int) -> list[Block]:
    """Give every block its rows, its place in the arrays of ``Scaling``, and its additional unknowns."""

    def starts(storage: str, length: Callable[[Shape], int], first: int = 0) -> list[int]:
        """Start of each block's entries, where a block of this storage has ``length`` of them; -1 for other blocks."""
        chosen = [shape.storage == storage for shape in shapes]
        lengths = [length(shape) if mine else 0 for shape, mine in zip(shapes, chosen, strict=True)]
        return [first + start if mine else -1 for start, mine in zip(_offsets(lengths), chosen, strict=True)]

    return [
        Block(first_row + start, shape.size, shape.order, factor, packed, expanded, extra, shape.exponent)
        for shape, start, factor, packed, expanded, extra in zip(
            shapes,
            _offsets([shape.size for shape in shapes]),
            _offsets([shape.factor_rows for shape in shapes]),
            starts("dense", lambda shape: shape.size * (shape.size + 1) // 2),
            starts("expanded", lambda shape: 2 * shape.size),
            starts("expanded", lambda _: 2, first_unknown),
            strict=True,
        )
    ]


def _offsets(lengths: Sequence[int]) -> list[int]:
    return np.cumsum([0, *lengths])[:-1].tolist()


def _indices(values: Any) -> Indices:
    return np.array(values, dtype=np.int32)


def _joined(parts: list[Indices]) -> Indices:
    return np.concatenate([np.zeros(0, np.int32), *parts])
