"""The product cone in lanes: its central point, scaling H, step length and right-hand side, from those of its blocks.

In rows of the zero cone s = 0, so H, ds and shift are zero there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convexlayer.interior_point.lanes.cones.table import SYMMETRIC_CONES, least_margin, over_blocks
from convexlayer.interior_point.lanes.layout import Blocks, Layout, Point, Scaling
from convexlayer.program import Array
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import broadcast, store

__all__ = [
    "combined_shift",
    "multiply",
    "new_scaling",
    "set_central_point",
    "shift_to_interior",
    "shorten_step",
    "update_scaling",
    "write_scaling",
]

INTERIOR_MARGIN = 1e-8
"""A least-squares starting point counts as interior above this margin, in scaled units; others are moved to margin 1.
Smaller values keep more of the least-squares solution, but start closer to the boundary, which costs iterations."""


@inner_function
def new_scaling(lanes: Any, layout: Layout) -> Scaling:
    """Allocate a scaling for V lanes."""
    V = len(lanes)
    return Scaling(
        np.zeros((len(layout.packed_position), V)), np.zeros((layout.factor_rows, V)),
        np.zeros((layout.scratch_rows, V)), np.ones(V),
    )  # fmt: skip


_set_central_points = over_blocks("set_central_point")


@inner_function
def set_central_point(v: int, blocks: Blocks, point: Point) -> None:
    """Set s and y of lane v to the central point of every cone."""
    for i in range(blocks.zero):
        point.s[i, v], point.y[i, v] = 0.0, 0.0
    _set_central_points(v, blocks, point)


_add_identities = over_blocks("add_identity", SYMMETRIC_CONES)


@inner_function
def shift_to_interior(v: int, blocks: Blocks, u: Array) -> None:
    """Move lane v's u along the identity of the (symmetric) cones to margin 1, unless it is in the interior already."""
    margin = least_margin(v, blocks, u)
    if not margin > INTERIOR_MARGIN:
        _add_identities(v, blocks, 1.0 - margin, u)


_update_scalings = over_blocks("update_scaling")


@inner_function
def update_scaling(lanes: Any, blocks: Blocks, point: Point, scaling: Scaling) -> None:
    """Compute H at an interior point; ``scaling.ok`` is 0 in lanes where it is not defined."""
    scaling.ok[:] = 1.0
    _update_scalings(lanes, blocks, point, scaling)


write_scaling = over_blocks("write_scaling")
"""The kernel ``(lanes, blocks, places, scaling, values)``: see ``cones.block``."""

_multiply_blocks = over_blocks("multiply")


@inner_function
def multiply(lanes: Any, blocks: Blocks, scaling: Scaling, x: Array, out: Array) -> None:
    """Out <- H x, (m, V)."""
    for i in range(blocks.zero):
        store(out, i, broadcast(lanes, 0.0))
    _multiply_blocks(lanes, blocks, scaling, x, out)


combined_shift = over_blocks("combined_shift")
"""The kernel ``(lanes, blocks, scaling, point, direction, sigma_mu, shift)``: see ``cones.block``."""

shorten_step = over_blocks("shorten_step")
"""The kernel ``(lanes, blocks, scaling, point, direction, alpha)``: see ``cones.block``."""
