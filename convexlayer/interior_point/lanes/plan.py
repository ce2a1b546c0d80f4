"""Symbolic analysis of a structure: the pattern of the KKT matrix, and the place of each value in it."""

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
"""Second-order blocks of up to this many rows are dense blocks of the system, larger ones are expanded."""

LARGE_BLOCK = 300
"""Dense blocks of this many rows come last in the order of elimination."""


class Layout(NamedTuple):
    """Index arrays for the compiled loops. Positions are those of the values of the LanePlan.

    The system is, for a scaling H of the cones,

        K = [ P  A' ]
            [ A  -H ]

    A second-order block H = eta^2 (diag(delta, 1, ...) + u u' - v v') of many rows is expanded: two unknowns more,
    in which K stays as sparse as A. Other blocks that are not diagonal are stored dense, as packed upper triangles.

    Attributes:
        P_start, P_row: upper triangle of P by columns.
        P_source: position of each of its entries among the values of P.
        P_place: and in K.
        A_start, A_row, A_place: A by columns.
        A_single: whether an entry is its row's only one.
        diagonal: of K, (N,).
        zero: rows of the zero cone.
        orthant: end of the rows of the nonnegative cone.
        second_start, second_size: first row and number of rows of each second-order block.
        second_packed: where its packed triangle starts, or -1 where it is expanded.
        second_place: where its entries for v, then those for u, start in ``expanded_place``, or -1.
        second_extra: index of its first unknown more, or -1.
        expanded_place: in K, of the entries of all expanded blocks.
        psd_start, psd_order, psd_packed: first row, order and packed triangle of each semidefinite block.
        exponential_start, exponential_packed: the same for the exponential blocks.
        power_start, power_packed, power_alpha: the same for the power blocks, and their exponents.
        packed_place: in K, of the entries of all packed triangles.
        packed_diagonal: 1 where such an entry is on the diagonal, else 0.
    """

    P_start: Indices
    P_row: Indices
    P_source: Indices
    P_place: Indices
    A_start: Indices
    A_row: Indices
    A_place: Indices
    A_single: BoolArray
    diagonal: Indices
    zero: int
    orthant: int
    second_start: Indices
    second_size: Indices
    second_packed: Indices
    second_place: Indices
    second_extra: Indices
    expanded_place: Indices
    psd_start: Indices
    psd_order: Indices
    psd_packed: Indices
    exponential_start: Indices
    exponential_packed: Indices
    power_start: Indices
    power_packed: Indices
    power_alpha: Array
    packed_place: Indices
    packed_diagonal: Array


@final
@dataclass(frozen=True, eq=False)
class InteriorPointPlan:
    """The symbolic work of one structure.

    Attributes:
        layout: where values go.
        factor: the factorisation of K.
        symmetric: whether every cone is symmetric (no exponential and no power cone).
        degree: of the cones' barrier.
        fill: entries of the factor.
        flops: multiply-adds of a factorisation.
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
        P_place, diagonal, A_place, *rest = np.split(symbolic.place[where].astype(np.int32), ends[:-1])
        packed_place = _joined(rest[: len(packed)])
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
            P_place=P_place,
            A_start=A.indptr.astype(np.int32),
            A_row=A.rows.astype(np.int32),
            A_place=A_place,
            A_single=A.alone,
            diagonal=diagonal,
            zero=cones.zero,
            orthant=cones.zero + cones.nonnegative,
            second_start=start("second_order"),
            second_size=_indices([block.size for block in kinds["second_order"]]),
            second_packed=column("second_order", starts),
            second_place=column("second_order", places),
            second_extra=column("second_order", extras),
            expanded_place=_joined(rest[len(packed) :]),
            psd_start=start("psd"),
            psd_order=_indices(cones.psd),
            psd_packed=column("psd", starts),
            exponential_start=start("exponential"),
            exponential_packed=column("exponential", starts),
            power_start=start("power"),
            power_packed=column("power", starts),
            power_alpha=np.array(cones.power, dtype=np.float64),
            packed_place=packed_place,
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
