"""Projections and derivatives of NumPy arrays by the compiled kernels, if this process uses them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from convexlayer.cones.base import Array, BlockKind, ConePoint, Eigenbasis, RankTwo
from convexlayer.runtime import kernel_cache
from convexlayer.runtime.buffers import as_contiguous_float64, empty
from convexlayer.runtime.threads import parallel_for

__all__ = ["BlockTable", "block_table", "compiled_eigenbasis", "compiled_rank_two", "is_compiled"]


class BlockTable(NamedTuple):
    """The arguments of the kernels for consecutive blocks.

    Attributes:
        fields: the fields of ``kernels.block.Blocks``.
        saved_size: number of results that the projection of an element saves.
        basis_size: number of entries of the bases of an element.
        seconds: rough time of a projection or derivative of an element.
    """

    fields: tuple[Any, ...]
    saved_size: int
    basis_size: int
    seconds: float


BLOCK_S, BASIS_S = 3e-7, 4e-9
"""Cost model for splitting a batch among threads: seconds per block, and per entry of its basis (rough)."""


def is_compiled(w: Array) -> bool:
    """Whether the kernels are used for these points."""
    return isinstance(w, np.ndarray) and kernel_cache.ready()


@cache
def _kernels() -> Any:
    """The kernel package, imported on demand because importing Numba takes half a second."""
    return import_module("convexlayer.cones.kernels")


@lru_cache(maxsize=256)
def block_table(kinds: tuple[BlockKind, ...], first_row: int = 0) -> BlockTable:
    """The table of consecutive blocks, the first of which begins at ``first_row``."""
    starts = np.cumsum([first_row, *(kind.size for kind in kinds)]).tolist()
    Block = _kernels().Block
    blocks = [
        (kind.cone, Block(0, start, kind.size, kind.order, 0, 0, int(kind.rank_two), kind.exponent))
        for start, kind in zip(starts, kinds, strict=False)
    ]
    fields, saved_size, basis_size = _kernels().table_of(blocks)
    return BlockTable(tuple(fields), saved_size, basis_size, BLOCK_S * len(kinds) + BASIS_S * basis_size)


class _Point:
    """The projection of points of equal blocks, and its derivative; each is computed once.

    Args:
        kinds: the blocks of each point.
        w: the points, (..., size), or (..., blocks, size) with more than one block.
        distance: the margins of points, by the portable form.
    """

    def __init__(self, kinds: tuple[BlockKind, ...], w: Array, distance: Callable[[Array], Array]) -> None:
        self._w, self._distance = w, distance
        self._blocks, self._size = len(kinds), kinds[0].size
        self._table = block_table(kinds)
        self._flat = as_contiguous_float64(w).reshape(-1, self._blocks * self._size)
        self._y, self._saved = np.empty(self._flat.shape), empty(len(self._flat), self._table.saved_size)
        self._run(_kernels().project_blocks, self._flat, self._y, self._saved)

    @property
    def projection(self) -> Array:
        """Of the shape of w."""
        return self._y.reshape(self._w.shape)

    def derivative(self) -> tuple[Array, Array, Array, Callable[[], Array]]:
        """d and 1 - d, of the shape of w; the bases (..., entries of a block); the margins on demand."""
        d, complement, basis = np.empty(self._y.shape), np.empty(self._y.shape), empty(len(self._y), self._basis_size)
        margin = np.empty((len(self._y), self._blocks))
        self._run(_kernels().derive_blocks, self._flat, self._y, self._saved, (d, complement, basis), margin)
        shape = self._w.shape

        def margins() -> Array:
            whole = margin.reshape(shape[:-1])
            missing = whole == _kernels().NEEDS_DISTANCE
            return np.where(missing, self._distance(self._w), whole) if np.any(missing) else whole

        entries = self._basis_size // self._blocks
        return d.reshape(shape), complement.reshape(shape), basis.reshape(*shape[:-1], entries), margins

    @property
    def _basis_size(self) -> int:
        return self._table.basis_size

    def _run(self, kernel: Callable[..., None], *arguments: Any) -> None:
        def some(first: int, last: int) -> None:
            kernel(self._table.fields, *arguments, first, last)

        parallel_for(some, len(self._flat), seconds_per_item=self._table.seconds)


def compiled_eigenbasis(
    kinds: tuple[BlockKind, ...], w: Array, distance: Callable[[Array], Array]
) -> ConePoint[Eigenbasis]:
    """The projection of points w (..., size), and its derivative by an eigenbasis.

    Args:
        kinds: the block, or the blocks of the last but one axis of w.
        w: the points.
        distance: w -> margins (...), by the portable form.
    """
    point = _Point(kinds, w, distance)

    def derive() -> Eigenbasis:
        d, complement, basis, margin = point.derivative()
        size = d.shape[-1]
        return Eigenbasis(basis.reshape(*d.shape[:-1], size, size), d, complement, margin)

    return ConePoint(point.projection, derive)


def compiled_rank_two(kinds: tuple[BlockKind, ...], w: Array, distance: Callable[[Array], Array]) -> ConePoint[RankTwo]:
    """As ``compiled_eigenbasis``, with the derivative as a rank-two form."""
    point = _Point(kinds, w, distance)

    def derive() -> RankTwo:
        d, complement, basis, margin = point.derivative()
        size = d.shape[-1]
        q1, q2 = basis[..., :size], basis[..., size:]
        return RankTwo(q1, q2, d[..., :1], complement[..., :1], margin)

    return ConePoint(point.projection, derive)
