"""The product of the cones of a program: slices of rows, handled group by group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from itertools import groupby
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from convexlayer.cones.base import AbstractCone, ConePoint, Eigenbasis, RankTwo, namespace
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
"""Second-order blocks of this many rows and more have their derivative as a rank-two form; measured."""

KRONECKER_FROM = 24
"""Semidefinite blocks of this order and more have their derivative without an eigenbasis; measured."""

Piece: TypeAlias = Eigenbasis | RankTwo | KroneckerBasis
"""The derivative of a group of blocks."""


LEAST = 1e-8
"""Eigenvalues of a derivative that are smaller than this do nothing that counts."""


@final
@dataclass(frozen=True, eq=False)
class Group:
    """Consecutive blocks of one cone and size, which one vectorised call handles.

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
        """Whether the derivative is that of large semidefinite blocks."""
        return isinstance(self.cone, PositiveSemidefinite) and self.cone.order >= KRONECKER_FROM

    def split(self, w: Array) -> Array:
        """The group's rows of w (B, m), as (B, blocks, size)."""
        return w[:, self.rows].reshape(w.shape[0], self.blocks, self.size)

    def at(self, w: Array) -> _Point:
        """The cone at the group's rows of w (B, m): without an eigenbasis where that would be large."""
        part, cone = self.split(w), self.cone
        if isinstance(cone, SecondOrder) and self.rank_two:
            return cone.rank_two_at(part)
        if isinstance(cone, PositiveSemidefinite) and self.kronecker:
            return cone.kronecker_at(part)
        return cone.at(part)


_Point: TypeAlias = ConePoint[Eigenbasis] | ConePoint[RankTwo] | ConePoint[KroneckerBasis]


@final
class _Points:
    """Each group of a product cone at its rows of w (B, m), asked once."""

    def __init__(self, cone: ProductCone, w: Array) -> None:
        self.cone = cone
        self.w = w
        self._found: dict[int, _Point] = {}

    def at(self, i: int) -> _Point:
        """The cone of group i."""
        found = self._found.get(i)
        if found is None:
            found = self._found[i] = self.cone.groups[i].at(self.w)
        return found


@final
class ProductDerivative:
    """D of a product cone at one batch of points, group by group; computes what it is asked for, once.

    Attributes:
        groups: the groups of the product.
    """

    def __init__(self, points: _Points) -> None:
        self._points = points
        self.groups = points.cone.groups

    @cached_property
    def flat(self) -> Array:
        """D's diagonal in the rows of the zero and nonnegative cones, the first ones, (B, rows)."""
        w, cone = self._points.w, self._points.cone
        d = namespace(w).ones_like(w[:, : cone.flat])
        d[:, cone.free :] = w[:, cone.free : cone.flat] > 0.0
        return d

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The derivative of each group, with axes (B, blocks, ...)."""
        return (*(self._points.at(i).derive() for i in range(self._points.cone.flat_groups)), *self.curved)

    @cached_property
    def curved(self) -> tuple[Piece, ...]:
        """The derivative of each group that is neither of the zero nor of the nonnegative cone."""
        return tuple(self._points.at(i).derive() for i in range(self._points.cone.flat_groups, len(self.groups)))

    @cached_property
    def margins(self) -> tuple[Array, ...]:
        """The least margin of each group, (B,)."""
        return tuple(_least(piece) for piece in self.pieces)

    @cached_property
    def margin(self) -> Array:
        """The least margin of all blocks, (B,); infinite where nothing can jump."""
        w, cone = self._points.w, self._points.cone
        xp = namespace(w)
        margins = [_least(piece) for piece in self.curved]
        if cone.flat > cone.free:
            margins.append(xp.min(xp.abs(w[:, cone.free : cone.flat]), axis=-1))
        return reduce(xp.minimum, margins) if margins else xp.full_like(xp.sum(w, axis=-1), xp.inf)

    def weak(self, size: Array, bound: Array) -> Array:
        """Rows of blocks whose margin, relative to their size (B, m), is at most a bound (B,), (B, m)."""
        w, cone = self._points.w, self._points.cone
        xp = namespace(w)
        near = xp.abs(w[:, : cone.flat]) <= bound[:, None] * size[:, : cone.flat]
        near[:, : cone.free] = False
        parts = [near]
        for group, piece in zip(self.groups[cone.flat_groups :], self.curved, strict=True):
            blocks = piece.margin() <= bound[:, None] * group.split(size)[..., 0]
            parts.append(xp.repeat(blocks, group.size, axis=1))
        return xp.concat(parts, axis=-1)

    def relative_change(self, other: ProductDerivative) -> Array:
        """The largest difference (B,) of an eigenvalue d or 1 - d in a curved cone from another's, relative to it.

        What is less than LEAST counts as that.
        """
        w = self._points.w
        xp = namespace(w)
        largest = xp.zeros_like(xp.sum(w, axis=-1))
        for mine, theirs in zip(self.curved, other.curved, strict=True):
            pairs = zip(_eigenvalues(mine), _eigenvalues(theirs), strict=True)
            for here, there in pairs:
                ratio = xp.abs(there - here) / xp.maximum(here, xp.asarray(LEAST, dtype=here.dtype))
                largest = xp.maximum(largest, xp.max(xp.max(ratio, axis=-1), axis=-1))
        return largest

    def relative_margin(self, size: Array) -> Array:
        """The least margin of all blocks relative to their sizes, those of their first rows, (B, m) -> (B,).

        Blocks that have no size are left out.
        """
        w, cone = self._points.w, self._points.cone
        xp = namespace(w)
        flat = slice(cone.free, cone.flat)
        margins = [xp.where(size[:, flat] == 0.0, xp.inf, xp.abs(w[:, flat]) / size[:, flat])]
        for group, piece in zip(self.groups[cone.flat_groups :], self.curved, strict=True):
            sizes = group.split(size)[..., 0]
            margins.append(xp.where(sizes == 0.0, xp.inf, piece.margin() / sizes))
        return xp.min(xp.concat(margins, axis=-1), axis=-1) if cone.m > cone.free else xp.full(len(w), xp.inf)

    def apply(self, v: Array) -> Array:
        """D v, (B, m) -> (B, m)."""
        pieces = [piece.apply(group.split(v)) for group, piece in zip(self.groups, self.pieces, strict=True)]
        return _join(v, pieces)


@final
class ProductPoint:
    """A product cone at points w (B, m); computes what it is asked for, once.

    Attributes:
        cone: the product.
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
        """The rows of the projection that belong neither to the zero nor to the nonnegative cone, the last ones."""
        first, last = self.cone.flat_groups, len(self.cone.groups)
        pieces = [self._points.at(i).projection for i in range(first, last)]
        return _join(self.w[:, self.cone.flat :], pieces)

    @cached_property
    def derivative(self) -> ProductDerivative:
        """The derivative of Pi_{K*} at w."""
        return ProductDerivative(self._points)


@final
class ProductCone:
    """The product of cones K of a program, rows in the order of `Cones`.

    Attributes:
        m: number of rows.
        groups: of its blocks; those of the zero and nonnegative cones come first.
        free: number of rows of the zero cone.
        flat: number of rows of both.
        flat_groups: number of their groups.
        blocks: first rows of the blocks of the other cones, and m, (blocks + 1,).
    """

    def __init__(self, cones: Cones) -> None:
        """Cones: sizes of the blocks."""
        self.m = cones.m
        self.groups = tuple(_groups(cones))
        self.free, self.flat = cones.zero, cones.zero + cones.nonnegative
        self.flat_groups = (cones.zero > 0) + (cones.nonnegative > 0)
        curved = self.groups[self.flat_groups :]
        self.blocks = np.array(
            [*(start for group in curved for start in range(group.rows.start, group.rows.stop, group.size)), self.m],
            dtype=np.int64,
        )

    def at(self, w: Array) -> ProductPoint:
        """The projection of w (B, m), and the derivative there.

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
        """The least margin of all blocks, (B, m) -> (B,); inf where nothing can jump.

        Raises:
            ShapeError: w is not of shape (B, m).
        """
        return self.at(w).derivative.margin

    @cached_property
    def centre(self) -> Array:
        """A direction in the interior of K and K*, but in the rows of the zero cone, (m,)."""
        return np.concatenate([np.zeros(0), *(np.tile(group.cone.centre, group.blocks) for group in self.groups)])

    @cached_property
    def growing(self) -> NDArray[np.bool_]:
        """Rows in which an element of K may grow and stays in K, (m,)."""
        nothing = np.zeros(0, dtype=bool)
        return np.concatenate([nothing, *(np.tile(group.cone.growing, group.blocks) for group in self.groups)])

    def largest_of_blocks(self, v: Array) -> Array:
        """Each row of v (B, m) replaced by the largest of its block; rows of flat cones are blocks of their own."""
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
    """The product cone of these sizes, made once."""
    return ProductCone(cones)


def _eigenvalues(piece: Piece) -> tuple[Array, Array]:
    """The eigenvalues d and 1 - d of a group, of which none is 0 but exactly."""
    return (piece.delta if isinstance(piece, RankTwo) else piece.d), piece.complement


def _least(piece: Piece) -> Array:
    """The least margin of all blocks of a group, (B,)."""
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
    """Each run of equal values, and its length."""
    return ((size, sum(1 for _ in run)) for size, run in groupby(sizes))


def _join(w: Array, pieces: list[Array]) -> Array:
    """The groups' (B, blocks, size) as (B, m); w itself, which is empty, where there is no group."""
    if not pieces:
        return w
    flat = [piece.reshape(w.shape[0], piece.shape[1] * piece.shape[2]) for piece in pieces]
    joined: Array = flat[0] if len(flat) == 1 else namespace(w).concat(flat, axis=-1)
    return joined
