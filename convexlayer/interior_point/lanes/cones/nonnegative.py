"""The nonnegative cone in lanes: one block of all its rows, with H = diag(s / y), which ``Scaling.factors`` stores."""

from __future__ import annotations

from typing import Any

import numpy as np

from convexlayer.interior_point.lanes.cones.block import Shape
from convexlayer.interior_point.lanes.kkt import REGULARISATION
from convexlayer.interior_point.lanes.layout import Block, Places, Point, Scaling
from convexlayer.program import Array, Cones
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import load, minimum, store, where

__all__ = [
    "add_identity",
    "combined_shift",
    "margin",
    "multiply",
    "set_central_point",
    "shapes",
    "shorten_step",
    "update_scaling",
    "write_scaling",
]


def shapes(cones: Cones) -> list[Shape]:
    """One block of all rows, if there are any."""
    rows = cones.nonnegative
    return [Shape(rows, degree=rows, storage="diagonal", factor_rows=rows)] if rows else []


@inner_function
def set_central_point(v: int, block: Block, point: Point) -> None:
    """Set s = y = 1 in lane v."""
    for i in range(block.start, block.start + block.size):
        point.s[i, v], point.y[i, v] = 1.0, 1.0


@inner_function
def margin(v: int, block: Block, u: Array) -> float:
    """The smallest entry of lane v's u."""
    least = np.inf
    for i in range(block.start, block.start + block.size):
        least = min(least, u[i, v])
    return least


@inner_function
def add_identity(v: int, block: Block, amount: float, u: Array) -> None:
    """Add ``amount`` to every entry of lane v's u."""
    for i in range(block.start, block.start + block.size):
        u[i, v] += amount


@inner_function
def update_scaling(lanes: Any, block: Block, point: Point, scaling: Scaling) -> None:
    """Compute H = diag(s / y)."""
    for i in range(block.size):
        row = block.start + i
        store(scaling.factors, block.factor + i, load(lanes, point.s, row) / load(lanes, point.y, row))


@inner_function
def write_scaling(lanes: Any, block: Block, places: Places, scaling: Scaling, values: Array) -> None:
    """Write -H minus the static regularisation into the diagonal of K."""
    for i in range(block.size):
        position = places.diagonal[places.n + block.start + i]
        store(values, position, -1.0 * load(lanes, scaling.factors, block.factor + i) - REGULARISATION)


@inner_function
def multiply(lanes: Any, block: Block, scaling: Scaling, x: Array, out: Array) -> None:
    """The block's rows of out <- (s / y) x."""
    for i in range(block.size):
        row = block.start + i
        store(out, row, load(lanes, scaling.factors, block.factor + i) * load(lanes, x, row))


@inner_function
def combined_shift(
    lanes: Any, block: Block, scaling: Scaling, point: Point, direction: Point, sigma_mu: Array, shift: Array
) -> None:
    """The block's rows of shift <- s + (ds dy - sigma mu) / y, with the affine direction ds, dy."""
    centring = load(lanes, sigma_mu, 0)
    for i in range(block.start, block.start + block.size):
        change = load(lanes, direction.s, i) * load(lanes, direction.y, i)
        store(shift, i, load(lanes, point.s, i) + (change - centring) / load(lanes, point.y, i))


@inner_function
def shorten_step(lanes: Any, block: Block, scaling: Scaling, point: Point, direction: Point, alpha: Array) -> None:
    """Reduce alpha (V,) to the longest step that keeps s + alpha ds and y + alpha dy nonnegative."""
    longest = load(lanes, alpha, 0)
    for i in range(block.start, block.start + block.size):
        s, ds = load(lanes, point.s, i), load(lanes, direction.s, i)
        y, dy = load(lanes, point.y, i), load(lanes, direction.y, i)
        longest = where(ds < 0.0, minimum(-s / ds, longest), longest)
        longest = where(dy < 0.0, minimum(-y / dy, longest), longest)
    store(alpha, 0, longest)
