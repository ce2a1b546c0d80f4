"""The table of the curved cones with kernels, kernels over all blocks that are made from it, and their cached forms.

A cone is a module with the functions of ``block``, and one row of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from convexlayer.cones.kernels import exponential, power, psd, second_order
from convexlayer.cones.kernels.block import INTEGER_FIELDS, Block, Blocks, BlocksDerivative, Floats, block_at
from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.runtime.inner_function import inner_function

__all__ = ["CONES", "derive", "derive_blocks", "margins", "project", "project_blocks", "table_of", "warm_up"]

CONES: dict[str, ModuleType] = {
    "second_order": second_order,
    "psd": psd,
    "exponential": exponential,
    "power": power,
}
"""The cones in row order, to which ``Blocks.first`` refers, by their names in ``program.Cones``."""


def table_of(blocks: Sequence[tuple[str, Block]]) -> tuple[Blocks, int, int]:
    """Lay out blocks, given with the names of their cones in row order.

    Returns:
        The blocks with their places in the arrays, and the sizes of what ``project`` saves and of all bases.
    """
    names = list(CONES)
    order = [names.index(name) for name, _ in blocks]
    saved = [CONES[name].saved_size(block.size, block.order) for name, block in blocks]
    basis = [(2 if block.rank_two else block.size) * block.size for _, block in blocks]
    starts = (np.cumsum([0, *sizes]) for sizes in (saved, basis))
    (saved_at, saved_size), (basis_at, basis_size) = ((ends[:-1], int(ends[-1])) for ends in starts)
    fields = [
        block._replace(number=k, saved=at, basis=place)[:-1]
        for k, ((_, block), at, place) in enumerate(zip(blocks, saved_at.tolist(), basis_at.tolist(), strict=True))
    ]
    integers = np.array(fields, dtype=np.int64).reshape(len(fields), INTEGER_FIELDS)
    exponents = np.array([block.exponent for _, block in blocks], dtype=np.float64)
    first = np.searchsorted(order, np.arange(len(names) + 1)).astype(np.int64)
    return Blocks(first, integers, exponents), saved_size, basis_size


def _over_blocks(functions: Sequence[Any]) -> Any:
    """The kernel ``(blocks, *arguments)`` that calls the function of each cone for each of its blocks."""
    loop = _nothing
    for number, function in reversed(list(enumerate(functions))):
        loop = _loop(function, number, loop)
    return loop


@inner_function
def _nothing(blocks: Blocks, *arguments: Any) -> None:
    pass


def _loop(function: Any, number: int, rest: Any) -> Any:
    @inner_function
    def loop(blocks: Blocks, *arguments: Any) -> None:
        for k in range(blocks.first[number], blocks.first[number + 1]):
            function(block_at(blocks, k), *arguments)
        rest(blocks, *arguments)

    return loop


def _written(margin: Any) -> Any:
    @inner_function
    def write(block: Block, w: Floats, y: Floats, saved: Floats, out: Floats) -> None:
        out[block.number] = margin(block, w, y, saved)

    return write


project = _over_blocks([cone.project for cone in CONES.values()])
"""The kernel ``(blocks, w, y, saved)``: the rows of y of all blocks."""

derive = _over_blocks([cone.derive for cone in CONES.values()])
"""The kernel ``(blocks, w, y, saved, derivative)``."""

margins = _over_blocks([_written(cone.margin) for cone in CONES.values()])
"""The kernel ``(blocks, w, y, saved, out)``: the margin of every block, (blocks,)."""


@cached_kernel
def project_blocks(block_fields: tuple[Any, ...], w: Floats, y: Floats, saved: Floats, first: int, last: int) -> None:
    """Projections of the elements first <= e < last.

    Args:
        block_fields: the fields of ``Blocks``.
        w: the points, (B, m).
        y: out, (B, m); only the rows of the blocks are written.
        saved: out, for the other kernels, (B, size).
        first: index of the first element.
        last: index after the last element.
    """
    blocks = Blocks(*block_fields)
    for e in range(first, last):
        project(blocks, w[e], y[e], saved[e])


@cached_kernel
def derive_blocks(
    block_fields: tuple[Any, ...],
    w: Floats,
    y: Floats,
    saved: Floats,
    derivative_fields: tuple[Floats, ...],
    margin: Floats,
    first: int,
    last: int,
) -> None:
    """Derivatives of the projections of the elements first <= e < last, and their margins.

    Args:
        block_fields: the fields of ``Blocks``.
        w: the points, (B, m).
        y: their projections.
        saved: what ``project_blocks`` saved.
        derivative_fields: out, the fields of ``BlocksDerivative``, each with a batch axis.
        margin: out, (B, blocks).
        first: index of the first element.
        last: index after the last element.
    """
    blocks, (d, complement, basis) = Blocks(*block_fields), derivative_fields
    for e in range(first, last):
        derive(blocks, w[e], y[e], saved[e], BlocksDerivative(d[e], complement[e], basis[e]))
        margins(blocks, w[e], y[e], saved[e], margin[e])


def warm_up() -> None:
    """Compile this package's kernels by calling them."""
    blocks, saved, basis = table_of([("exponential", Block(0, 0, 3, 0, 0, 0, 0, 0.0))])
    w, y, kept = np.ones((1, 3)), np.ones((1, 3)), np.ones((1, saved))
    project_blocks(tuple(blocks), w, y, kept, 0, 1)
    derive_blocks(tuple(blocks), w, y, kept, (y.copy(), y.copy(), np.ones((1, basis))), np.ones((1, 1)), 0, 1)
