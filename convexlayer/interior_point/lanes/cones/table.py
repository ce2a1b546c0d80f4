"""The table of the cones in lanes, and kernels over all blocks that are made from it.

A cone is a module with the functions of ``block``, and one row of the table.

The loops of ``over_blocks`` pass their arguments on and keep nothing, so Numba need not count references to the arrays
in them: counting takes five times as long as the loops over a few small
blocks. The functions that they call inherit the option, so these may take views of arrays but not allocate any.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from convexlayer.interior_point.lanes.cones import exponential, nonnegative, power, psd, second_order
from convexlayer.interior_point.lanes.layout import Blocks, block_at
from convexlayer.program import Array
from convexlayer.runtime.inner_function import inner_function

__all__ = ["CONES", "SYMMETRIC_CONES", "least_margin", "over_blocks"]

SYMMETRIC_CONES = (nonnegative, second_order, psd)
"""The symmetric cones in row order; they have an identity, and margins along it."""

CONES: tuple[ModuleType, ...] = (*SYMMETRIC_CONES, exponential, power)
"""All cones in row order, to which ``Blocks.first`` refers."""


def over_blocks(name: str, cones: tuple[ModuleType, ...] = CONES) -> Any:
    """The kernel ``(where, blocks, *arguments)`` that calls the function ``name`` of each cone for each of its blocks.

    ``where`` is the first argument of the function, ``lanes`` or v. Numba resolves calls when it compiles, so there is
    one loop per cone, which ends with the loop of the next one.
    """
    loop = _nothing
    for number, cone in reversed(list(enumerate(cones))):
        loop = _loop(getattr(cone, name), number, loop)
    return loop


@inner_function(counts_references=False)
def _nothing(where: Any, blocks: Blocks, *arguments: Any) -> None:
    pass


def _loop(function: Any, number: int, rest: Any) -> Any:
    @inner_function(counts_references=False)
    def loop(where: Any, blocks: Blocks, *arguments: Any) -> None:
        for k in range(blocks.first[number], blocks.first[number + 1]):
            function(where, block_at(blocks, k), *arguments)
        rest(where, blocks, *arguments)

    return loop


def _least_margin() -> Any:
    least = _infinite
    for number, cone in enumerate(SYMMETRIC_CONES):
        least = _smaller_margin(cone.margin, number, least)
    return least


@inner_function
def _infinite(v: int, blocks: Blocks, u: Array) -> float:
    return np.inf


def _smaller_margin(margin: Any, number: int, earlier: Any) -> Any:
    @inner_function
    def least(v: int, blocks: Blocks, u: Array) -> float:
        smallest = earlier(v, blocks, u)
        for k in range(blocks.first[number], blocks.first[number + 1]):
            smallest = min(smallest, margin(v, block_at(blocks, k), u))
        return smallest

    return least


least_margin = _least_margin()
"""The kernel ``(v, blocks, u)``: the smallest margin of lane v's u in a symmetric cone; infinite without blocks."""
