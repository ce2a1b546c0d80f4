"""Kernels of the refined factor, over ranges of lane groups (see ``group``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from convexlayer.linalg.ldl.group import (
    estimate_condition,
    factor_group,
    group_at,
    new_solve_scratch,
    solve_group,
    solve_group_by_rows,
)
from convexlayer.linalg.ldl.lanes import Indices, unpack
from convexlayer.program import Array
from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.runtime.simd import store

__all__ = ["factor", "refine", "refine_row_by_row"]


@cached_kernel
def factor(
    lanes: Any, packed: Indices, values: Array, first: int, last: int, start: Array, state: Array, condition: Array
) -> None:
    """Equilibrate, regularise and factorise the lane groups first ... last - 1, and estimate condition numbers.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        packed: the symbolic factorisation (see ``Symbolic.packed``).
        values: upper triangles in the order of the pattern, (B, nnz).
        first: index of the first lane group.
        last: index after the last lane group.
        start: starting vector of the power iterations, (N,).
        state: out, (groups, rows, V).
        condition: out, condition estimates, (B,).
    """
    V = len(lanes)
    plan, source = unpack(packed)
    N, batch = len(plan.signs), len(values)
    y, work = np.zeros((N, V)), np.empty((N, V))
    for number in range(first, last):
        group = group_at(plan, state[number])
        factor_group(lanes, plan, source, values, number * V, group, y, work)
        store(work, 0, estimate_condition(lanes, plan, start, group, work))
        for v in range(min(V, batch - number * V)):
            condition[number * V + v] = work[0, v]


@cached_kernel
def refine(
    lanes: Any,
    packed: Indices,
    rhs: Array,
    first: int,
    last: int,
    steps: int,
    state: Array,
    z: Array,
    residual: Array,
) -> None:
    """Solve with iterative refinement, each lane until it makes no progress.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        packed: the symbolic factorisation.
        rhs: right-hand sides, (B, N).
        first: index of the first lane group.
        last: index after the last lane group.
        steps: maximum number of solves with the factor.
        state: the state computed by ``factor``.
        z: out, solutions, (B, N).
        residual: out, relative residuals, (B,).
    """
    plan, _ = unpack(packed)
    scratch = new_solve_scratch(len(plan.signs), len(lanes))
    for number in range(first, last):
        solve_group(lanes, group_at(plan, state[number]), rhs, number, steps, scratch, z, residual)


@cached_kernel
def refine_row_by_row(
    lanes: Any,
    packed: Indices,
    rhs: Array,
    first: int,
    last: int,
    steps: int,
    state: Array,
    z: Array,
    residual: Array,
) -> None:
    """As ``refine``, then refine the residual while a row's residual exceeds ROW_ACCEPTED times the row's terms.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        packed: the symbolic factorisation.
        rhs: right-hand sides, (B, N).
        first: index of the first lane group.
        last: index after the last lane group.
        steps: maximum number of solves with the factor per refinement.
        state: the state computed by ``factor``.
        z: out, solutions, (B, N).
        residual: out, largest row-wise relative residual of each element, (B,).
    """
    plan, _ = unpack(packed)
    scratch = new_solve_scratch(len(plan.signs), len(lanes))
    for number in range(first, last):
        solve_group_by_rows(lanes, group_at(plan, state[number]), rhs, number, steps, scratch, z, residual)
