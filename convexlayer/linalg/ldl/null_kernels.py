"""Kernels of the null-space iteration (see ``null_space``), in lanes, with the factors of ``group``."""

from __future__ import annotations

from typing import Any

import numpy as np

from convexlayer.linalg.ldl.group import group_at
from convexlayer.linalg.ldl.lanes import Indices, LaneMatrix, multiply, solve_in_place, unpack
from convexlayer.linalg.refined import MIN_REDUCTION
from convexlayer.program import Array
from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import absolute, any_lane, broadcast, load, maximum, store, where

__all__ = ["null_iteration", "null_iteration_single"]


@cached_kernel
def null_iteration(
    lanes: Any, packed: Indices, x: Array, first: int, last: int, steps: int, state: Array, left: Array, image: Array
) -> None:
    """Iterate x <- x - F^-1 E x until norm(E x) no longer decreases, with one element per lane.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        packed: the symbolic factorisation.
        x: vectors in the unknowns of E, (B, count, N).
        first: index of the first lane group.
        last: index after the last lane group.
        steps: maximum number of iterations.
        state: the state computed by ``kernels.factor``, (groups, rows, V).
        left: out, the final x, (B, count, N).
        image: out, E times the final x, (B, count, N).
    """
    plan, _ = unpack(packed)
    N, V, batch = len(plan.signs), len(lanes), len(x)
    z, product, work, other = np.empty((N, V)), np.empty((N, V)), np.empty((N, V)), np.empty((N, V))
    for number in range(first, last):
        matrix = group_at(plan, state[number]).matrix
        for j in range(x.shape[1]):
            for k in range(N):
                for v in range(V):
                    z[k, v] = x[min(number * V + v, batch - 1), j, plan.permutation[k]]
            _iterate(lanes, matrix, steps, z, product, work, other)
            for v in range(min(V, batch - number * V)):
                for k in range(N):
                    left[number * V + v, j, plan.permutation[k]] = z[k, v]
                    image[number * V + v, j, plan.permutation[k]] = product[k, v]


@cached_kernel
def null_iteration_single(
    lanes: Any, packed: Indices, x: Array, first: int, last: int, steps: int, state: Array, left: Array, image: Array
) -> None:
    """As ``null_iteration``, with one vector of the same element per lane.

    first and last index groups of V vectors, numbered element by element; state is (B, rows).
    """
    plan, _ = unpack(packed)
    N, V, count = len(plan.signs), len(lanes), x.shape[1]
    z, product, work, other = np.empty((N, V)), np.empty((N, V)), np.empty((N, V)), np.empty((N, V))
    groups = -(-count // V)
    for number in range(first, last):
        element, begin = number // groups, number % groups * V
        matrix = group_at(plan, state[element]).matrix
        for v in range(V):
            for k in range(N):
                z[k, v] = x[element, min(begin + v, count - 1), plan.permutation[k]]
        _iterate(lanes, matrix, steps, z, product, work, other)
        for v in range(min(V, count - begin)):
            for k in range(N):
                left[element, begin + v, plan.permutation[k]] = z[k, v]
                image[element, begin + v, plan.permutation[k]] = product[k, v]


@inner_function
def _iterate(lanes: Any, matrix: LaneMatrix, steps: int, x: Array, product: Array, step: Array, other: Array) -> None:
    """Iterate x <- x - F^-1 E x in place, and product <- E x; step and other are scratch, all (N, V)."""
    multiply(lanes, matrix, x, product)
    least, going = _largest(lanes, product), broadcast(lanes, 1.0) > 0.0
    for _ in range(steps):
        for k in range(len(x)):
            store(step, k, load(lanes, product, k))
        solve_in_place(lanes, matrix, step)
        for k in range(len(x)):
            store(step, k, load(lanes, x, k) - load(lanes, step, k))
        multiply(lanes, matrix, step, other)
        size = _largest(lanes, other)
        better = going & (size < least)
        for k in range(len(x)):
            store(x, k, where(better, load(lanes, step, k), load(lanes, x, k)))
            store(product, k, where(better, load(lanes, other, k), load(lanes, product, k)))
        going = going & (size < MIN_REDUCTION * least)
        least = where(better, size, least)
        if not any_lane(going):
            break


@inner_function
def _largest(lanes: Any, z: Array) -> Any:
    """Maximum norm of each lane."""
    size = broadcast(lanes, 0.0)
    for k in range(len(z)):
        size = maximum(absolute(load(lanes, z, k)), size)
    return size
