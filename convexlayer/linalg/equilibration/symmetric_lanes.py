"""Ruiz equilibration of sparse symmetric matrices in lanes (see ``ruiz``)."""

from __future__ import annotations

from typing import Any

from convexlayer.linalg.equilibration.ruiz import SYMMETRIC_PASSES
from convexlayer.linalg.ldl.lanes import LanePlan
from convexlayer.program import Array
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import absolute, load, maximum, sqrt, store, where

__all__ = ["equilibrate"]


@inner_function
def equilibrate(lanes: Any, plan: LanePlan, E: Array, scale: Array, peak: Array) -> None:
    """Scale E (nnz, V) so that the maximum norm of every row is near 1; scale (N, V) is out, peak (N, V) is scratch."""
    start, row = plan.column_start, plan.row
    scale[:] = 1.0
    for _ in range(SYMMETRIC_PASSES):
        peak[:] = 0.0
        for j in range(len(scale)):
            factor, highest = load(lanes, scale, j), load(lanes, peak, j)
            for p in range(start[j], start[j + 1]):
                i = row[p]
                size = absolute(load(lanes, E, p)) * load(lanes, scale, i) * factor
                highest = maximum(size, highest)
                store(peak, i, maximum(size, load(lanes, peak, i)))
            store(peak, j, highest)
        for k in range(len(scale)):
            highest = load(lanes, peak, k)
            store(scale, k, load(lanes, scale, k) / sqrt(where(highest > 0.0, highest, 1.0)))
    for j in range(len(scale)):
        factor = load(lanes, scale, j)
        for p in range(start[j], start[j + 1]):
            store(E, p, load(lanes, E, p) * (load(lanes, scale, row[p]) * factor))
