"""What the module of a cone provides, and what cones with a dense H share.

A module of the table has these functions. All but ``shapes`` are kernels for one block, whose first argument says where
they act: in all lanes (``lanes``, a tuple of V floats) or in lane v.

    shapes(cones)                               what the plan must know of each block, in row order
    set_central_point(v, block, point)          s and y <- the point with s = y = -grad f(s), f the barrier of the cone
    update_scaling(lanes, block, point, scaling)
                                                compute H at an interior point; ``scaling.ok`` <- 0 where that fails
    write_scaling(lanes, block, places, scaling, values)
                                                write -H minus the static regularisation into K
    multiply(lanes, block, scaling, x, out)     the block's rows of out <- H x
    combined_shift(lanes, block, scaling, point, direction, sigma_mu, shift)
                                                the block's rows of the shift of the combined step, from the affine
                                                direction and sigma_mu = sigma mu (V,)
    shorten_step(lanes, block, scaling, point, direction, alpha)
                                                reduce alpha (V,) until s + alpha ds and y + alpha dy are in the cones;
                                                0 for NaN

and, if the cone is symmetric, with its identity e,

    margin(v, block, u)                         the largest t with u - t e in the cone
    add_identity(v, block, amount, u)           u <- u + amount e

In the Newton step ds = -(H dy + shift).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

from convexlayer.interior_point.lanes.kkt import REGULARISATION
from convexlayer.interior_point.lanes.layout import Block, Places, Scaling
from convexlayer.program import Array
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import load, store

__all__ = ["Shape", "multiply_packed", "write_packed"]


@final
@dataclass(frozen=True)
class Shape:
    """What the plan must know of a block.

    Attributes:
        size: number of rows.
        degree: degree of its barrier.
        storage: how its H is stored in K: on the diagonal alone, dense, or expanded by two unknowns.
        order: see ``Block``.
        exponent: see ``Block``.
        factor_rows: number of rows of ``Scaling.factors`` that it uses.
        scratch_rows: number of rows of ``Scaling.work`` that it uses.
    """

    size: int
    degree: int
    storage: Literal["diagonal", "dense", "expanded"] = "dense"
    order: int = 0
    exponent: float = 0.0
    factor_rows: int = 0
    scratch_rows: int = 0


@inner_function
def write_packed(lanes: Any, block: Block, places: Places, scaling: Scaling, values: Array) -> None:
    """Write -H minus the static regularisation into K, for an H that is stored as a packed triangle."""
    k = block.packed
    for j in range(block.size):
        for i in range(j + 1):
            regularisation = REGULARISATION if i == j else 0.0
            store(values, places.packed[k], -1.0 * load(lanes, scaling.packed, k) - regularisation)
            k += 1


@inner_function
def multiply_packed(lanes: Any, block: Block, scaling: Scaling, x: Array, out: Array) -> None:
    """The block's rows of out <- H x, for a block of three rows whose H is stored as a packed triangle."""
    H, h0, r0 = scaling.packed, block.packed, block.start
    x0, x1, x2 = load(lanes, x, r0), load(lanes, x, r0 + 1), load(lanes, x, r0 + 2)
    h01, h02, h12 = load(lanes, H, h0 + 1), load(lanes, H, h0 + 3), load(lanes, H, h0 + 4)
    store(out, r0, load(lanes, H, h0) * x0 + h01 * x1 + h02 * x2)
    store(out, r0 + 1, h01 * x0 + load(lanes, H, h0 + 2) * x1 + h12 * x2)
    store(out, r0 + 2, h02 * x0 + h12 * x1 + load(lanes, H, h0 + 5) * x2)
