"""Rows of each group of cones in the KKT system: their entries of K, and the factor L of D = L L'.

L is chosen sparse and need not be square, so that L'A keeps the pattern of A unless the eigenbasis of D mixes rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np

from convexlayer.cones import Eigenbasis, Group, KroneckerBasis, RankTwo
from convexlayer.program import Array, IndexArray, Structure
from convexlayer.sparse import rotate_entries

__all__ = ["BLOCK_FIELDS", "AbstractRows", "FlatRows", "Section", "SystemColumns", "entries_of", "rows_of"]

Section = tuple[IndexArray, IndexArray]
"""Row and column indices of entries in the upper triangle of K, two arrays of equal shape."""


BLOCK_FIELDS = 7
"""Number of integers of a block in ``SystemColumns.blocks``."""


class SystemColumns(NamedTuple):
    """Index arrays of curved cones for the kernels.

    Attributes:
        blocks: for each block, (blocks, BLOCK_FIELDS): with an eigenbasis the number of columns of A with entries in
            it, the start of its part of ``place`` and ``source``, and -1 for the rest; of a rank-two form -1, its first
            entry in ``entries``, the end of its entries, the unknowns xi and nu, and the positions of their diagonal
            entries.
        diagonal: position in K of the diagonal entry of each row.
        place: positions in K of the entries of L'A with an eigenbasis, of each block (size, columns).
        source: indices in A of the entries of the same columns of A, -1 for zeros, of each block (size, columns).
        entries: the entries of A of rank-two forms by columns: index in A, row, position in K, and position in K of the
            entry of its column in the row of xi, (entries, 4).
        extra: positions in K of the entries of each row in the columns of xi and nu, (rows, 2); -1 without.
    """

    blocks: IndexArray
    diagonal: IndexArray
    place: IndexArray
    source: IndexArray
    entries: IndexArray
    extra: IndexArray

    @staticmethod
    def joined(groups: Sequence[SystemColumns]) -> SystemColumns:
        """Concatenate the index arrays of consecutive groups."""
        none = np.zeros(0, np.int64)
        parts = [SystemColumns(none.reshape(0, BLOCK_FIELDS), none, none, none, none.reshape(0, 4), none.reshape(0, 2))]
        places, entries = 0, 0
        for group in groups:
            shift = np.where(group.blocks[:, 0] < 0, entries, places)[:, None]
            blocks = group.blocks.copy()
            blocks[:, 1:3] += np.where(blocks[:, 1:3] >= 0, shift, 0)
            parts.append(group._replace(blocks=blocks))
            places, entries = places + len(group.place), entries + len(group.entries)
        return SystemColumns(*(np.concatenate(part) for part in zip(*parts, strict=True)))


class AbstractRows(ABC):
    """The rows of K of one group of curved cones.

    With n variables and m rows, unknown n + i belongs to row i; extra unknowns follow after these.

    Attributes:
        sections: the group's entries of K, its part of the diagonal included.
        extra_signs: signs of the diagonal entries of the extra unknowns.
    """

    sections: list[Section]
    extra_signs: Array = np.zeros(0)

    def __init__(self, group: Group, structure: Structure) -> None:
        self.rows = group.rows
        self.own = slice(structure.n + self.rows.start, structure.n + self.rows.stop)
        self._shape = (group.blocks, group.size)
        self._diagonal = np.arange(self.own.start, self.own.stop)

    @abstractmethod
    def write(self, A: Array, piece: Any, K: Array, places: Sequence[IndexArray]) -> None:
        """Write this group's entries of K, which is zero on entry.

        Args:
            A: values of A, (B, nnz).
            piece: derivative D of the group's projection.
            K: values of K, (B, nnz), modified in place.
            places: positions in K of the entries of each section.
        """

    @abstractmethod
    def columns(self, places: Sequence[IndexArray]) -> SystemColumns:
        """The index arrays of this group for the kernels, from the positions in K of the entries of each section.

        Raises:
            TypeError: the kernels have no form of these rows.
        """

    @abstractmethod
    def spread(self, z: Array, piece: Any) -> Array:
        """Compute L u, (B, rows), from the unknowns z (B, N)."""

    @abstractmethod
    def gather(self, v: Array, piece: Any, rhs: Array) -> None:
        """Write L'v, for v (B, m), into the right-hand side (B, N)."""

    def _blocks(self, v: Array) -> Array:
        return v.reshape(len(v), *self._shape)

    @staticmethod
    def _flat(v: Array) -> Array:
        return v.reshape(len(v), v.shape[1] * v.shape[2])


def rows_of(groups: Sequence[Group], structure: Structure) -> list[AbstractRows]:
    """Build the rows of the curved groups; their extra unknowns are numbered group by group."""
    found: list[AbstractRows] = []
    extra = structure.n + structure.m
    for group in groups:
        if group.kronecker:
            found.append(_KroneckerRows(group, structure))
        elif group.rank_two:
            found.append(_RankTwoRows(group, structure, extra))
        else:
            found.append(_BasisRows(group, structure))
        extra += len(found[-1].extra_signs)
    return found


@final
class FlatRows:
    """Rows of the zero and nonnegative cones, where L = D = diag(d) with entries 0 and 1.

    Attributes:
        sections: their entries of K and their part of the diagonal, as in ``AbstractRows``.
        own: positions of their unknowns.
        source: entry of A for each entry of the first section.
        row: row of each such entry.
    """

    def __init__(self, flat: int, structure: Structure) -> None:
        A, n = structure.A, structure.n
        self.own = slice(n, n + flat)
        self.source = entries_of(structure, slice(0, flat))
        self.row = A.rows[self.source]
        diagonal = np.arange(n, n + flat)
        self.sections: list[Section] = [(A.cols[self.source], n + self.row), (diagonal, diagonal)]


@final
class _BasisRows(AbstractRows):
    """Rows with D = Q diag(d) Q', L = Q diag(sqrt d): each block of L'A is dense on the columns of A in the block."""

    def __init__(self, group: Group, structure: Structure) -> None:
        super().__init__(group, structure)
        A, size = structure.A, group.size
        entries = entries_of(structure, self.rows)
        block, local = np.divmod(A.rows[entries] - self.rows.start, size)
        alike: dict[int, list[tuple[int, IndexArray, IndexArray]]] = {}
        for index in range(group.blocks):
            mine = np.flatnonzero(block == index) if group.blocks > 1 else slice(None)
            columns, place = np.unique(A.cols[entries[mine]], return_inverse=True)
            source = np.full((size, len(columns)), -1)
            source[local[mine], place] = entries[mine]
            alike.setdefault(len(columns), []).append((index, columns, source))
        self.sections = [(self._diagonal, self._diagonal)]
        self._members: list[tuple[IndexArray, IndexArray]] = []
        unknowns = self._diagonal.reshape(group.blocks, size)
        for same in alike.values():
            members = np.array([index for index, _, _ in same])
            columns, source = (np.stack([part[i] for part in same]) for i in (1, 2))
            shape = source.shape
            self.sections.append(
                (np.broadcast_to(columns[:, None], shape), np.broadcast_to(unknowns[members][..., None], shape))
            )
            self._members.append((members, source))

    def write(self, A: Array, piece: Any, K: Array, places: Sequence[IndexArray]) -> None:
        K[:, places[0]] = self._flat(-piece.complement)
        for place, (members, source) in zip(places[1:], self._members, strict=True):
            rotate_entries(K, place, A, source, _basis(piece), piece.root, members)

    def columns(self, places: Sequence[IndexArray]) -> SystemColumns:
        blocks = np.full((self._shape[0], BLOCK_FIELDS), -1)
        start = 0
        for members, source in self._members:
            size = source[0].size
            blocks[members, 0], blocks[members, 1] = source.shape[2], start + size * np.arange(len(members))
            start += source.size
        none, rows = np.zeros(0, np.int64), self.rows.stop - self.rows.start
        return SystemColumns(
            blocks,
            places[0],
            np.concatenate([none, *(place.ravel() for place in places[1:])]),
            np.concatenate([none, *(source.ravel() for _, source in self._members)]),
            none.reshape(0, 4),
            np.full((rows, 2), -1),
        )

    def spread(self, z: Array, piece: Any) -> Array:
        return self._flat((_basis(piece) @ (piece.root * self._blocks(z[:, self.own]))[..., None])[..., 0])

    def gather(self, v: Array, piece: Any, rhs: Array) -> None:
        rotated = (self._blocks(v[:, self.rows])[..., None, :] @ _basis(piece))[..., 0, :]
        rhs[:, self.own] = self._flat(piece.root * rotated)


@final
class _RankTwoRows(AbstractRows):
    """Rows with D = a^2 (I - q2 q2') + b^2 q1 q1', a^2 = delta, b^2 = 1 - delta, and sparse L = (a (I - q2 q2'), b q1).

    Each block has an extra unknown xi for the last column of L, and a multiplier nu of the constraint q2'u = 0, so that
    v = a u + b q1 xi. With r = A l minus the right-hand side, the rows are

        a r - (1 - delta) u + a b q1 xi + q2 nu = 0,    b q1'r + a b q1'u - delta xi = 0,    q2'u = 0

    All coefficients are at most 1, and those of a direction do not all vanish as delta tends to 0 or 1. If D = I or
    D = 0, then q2 = 0 and b q1 = 0, and the diagonal entries -1 and 1 give xi = nu = 0.
    """

    def __init__(self, group: Group, structure: Structure, extra: int) -> None:
        super().__init__(group, structure)
        A, blocks, size = structure.A, group.blocks, group.size
        entries = entries_of(structure, self.rows)
        block = (A.rows[entries] - self.rows.start) // size
        order = np.lexsort((A.cols[entries], block))
        entries, block = entries[order], block[order]
        self._source, self._local = entries, A.rows[entries] - self.rows.start
        self._block = block if blocks > 1 else slice(0, 1)
        first = np.flatnonzero(np.diff(block * A.shape[1] + A.cols[entries], prepend=-1))
        self._starts = first
        self._xi, self._nu = slice(extra, extra + blocks), slice(extra + blocks, extra + 2 * blocks)
        self.extra_signs = np.repeat([-1.0, 1.0], blocks)
        xi, nu = np.arange(extra, extra + blocks), np.arange(extra + blocks, extra + 2 * blocks)
        unknowns = self._diagonal.reshape(blocks, size)
        self.sections = [
            (A.cols[entries], structure.n + A.rows[entries]),
            (A.cols[entries[first]], xi[block[first]]),
            (unknowns, unknowns),
            (unknowns, np.broadcast_to(xi[:, None], unknowns.shape)),
            (unknowns, np.broadcast_to(nu[:, None], unknowns.shape)),
            (xi, xi),
            (nu, nu),
        ]

    def write(self, A: Array, piece: RankTwo, K: Array, places: Sequence[IndexArray]) -> None:
        values, a, lead = np.take(A, self._source, axis=1), piece.root, piece.scaled_q1
        along = np.take(self._flat(lead), self._local, axis=1) * values
        curved = piece.q2[..., 0] > 0
        parts = (
            a[:, self._block, 0] * values,
            np.add.reduceat(along, self._starts, axis=1) if len(self._starts) else along,
            -piece.complement,
            a * lead,
            piece.q2,
            -np.where(curved, piece.delta[..., 0], 1.0),
            1.0 - curved,
        )
        for place, part in zip(places, parts, strict=True):
            K[:, place] = part

    def columns(self, places: Sequence[IndexArray]) -> SystemColumns:
        count = self._shape[0]
        block = self._local // self._shape[1]
        of_xi = places[1][np.searchsorted(self._starts, np.arange(len(self._source)), side="right") - 1]
        entries = np.stack([self._source, self._local + self.rows.start, places[0], of_xi], axis=1)
        ends = np.searchsorted(block, np.arange(count + 1))
        unknowns = (np.arange(where.start, where.stop) for where in (self._xi, self._nu))
        fields = (np.full(count, -1), ends[:-1], ends[1:], *unknowns, places[5], places[6])
        none = np.zeros(0, np.int64)
        extra = np.stack([places[3].ravel(), places[4].ravel()], axis=1)
        return SystemColumns(np.stack(fields, axis=1), places[2].ravel(), none, none, entries, extra)

    def spread(self, z: Array, piece: RankTwo) -> Array:
        return self._flat(piece.root * self._blocks(z[:, self.own]) + piece.scaled_q1 * z[:, self._xi, None])

    def gather(self, v: Array, piece: RankTwo, rhs: Array) -> None:
        blocks = self._blocks(v[:, self.rows])
        rhs[:, self.own] = self._flat(piece.root * blocks)
        rhs[:, self._xi] = np.sum(piece.scaled_q1 * blocks, axis=-1)
        rhs[:, self._nu] = 0.0


@final
class _KroneckerRows(AbstractRows):
    """Rows with D = Q diag(d) Q', L = Q diag(sqrt d); only I - L'L is stored, and ``matrix_free`` applies L'A."""

    def __init__(self, group: Group, structure: Structure) -> None:
        super().__init__(group, structure)
        self.sections = [(self._diagonal, self._diagonal)]

    def write(self, A: Array, piece: KroneckerBasis, K: Array, places: Sequence[IndexArray]) -> None:
        K[:, places[0]] = self._flat(-piece.complement)

    def columns(self, places: Sequence[IndexArray]) -> SystemColumns:
        raise TypeError("products with large semidefinite blocks are matrix-free")

    def spread(self, z: Array, piece: KroneckerBasis) -> Array:
        return self._flat(piece.combine(piece.root * self._blocks(z[:, self.own])))

    def gather(self, v: Array, piece: KroneckerBasis, rhs: Array) -> None:
        rhs[:, self.own] = self._flat(piece.root * piece.coordinates(self._blocks(v[:, self.rows])))


def _basis(piece: Eigenbasis) -> Array:
    """The orthogonal matrix Q, (B, blocks, size, size); the identity if the piece has none."""
    if piece.Q is not None:
        return piece.Q
    size = piece.d.shape[-1]
    return np.broadcast_to(np.eye(size), (*piece.d.shape, size))


def entries_of(structure: Structure, rows: slice) -> IndexArray:
    """Positions in A's values of the entries in these rows."""
    return np.flatnonzero((structure.A.rows >= rows.start) & (structure.A.rows < rows.stop))
