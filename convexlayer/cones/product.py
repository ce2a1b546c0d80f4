"""The product of the cones of a program: slices of rows, handled group by group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple, final

from array_api_compat import array_namespace

from convexlayer.cones.base import AbstractCone, Eigenbasis
from convexlayer.cones.exponential import Exponential
from convexlayer.cones.nonnegative import Nonnegative
from convexlayer.cones.power import Power
from convexlayer.cones.psd import PositiveSemidefinite
from convexlayer.cones.second_order import SecondOrder
from convexlayer.cones.zero import Zero
from convexlayer.errors import ShapeError
from convexlayer.program import Array, Cones

__all__ = ["BasisBlocks", "Group", "ProductCone", "ProductDerivative"]


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

    def split(self, w: Array) -> Array:
        """The group's rows of w (B, m), as (B, blocks, size)."""
        xp = array_namespace(w)
        rows = w[:, self.start : self.start + self.blocks * self.size]
        blocks: Array = xp.reshape(rows, (w.shape[0], self.blocks, self.size))
        return blocks


class BasisBlocks(NamedTuple):
    """The orthogonal matrices of a group: Q (B, blocks, size, size), from row `start` on."""

    start: int
    blocks: int
    size: int
    Q: Array


@final
@dataclass(frozen=True, eq=False)
class ProductDerivative:
    """D = Q diag(d) Q' of a product cone, and its factor L = Q diag(sqrt d): D = L L'.

    Attributes:
        groups: the groups of the product.
        bases: the eigenbasis of each.
        d: (B, m), in the order of the columns of Q, which are those of the rows block by block.
        complement: (B, m), 1 - d without cancellation.
    """

    groups: tuple[Group, ...]
    bases: tuple[Eigenbasis, ...]
    d: Array
    complement: Array

    @cached_property
    def sqrt_d(self) -> Array:
        """The square roots of d, (B, m)."""
        root: Array = array_namespace(self.d).sqrt(self.d)
        return root

    def apply_L(self, u: Array) -> Array:
        """L u, (B, m) -> (B, m)."""
        return self._rotate(self.sqrt_d * u, transposed=False)

    def apply_Lt(self, v: Array) -> Array:
        """L'v, (B, m) -> (B, m)."""
        return self.sqrt_d * self._rotate(v, transposed=True)

    def apply_D(self, v: Array) -> Array:
        """D v = L L'v, (B, m) -> (B, m)."""
        return self._rotate(self.d * self._rotate(v, transposed=True), transposed=False)

    def blocks(self) -> tuple[BasisBlocks, ...]:
        """The groups whose Q is not the identity, with it."""
        return tuple(
            BasisBlocks(group.start, group.blocks, group.size, basis.Q)
            for group, basis in zip(self.groups, self.bases, strict=True)
            if basis.Q is not None
        )

    def _rotate(self, v: Array, *, transposed: bool) -> Array:
        """Q v, or Q'v."""
        xp = array_namespace(v)
        pieces = []
        for group, basis in zip(self.groups, self.bases, strict=True):
            piece = group.split(v)
            if basis.Q is not None:
                Q = xp.matrix_transpose(basis.Q) if transposed else basis.Q
                piece = (Q @ piece[..., None])[..., 0]
            pieces.append(piece)
        return _join(xp, v, pieces)


@final
class ProductCone:
    """The product of cones K of a program, rows in the order of `Cones`.

    Args:
        cones: sizes of the blocks.
    """

    def __init__(self, cones: Cones) -> None:
        self.m = cones.m
        self.groups = tuple(_groups(cones))

    def project_dual(self, w: Array) -> Array:
        """Pi_{K*}(w), (B, m) -> (B, m).

        Raises:
            ShapeError: w is not of shape (B, m).
        """
        self._check(w)
        return _join(array_namespace(w), w, [group.cone.project_dual(group.split(w)) for group in self.groups])

    def derivative(self, w: Array) -> ProductDerivative:
        """The derivative of Pi_{K*} at w, (B, m).

        Raises:
            ShapeError: w is not of shape (B, m).
        """
        self._check(w)
        xp = array_namespace(w)
        bases = tuple(group.cone.derivative(group.split(w)) for group in self.groups)
        d = _join(xp, w, [basis.d for basis in bases])
        complement = _join(xp, w, [basis.complement for basis in bases])
        return ProductDerivative(self.groups, bases, d, complement)

    def margin(self, w: Array) -> Array:
        """The least margin of all blocks, (B, m) -> (B,); inf where nothing can jump.

        Raises:
            ShapeError: w is not of shape (B, m).
        """
        self._check(w)
        xp = array_namespace(w)
        margin: Array = xp.full_like(xp.sum(w, axis=-1), xp.inf)
        for group in self.groups:
            margin = xp.minimum(margin, xp.min(group.cone.margin(group.split(w)), axis=-1))
        return margin

    def _check(self, w: Array) -> None:
        if w.ndim != 2 or w.shape[1] != self.m:
            raise ShapeError(f"expected w of shape (batch, {self.m}), got {tuple(w.shape)}; add the batch axis")


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


def _join(xp: Any, w: Array, pieces: list[Array]) -> Array:
    """The groups' (B, blocks, size) as (B, m); w itself, which is empty, where there is no group."""
    if not pieces:
        return w
    flat = [xp.reshape(piece, (w.shape[0], piece.shape[1] * piece.shape[2])) for piece in pieces]
    joined: Array = flat[0] if len(flat) == 1 else xp.concat(flat, axis=-1)
    return joined
