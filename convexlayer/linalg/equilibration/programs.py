"""Ruiz equilibration of a batch of programs by powers of two, by a kernel or in NumPy (see ``ruiz``)."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from convexlayer.linalg.equilibration.ruiz import NEGLIGIBLE_B, OWN_SCALING_RATIO, PROGRAM_PASSES
from convexlayer.program import Array, IndexArray, Pattern, max_norm
from convexlayer.runtime import kernel_cache
from convexlayer.runtime.buffers import contiguous, empty
from convexlayer.sparse import Values, largest_of_blocks, power_of_two
from convexlayer.sparse.dispatch import run
from convexlayer.sparse.pattern import pattern_fields

__all__ = ["program_scales"]


def program_scales(
    patterns: tuple[Pattern, Pattern], blocks: IndexArray, values: Values
) -> tuple[Array, Array, Array, Array]:
    """Compute powers of two d (B, n), e (B, m), sigma (B,) and c (B,), all 1 for programs that keep their units.

    d and e are the scales of the columns and rows of [P A'; A 0], sigma the expected size of the solution of the scaled
    program, and c the largest coefficient of its objective, with x in units of sigma.

    Args:
        patterns: those of P and A.
        blocks: first rows of the blocks of curved cones, and m.
        values: the values of the programs.
    """
    if not kernel_cache.ready():
        return _portable(patterns, blocks, values)
    (P, A), (batch, n), m = patterns, values.q.shape, values.b.shape[1]
    out = empty(batch, n), empty(batch, m), np.empty(batch), np.empty(batch)
    arguments = (pattern_fields(P, A), blocks, contiguous(values), out)
    run(_kernels().program_scales, arguments, batch, 3 * (P.nnz + A.nnz))
    return out


def _portable(
    patterns: tuple[Pattern, Pattern], blocks: IndexArray, values: Values
) -> tuple[Array, Array, Array, Array]:
    (P, A), (batch, n), m = patterns, values.q.shape, values.b.shape[1]
    abs_P, abs_A = np.abs(values.P), np.abs(values.A)

    def norms(d: Array, e: Array) -> tuple[Array, Array]:
        scaled_P = abs_P * d[:, P.rows] * d[:, P.cols]
        scaled_A = abs_A * e[:, A.rows] * d[:, A.cols]
        column = np.maximum(P.by_col(np.maximum, scaled_P, 0.0), A.by_col(np.maximum, scaled_A, 0.0))
        return column, largest_of_blocks(A.by_row(np.maximum, scaled_A, 0.0), blocks)

    d, e = np.ones((batch, n)), np.ones((batch, m))
    column, row = norms(d, e)
    sigma = _expected(max_norm(values.b), max_norm(values.q), max_norm(values.P))
    both = np.concatenate([column, row], axis=1)
    least, largest = np.min(np.where(both > 0, both, np.inf), axis=1, initial=np.inf), max_norm(both)
    alike = (largest <= OWN_SCALING_RATIO * least) & (sigma <= OWN_SCALING_RATIO) & (sigma >= 1.0 / OWN_SCALING_RATIO)
    finite = np.isfinite(largest + max_norm(values.q) + max_norm(values.b))
    needed = finite & ~alike
    for _ in range(PROGRAM_PASSES):
        d /= np.sqrt(np.where(column > 0, column, 1.0))
        e /= np.sqrt(np.where(row > 0, row, 1.0))
        column, row = norms(d, e)
    d, e = power_of_two(d), power_of_two(e)
    d[~needed], e[~needed] = 1.0, 1.0
    size = max_norm(abs_P * d[:, P.rows] * d[:, P.cols])
    q_size = max_norm(d * values.q)
    sigma = np.where(needed, power_of_two(_expected(max_norm(e * values.b), q_size, size)), 1.0)
    largest = sigma * np.maximum(sigma * size, q_size)
    c = np.where(needed, power_of_two(largest), 1.0)
    return d, e, sigma, c


def _expected(b: Array, q: Array, P: Array) -> Array:
    """Expected size of the solution, (B,): b unless it is rounding, else q / P if P is nonzero, else 1."""
    of_curvature = np.where(P > 0, q / np.where(P > 0, P, 1.0), 0.0)
    return np.where(b > NEGLIGIBLE_B * of_curvature, b, np.where(of_curvature > 0, of_curvature, 1.0))


@cache
def _kernels() -> Any:
    """The kernel module, imported on demand because importing Numba takes half a second."""
    return import_module("convexlayer.linalg.equilibration.program_kernels")
