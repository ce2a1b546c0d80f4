"""Symbolic analysis of a structure: sparsity pattern of the KKT matrix, and the position of each value in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np

from convexlayer.linalg.lanes import Indices, LanePlan
from convexlayer.linalg.symbolic import Symbolic
from convexlayer.program import Array, Cones, Pattern, Structure
from convexlayer.solution import BoolArray

__all__ = ["InteriorPointPlan", "Layout"]

DENSE_SECOND_ORDER = 4
"""Largest second-order block, in rows, that is stored dense in the KKT matrix; larger ones are expanded (Clarabel's
SOC_NO_EXPANSION_MAX_SIZE)."""

LARGE_BLOCK = 300
"""Dense blocks of at least this many rows are eliminated last, as one dense trailing block. Ordering them by minimum
degree would cost time and could not reduce their fill."""


class Layout(NamedTuple):
    """Index arrays for the kernels. Positions ("place") refer to the values of the LanePlan.

    The KKT matrix is, for the scaling H of the cones,

        K = [ P  A' ]
            [ A  -H ]

    A large second-order block H = eta^2 (diag(delta, 1, ...) + u u' - v v') is expanded: two additional unknowns keep
    K as sparse as A. Other blocks that are not diagonal are stored dense, as packed upper triangles.

    Attributes:
        P_start, P_row: upper triangle of P by columns: column starts and row indices.
        P_source: index of each of its entries among the values of P.
        P_position: position of each of its entries in K.
        A_start, A_row, A_position: A by columns: column starts, row indices and positions in K.
        A_single: whether an entry is the only one of its row.
        diagonal: positions of the diagonal of K, (N,).
        zero: number of rows of the zero cone.
        orthant: index after the last row of the nonnegative cone.
        second_start, second_size: first row and number of rows of each second-order block.
        second_packed: start of its packed triangle, or -1 if it is expanded.
        second_position: start of its entries of v, followed by those of u, in ``expanded_position``, or -1.
        second_extra: index of the first of its two additional unknowns, or -1.
        expanded_position: positions in K of the entries of all expanded blocks.
        psd_start, psd_order, psd_packed: first row, order and start of the packed triangle of each semidefinite block.
        exponential_start, exponential_packed: first row and start of the packed triangle of each exponential block.
        power_start, power_packed, power_alpha: the same for each power block, and its exponent.
        packed_position: positions in K of the entries of all packed triangles.
        packed_diagonal: 1 for a packed entry on the diagonal, else 0.
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
    zero: int
    orthant: int
    second_start: Indices
    second_size: Indices
    second_packed: Indices
    second_position: Indices
    second_extra: Indices
    expanded_position: Indices
    psd_start: Indices
    psd_order: Indices
    psd_packed: Indices
    exponential_start: Indices
    exponential_packed: Indices
    power_start: Indices
    power_packed: Indices
    power_alpha: Array
    packed_position: Indices
    packed_diagonal: Array


@final
@dataclass(frozen=True, eq=False)
class InteriorPointPlan:
    """Symbolic analysis of one structure, computed once and shared by all solves.

    Attributes:
        layout: index arrays.
        factor: symbolic factorisation of K.
        symmetric: whether every cone is symmetric (no exponential and no power cone).
        degree: degree of the barrier of the product cone.
        fill: number of entries of the factor.
        flops: multiply-adds of a numeric factorisation.
    """

    layout: Layout
    factor: LanePlan
    symmetric: bool
    degree: int
    fill: int
    flops: int

    @staticmethod
    def of(structure: Structure) -> InteriorPointPlan:
        """Analyse a structure."""
        n, m, P, A, cones = structure.n, structure.m, structure.P, structure.A, structure.cones
        upper = np.flatnonzero(P.rows <= P.cols)
        blocks = list(_blocks(cones))
        packed = [block for block in blocks if not block.expanded]
        expanded = [block for block in blocks if block.expanded]
        size = n + m + 2 * len(expanded)

        rows, cols = [P.rows[upper], np.arange(size), A.cols], [P.cols[upper], np.arange(size), n + A.rows]
        for block in packed:
            low, high = np.tril_indices(block.size)[::-1]  # the upper triangle, column by column
            rows.append(n + block.start + low)
            cols.append(n + block.start + high)
        for position, block in enumerate(expanded):
            for extra in (0, 1):
                rows.append(n + block.start + np.arange(block.size))
                cols.append(np.full(block.size, n + m + 2 * position + extra))
        ends = np.cumsum([len(part) for part in rows])
        keys, where = np.unique(np.concatenate(cols) * size + np.concatenate(rows), return_inverse=True)
        extra_signs = np.tile([-1.0, 1.0], len(expanded))
        large = [n + block.start + np.arange(block.size) for block in packed if block.size >= LARGE_BLOCK]
        symbolic = Symbolic.of(
            Pattern((size, size), keys % size, keys // size),
            np.concatenate([np.ones(n), -np.ones(m), extra_signs]),
            np.concatenate([np.zeros(0, np.int64), *large]),
        )
        P_position, diagonal, A_position, *rest = np.split(symbolic.place[where].astype(np.int32), ends[:-1])
        packed_position = _joined(rest[: len(packed)])
        on_diagonal = [_triangle_diagonal(block.size) for block in packed]
        starts = {id(block): start for block, start in zip(packed, _offsets([b.triangle for b in packed]), strict=True)}
        places = {id(b): start for b, start in zip(expanded, _offsets([2 * b.size for b in expanded]), strict=True)}
        extras = {id(block): n + m + 2 * position for position, block in enumerate(expanded)}
        kinds = {kind: [block for block in blocks if block.kind == kind] for kind in _KINDS}

        def column(kind: str, value: dict[int, int]) -> Indices:
            return _indices([value.get(id(block), -1) for block in kinds[kind]])

        def start(kind: str) -> Indices:
            return _indices([block.start for block in kinds[kind]])

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
            zero=cones.zero,
            orthant=cones.zero + cones.nonnegative,
            second_start=start("second_order"),
            second_size=_indices([block.size for block in kinds["second_order"]]),
            second_packed=column("second_order", starts),
            second_position=column("second_order", places),
            second_extra=column("second_order", extras),
            expanded_position=_joined(rest[len(packed) :]),
            psd_start=start("psd"),
            psd_order=_indices(cones.psd),
            psd_packed=column("psd", starts),
            exponential_start=start("exponential"),
            exponential_packed=column("exponential", starts),
            power_start=start("power"),
            power_packed=column("power", starts),
            power_alpha=np.array(cones.power, dtype=np.float64),
            packed_position=packed_position,
            packed_diagonal=np.concatenate([np.zeros(0), *on_diagonal]),
        )
        degree = cones.nonnegative + len(cones.second_order) + sum(cones.psd) + 3 * (
            cones.exponential + len(cones.power)
        )  # fmt: skip
        symmetric = not cones.exponential and not cones.power
        return InteriorPointPlan(layout, symbolic.plan, symmetric, degree, symbolic.fill, symbolic.flops)


_KINDS = ("second_order", "psd", "exponential", "power")


@dataclass(frozen=True, eq=False)
class _Block:
    kind: str
    start: int
    size: int

    @property
    def expanded(self) -> bool:
        return self.kind == "second_order" and self.size > DENSE_SECOND_ORDER

    @property
    def triangle(self) -> int:
        return self.size * (self.size + 1) // 2


def _blocks(cones: Cones) -> Iterator[_Block]:
    start = cones.zero + cones.nonnegative
    sizes = [("second_order", size) for size in cones.second_order]
    sizes += [("psd", order * (order + 1) // 2) for order in cones.psd]
    sizes += [("exponential", 3)] * cones.exponential + [("power", 3)] * len(cones.power)
    for kind, size in sizes:
        yield _Block(kind, start, size)
        start += size


def _triangle_diagonal(size: int) -> Array:
    rows, cols = np.tril_indices(size)[::-1]
    return (rows == cols).astype(np.float64)


def _offsets(lengths: list[int]) -> list[int]:
    return np.cumsum([0, *lengths])[:-1].tolist()


def _indices(values: list[int] | tuple[int, ...]) -> Indices:
    return np.array(values, dtype=np.int32)


def _joined(parts: list[Indices]) -> Indices:
    return np.concatenate([np.zeros(0, np.int32), *parts])
