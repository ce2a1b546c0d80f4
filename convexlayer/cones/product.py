"""The product cone of a program, processed by groups of consecutive blocks of one cone and size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from itertools import groupby
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from convexlayer.cones.base import AbstractCone, BlockKind, ConePoint, Eigenbasis, RankTwo, namespace
from convexlayer.cones.compiled import BlockTable, block_table
from convexlayer.cones.exponential import Exponential
from convexlayer.cones.kronecker import KroneckerBasis
from convexlayer.cones.nonnegative import Nonnegative
from convexlayer.cones.power import Power
from convexlayer.cones.psd import PositiveSemidefinite
from convexlayer.cones.second_order import SecondOrder
from convexlayer.cones.zero import Zero
from convexlayer.errors import ShapeError
from convexlayer.program import Array, Cones

__all__ = [
    "KRONECKER_FROM",
    "RANK_TWO_FROM",
    "Group",
    "Piece",
    "ProductCone",
    "ProductDerivative",
    "ProductPoint",
    "product_cone",
]

RANK_TWO_FROM = 8
"""Number of rows from which the derivative of a second-order block is a rank-two form (measured break-even)."""

KRONECKER_FROM = 24
"""Order from which the derivative of a semidefinite block is a matrix-free KroneckerBasis (measured break-even)."""

Piece: TypeAlias = Eigenbasis | RankTwo | KroneckerBasis
"""The derivative of a group of blocks."""


EIGENVALUE_FLOOR = 1e-8
"""Lower bound of eigenvalues of a derivative in relative comparisons; smaller ones have no noticeable effect."""


@final
@dataclass(frozen=True, eq=False)
class Group:
    """Consecutive blocks of one cone and size, processed by one vectorised call.

    Attributes:
        start: first row.
        blocks: number of blocks.
        size: rows of each.
        cone: the cone.
    """

    start: int
    blocks: int
    size: int
    cone: AbstractCone

    @property
    def rows(self) -> slice:
        """The rows of the group."""
        return slice(self.start, self.start + self.blocks * self.size)

    @property
    def rank_two(self) -> bool:
        """Whether the derivative is a rank-two form."""
        return isinstance(self.cone, SecondOrder) and self.size >= RANK_TWO_FROM

    @property
    def kronecker(self) -> bool:
        """Whether the derivative is a ``KroneckerBasis``."""
        return isinstance(self.cone, PositiveSemidefinite) and self.cone.order >= KRONECKER_FROM

    def split(self, w: Array) -> Array:
        """The group's rows of w (B, m), as (B, blocks, size)."""
        return w[:, self.rows].reshape(w.shape[0], self.blocks, self.size)

    def at(self, w: Array) -> _Point:
        """The projection and derivative at the group's rows of w (B, m), without an eigenbasis for large blocks."""
        part, cone = self.split(w), self.cone
        if isinstance(cone, SecondOrder) and self.rank_two:
            return cone.rank_two_at(part)
        if isinstance(cone, PositiveSemidefinite) and self.kronecker:
            return cone.kronecker_at(part)
        return cone.at(part)


_Point: TypeAlias = ConePoint[Eigenbasis] | ConePoint[RankTwo] | ConePoint[KroneckerBasis]


@final
class _Points:
    """Projections of the groups of a product cone at w (B, m), each computed once on demand."""

    def __init__(self, cone: ProductCone, w: Array) -> None:
        self.cone = cone
        self.w = w
        self._found: dict[int, _Point] = {}

    def at(self, i: int) -> _Point:
        """The projection and derivative of group i."""
        found = self._found.get(i)
        if found is None:
            found = self._found[i] = self.cone.groups[i].at(self.w)
        return found


@final
class ProductDerivative:
    """Derivative D of the projection onto the dual of a product cone at a batch of points, computed lazily.

    Attributes:
        groups: the groups of the product cone.
    """

    def __init__(self, points: _Points) -> None:
        self._points = points
        self.groups = points.cone.groups

    @cached_property
    def flat(self) -> Array:
        """Diagonal of D in the rows of the zero and nonnegative cones, which come first, (B, rows)."""
        w, cone = self._points.w, self._points.cone
        d = namespace(w).ones_like(w[:, : cone.flat])
        d[:, cone.zero :] = w[:, cone.zero : cone.flat] > 0.0
        return d

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The derivative of each group, with axes (B, blocks, ...)."""
        return (*(self._points.at(i).derive() for i in range(self._points.cone.flat_groups)), *self.curved)

    @cached_property
    def curved(self) -> tuple[Piece, ...]:
        """The derivative of each group of a curved cone (neither zero nor nonnegative)."""
        return tuple(self._points.at(i).derive() for i in range(self._points.cone.flat_groups, len(self.groups)))

    @cached_property
    def margins(self) -> tuple[Array, ...]:
        """The smallest margin of each group, (B,)."""
        return tuple(_least(piece) for piece in self.pieces)

    @cached_property
    def margin(self) -> Array:
        """The smallest margin of all blocks, (B,); infinite if D is constant."""
        w, cone = self._points.w, self._points.cone
        xp = namespace(w)
        margins = [_least(piece) for piece in self.curved]
        if cone.flat > cone.zero:
            margins.append(xp.min(xp.abs(w[:, cone.zero : cone.flat]), axis=-1))
        return reduce(xp.minimum, margins) if margins else xp.full_like(xp.sum(w, axis=-1), xp.inf)

    def weakly_active(self, size: Array, bound: Array) -> Array:
        """Mask (B, m) of rows of weakly active blocks: margin at most bound (B,) times the block's size (B, m)."""
        w, cone = self._points.w, self._points.cone
        xp = namespace(w)
        near = xp.abs(w[:, : cone.flat]) <= bound[:, None] * size[:, : cone.flat]
        near[:, : cone.zero] = False
        parts = [near]
        for group, piece in zip(self.groups[cone.flat_groups :], self.curved, strict=True):
            blocks = piece.margin() <= bound[:, None] * group.split(size)[..., 0]
            parts.append(xp.repeat(blocks, group.size, axis=1))
        return xp.concat(parts, axis=-1)

    def relative_change(self, other: ProductDerivative) -> Array:
        """The largest relative difference (B,) between the eigenvalues d and 1 - d of curved cones and ``other``'s.

        Differences are relative to this derivative's eigenvalues, bounded below by EIGENVALUE_FLOOR.
        """
        w = self._points.w
        xp = namespace(w)
        largest = xp.zeros_like(xp.sum(w, axis=-1))
        for mine, theirs in zip(self.curved, other.curved, strict=True):
            pairs = zip(_eigenvalues(mine), _eigenvalues(theirs), strict=True)
            for here, there in pairs:
                ratio = xp.abs(there - here) / xp.maximum(here, xp.asarray(EIGENVALUE_FLOOR, dtype=here.dtype))
                largest = xp.maximum(largest, xp.max(xp.max(ratio, axis=-1), axis=-1))
        return largest

    def relative_margin(self, size: Array) -> Array:
        """The smallest margin of all blocks relative to the sizes of their first rows, (B, m) -> (B,).

        Blocks of size 0 are ignored.
        """
        w, cone = self._points.w, self._points.cone
        xp = namespace(w)
        flat = slice(cone.zero, cone.flat)
        margins = [xp.where(size[:, flat] == 0.0, xp.inf, xp.abs(w[:, flat]) / size[:, flat])]
        for group, piece in zip(self.groups[cone.flat_groups :], self.curved, strict=True):
            sizes = group.split(size)[..., 0]
            margins.append(xp.where(sizes == 0.0, xp.inf, piece.margin() / sizes))
        return xp.min(xp.concat(margins, axis=-1), axis=-1) if cone.m > cone.zero else xp.full(len(w), xp.inf)

    def apply(self, v: Array) -> Array:
        """D v, (B, m) -> (B, m)."""
        pieces = [piece.apply(group.split(v)) for group, piece in zip(self.groups, self.pieces, strict=True)]
        return _join(v, pieces)


@final
class ProductPoint:
    """The projection onto the dual of a product cone at points w (B, m), and its derivative, computed lazily.

    Attributes:
        cone: the product cone.
        w: the points.
    """

    def __init__(self, cone: ProductCone, w: Array) -> None:
        self.cone = cone
        self.w = w
        self._points = _Points(cone, w)

    @cached_property
    def projection(self) -> Array:
        """Pi_{K*}(w), (B, m)."""
        return _join(self.w, [self._points.at(i).projection for i in range(len(self.cone.groups))])

    @property
    def curved_projection(self) -> Array:
        """The rows of the projection that belong to curved cones, which come last."""
        first, last = self.cone.flat_groups, len(self.cone.groups)
        pieces = [self._points.at(i).projection for i in range(first, last)]
        return _join(self.w[:, self.cone.flat :], pieces)

    @cached_property
    def derivative(self) -> ProductDerivative:
        """The derivative of Pi_{K*} at w."""
        return ProductDerivative(self._points)


@final
class ProductCone:
    """The product cone K of a program, rows in the order of `Cones`.

    Attributes:
        m: number of rows.
        groups: groups of its blocks; those of the zero and nonnegative cones come first.
        zero: number of rows of the zero cone.
        flat: number of rows of the zero and nonnegative cones.
        flat_groups: number of groups of the zero and nonnegative cones.
        blocks: first rows of the blocks of the curved cones, followed by m, (blocks + 1,).
    """

    def __init__(self, cones: Cones) -> None:
        """Group the blocks whose sizes ``cones`` lists."""
        self.m = cones.m
        self.groups = tuple(_groups(cones))
        self.zero, self.flat = cones.zero, cones.zero + cones.nonnegative
        self.flat_groups = (cones.zero > 0) + (cones.nonnegative > 0)
        curved = self.groups[self.flat_groups :]
        self.blocks = np.array(
            [*(start for group in curved for start in range(group.rows.start, group.rows.stop, group.size)), self.m],
            dtype=np.int64,
        )

    def at(self, w: Array) -> ProductPoint:
        """The projection of w (B, m), and its derivative.

        Raises:
            ShapeError: w is not of shape (B, m).
        """
        self._check(w)
        return ProductPoint(self, w)

    def project_dual(self, w: Array) -> Array:
        """Pi_{K*}(w), (B, m) -> (B, m); raises as ``at``."""
        return self.at(w).projection

    def derivative(self, w: Array) -> ProductDerivative:
        """The derivative of Pi_{K*} at w, (B, m); raises as ``at``."""
        return self.at(w).derivative

    def margin(self, w: Array) -> Array:
        """The smallest margin of all blocks, (B, m) -> (B,); infinite if D is constant.

        Raises:
            ShapeError: w is not of shape (B, m).
        """
        return self.at(w).derivative.margin

    @cached_property
    def table(self) -> BlockTable | None:
        """The arguments of the kernels for the blocks of curved cones; None if one of them has no kernels.

        Large semidefinite blocks, whose derivative is not stored, have none.
        """
        kinds: list[BlockKind] = []
        for group in self.groups[self.flat_groups :]:
            of_group = None if group.kronecker else group.cone.kinds(group.blocks, rank_two=group.rank_two)
            if of_group is None:
                return None
            kinds += of_group
        return block_table(tuple(kinds), self.flat)

    @cached_property
    def centre(self) -> Array:
        """A direction in the interior of K and K*, 0 in the rows of the zero cone, (m,)."""
        return np.concatenate([np.zeros(0), *(np.tile(group.cone.centre, group.blocks) for group in self.groups)])

    @cached_property
    def recession_rows(self) -> NDArray[np.bool_]:
        """Mask (m,) of the unit vectors that are in K: increasing such a row of an element of K stays in K."""
        nothing = np.zeros(0, dtype=bool)
        return np.concatenate([nothing, *(np.tile(group.cone.recession_rows, group.blocks) for group in self.groups)])

    def largest_of_blocks(self, v: Array) -> Array:
        """Each row of v (B, m) replaced by the maximum of its block; every row of a flat cone is a block."""
        xp = namespace(v)
        pieces = [xp.broadcast_to(xp.max(part, axis=-1, keepdims=True), part.shape) for part in self._curved_parts(v)]
        return xp.concat(
            [v[:, : self.flat], *(piece.reshape(len(v), piece.shape[1] * piece.shape[2]) for piece in pieces)], axis=-1
        )

    def _curved_parts(self, v: Array) -> list[Array]:
        return [group.split(v) for group in self.groups[self.flat_groups :]]

    def _check(self, w: Array) -> None:
        if w.ndim != 2 or w.shape[1] != self.m:
            raise ShapeError(f"expected w of shape (batch, {self.m}), got {tuple(w.shape)}; add the batch axis")


@lru_cache(maxsize=256)
def product_cone(cones: Cones) -> ProductCone:
    """The cached product cone of these sizes."""
    return ProductCone(cones)


def _eigenvalues(piece: Piece) -> tuple[Array, Array]:
    """The eigenvalues d and 1 - d of a group, each to full relative precision."""
    return (piece.delta if isinstance(piece, RankTwo) else piece.d), piece.complement


def _least(piece: Piece) -> Array:
    """The smallest margin of all blocks of a group, (B,)."""
    margin = piece.margin()
    return namespace(margin).min(margin, axis=-1)


def _groups(cones: Cones) -> Iterator[Group]:
    """The groups in row order."""
    start = 0
    for blocks, cone in _runs(cones):
        yield Group(start, blocks, cone.size, cone)
        start += blocks * cone.size


def _runs(cones: Cones) -> Iterator[tuple[int, AbstractCone]]:
    """Number of blocks and cone of each group."""
    if cones.zero:
        yield cones.zero, Zero()
    if cones.nonnegative:
        yield cones.nonnegative, Nonnegative()
    for size, blocks in _lengths(cones.second_order):
        yield blocks, SecondOrder(size)
    for order, blocks in _lengths(cones.psd):
        yield blocks, PositiveSemidefinite(order)
    if cones.exponential:
        yield cones.exponential, Exponential()
    if cones.power:
        yield len(cones.power), Power(cones.power)


def _lengths(sizes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Run-length encoding: the value and the length of each run of equal values."""
    return ((size, sum(1 for _ in run)) for size, run in groupby(sizes))


def _join(w: Array, pieces: list[Array]) -> Array:
    """Concatenate the groups' (B, blocks, size) to (B, m); without groups, return w, which is empty."""
    if not pieces:
        return w
    flat = [piece.reshape(w.shape[0], piece.shape[1] * piece.shape[2]) for piece in pieces]
    joined: Array = flat[0] if len(flat) == 1 else namespace(w).concat(flat, axis=-1)
    return joined
