"""Refined factors by Numba kernels: one element per SIMD lane, lane groups on the thread pool."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import final

import numpy as np

from convexlayer.linalg.equilibration import program_kernels
from convexlayer.linalg.ldl import kernels, null_kernels
from convexlayer.linalg.ldl.symbolic import Symbolic
from convexlayer.linalg.refined import (
    MAX_REFINEMENTS,
    TINY,
    AbstractFactoriser,
    RefinedFactor,
    StoredFactor,
    power_start,
)
from convexlayer.program import Array, IndexArray, Pattern, max_norm
from convexlayer.runtime.buffers import as_contiguous_float64, empty
from convexlayer.runtime.lanes import LANES, batch_of_width, lanes_for
from convexlayer.runtime.threads import parallel_for

__all__ = ["LaneFactoriser", "warm_up"]

FACTOR_S, REFINE_S = 4e-8, 1.5e-8
"""Cost model of a lane group, for splitting work among threads: seconds per entry of E and L of a factorisation and of
a refined solve (rough measurements)."""

FLOP_S = 1e-9
"""Cost model of a lane group: seconds per multiply-add of a factorisation."""


@final
class LaneFactoriser(AbstractFactoriser):
    """LDL' factorisations of one pattern, which is analysed once."""

    def __init__(self, pattern: Pattern, signs: Array) -> None:
        """Analyse the pattern.

        Args:
            pattern: upper triangle of K, every diagonal entry stored.
            signs: expected signs of the pivots, (N,): +1 in the positive (semi)definite block of K, -1 in the negative.
        """
        self.pattern = pattern
        self.symbolic = Symbolic.of(pattern, signs)
        self.start = power_start(pattern.shape[0])

    def factor(self, values: Array) -> RefinedFactor:
        """Equilibrate, regularise, factorise and estimate condition numbers, in one pass."""
        return _LaneFactor(self, as_contiguous_float64(values))


@final
class _LaneFactor(StoredFactor):
    def __init__(self, system: LaneFactoriser, values: Array) -> None:
        super().__init__(system.pattern)
        symbolic, batch = system.symbolic, len(values)
        self._system = system
        self._lanes = lanes_for(batch)
        width = len(self._lanes)
        self._values, self._packed, self._permutation = values, symbolic.packed, symbolic.plan.permutation
        self._groups = -(-batch // width)
        self._entries = len(symbolic.plan.row) + symbolic.fill
        self._state = empty(self._groups, 3 * len(system.start) + self._entries, width)
        self._condition = np.empty(batch)

        def factor(first: int, last: int) -> None:
            kernels.factor(self._lanes, self._packed, values, first, last, system.start, self._state, self._condition)

        parallel_for(factor, self._groups, seconds_per_item=FACTOR_S * self._entries + FLOP_S * symbolic.flops)

    @property
    def condition(self) -> Array:
        return self._condition

    @property
    def null_direction(self) -> Array:
        direction = self.scale * self._unpermuted(2)
        return direction / np.maximum(max_norm(direction), TINY)[:, None]

    def refine(self, rhs: Array, *, steps: int = MAX_REFINEMENTS) -> tuple[Array, Array]:
        return self._solved(kernels.refine, rhs, steps)

    def refine_row_by_row(self, rhs: Array) -> tuple[Array, Array]:
        return self._solved(kernels.refine_row_by_row, rhs, MAX_REFINEMENTS)

    def _solved(self, kernel: Callable[..., None], rhs: Array, steps: int) -> tuple[Array, Array]:
        rhs = as_contiguous_float64(rhs)
        z, residual = empty(*rhs.shape), np.empty(len(rhs))

        def solve(first: int, last: int) -> None:
            kernel(self._lanes, self._packed, rhs, first, last, steps, self._state, z, residual)

        parallel_for(solve, self._groups, seconds_per_item=REFINE_S * self._entries)
        return z, residual

    def null_iteration(self, x: Array) -> tuple[Array, Array]:
        x = as_contiguous_float64(x)
        left, image = np.empty_like(x), np.empty_like(x)
        of_each = len(self._lanes) == 1
        kernel = null_kernels.null_iteration_single if of_each else null_kernels.null_iteration
        state = self._state.reshape(len(self._state), -1) if of_each else self._state
        groups = len(x) * -(-x.shape[1] // LANES) if of_each else self._groups

        def iterate(first: int, last: int) -> None:
            kernel(LANES * (0.0,), self._packed, x, first, last, MAX_REFINEMENTS, state, left, image)

        parallel_for(iterate, groups, seconds_per_item=REFINE_S * self._entries * (1 if of_each else x.shape[1]))
        return left, image

    def select(self, index: IndexArray) -> RefinedFactor:
        return self if np.array_equal(index, np.arange(len(self._values))) else self._system.factor(self._values[index])

    def equilibrated(self, index: IndexArray) -> tuple[Array, Array]:
        scale, pattern = self.scale[index], self._pattern
        return scale, self._values[index] * scale[:, pattern.rows] * scale[:, pattern.cols]

    @cached_property
    def scale(self) -> Array:
        return self._unpermuted(0)

    def _unpermuted(self, block: int) -> Array:
        """One of the first blocks of N rows of the state, in the original order, (B, N)."""
        size = len(self._permutation)
        rows = self._state[:, block * size : (block + 1) * size].swapaxes(1, 2)
        out = np.empty((len(self._values), size))
        out[:, self._permutation] = rows.reshape(self._groups * len(self._lanes), size)[: len(out)]
        return out


def warm_up(width: str) -> None:
    """Compile this package's kernels by calling them, for a ``single`` element or several in ``lanes``."""
    diagonal = Pattern((2, 2), np.arange(2), np.arange(2))
    factoriser = LaneFactoriser(diagonal, np.ones(2))
    batch = batch_of_width(width)
    factor = factoriser.factor(np.ones((batch, 2)))
    factor.refine(np.ones((batch, 2)))
    factor.refine_row_by_row(np.ones((batch, 2)))
    factor.null_iteration(np.ones((batch, 1, 2)))
    values, vector = np.ones((1, 2)), np.ones(1)
    patterns, blocks = (diagonal.rows, diagonal.indptr) * 2, np.full(1, 2)
    program_kernels.program_scales(patterns, blocks, (values,) * 4, (values, values, vector, vector), 0, 1)
