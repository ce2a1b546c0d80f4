"""Kernel of ``programs``: Ruiz equilibration of programs by powers of two."""

from __future__ import annotations

import numpy as np

from convexlayer.linalg.equilibration.ruiz import NEGLIGIBLE_B, OWN_SCALING_RATIO, PROGRAM_PASSES
from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.runtime.inner_function import inner_function
from convexlayer.sparse.structures import Floats, Patterns, Positions

__all__ = ["program_scales"]


@cached_kernel
def program_scales(
    pattern_fields: tuple[Positions, ...],
    blocks: Positions,
    value_fields: tuple[Floats, ...],
    out: tuple[Floats, Floats, Floats, Floats],
    first: int,
    last: int,
) -> None:
    """Compute d, e, sigma and c of ``programs.program_scales`` for the elements first <= k < last."""
    patterns, (P, q, A, b), (d, e, sigma, c) = Patterns(*pattern_fields), value_fields, out
    n, m = q.shape[1], b.shape[1]
    column, row = np.empty(n), np.empty(m)
    for k in range(first, last):
        d[k], e[k], sigma[k], c[k] = 1.0, 1.0, 1.0, 1.0
        if not (_is_finite(P[k]) and _is_finite(q[k]) and _is_finite(A[k]) and _is_finite(b[k])):
            continue
        expected = _expected(_largest(b[k]), _largest(q[k]), _largest(P[k]))
        _row_norms(patterns, blocks, P[k], A[k], d[k], e[k], column, row)
        least, largest = np.inf, 0.0
        for norms in (column, row):
            for norm in norms:
                largest = max(largest, norm)
                if norm > 0.0:
                    least = min(least, norm)
        if largest <= OWN_SCALING_RATIO * least and 1.0 / OWN_SCALING_RATIO <= expected <= OWN_SCALING_RATIO:
            continue
        for _ in range(PROGRAM_PASSES):
            for j in range(n):
                if column[j] > 0.0:
                    d[k, j] /= np.sqrt(column[j])
            for i in range(m):
                if row[i] > 0.0:
                    e[k, i] /= np.sqrt(row[i])
            _row_norms(patterns, blocks, P[k], A[k], d[k], e[k], column, row)
        P_size, q_size, b_size = 0.0, 0.0, 0.0
        for j in range(n):
            d[k, j] = _power_of_two(d[k, j])
        for i in range(m):
            e[k, i] = _power_of_two(e[k, i])
            b_size = max(b_size, abs(e[k, i] * b[k, i]))
        for j in range(n):
            q_size = max(q_size, abs(d[k, j] * q[k, j]))
            for p in range(patterns.P_starts[j], patterns.P_starts[j + 1]):
                P_size = max(P_size, abs(P[k, p] * d[k, patterns.P_rows[p]] * d[k, j]))
        sigma[k] = _power_of_two(_expected(b_size, q_size, P_size))
        objective = sigma[k] * max(sigma[k] * P_size, q_size)
        c[k] = _power_of_two(objective) if objective > 0.0 else 1.0


@inner_function
def _row_norms(
    patterns: Patterns,
    blocks: Positions,
    P: Floats,
    A: Floats,
    d: Floats,
    e: Floats,
    column: Floats,
    row: Floats,
) -> None:
    """Maximum norms of the rows of [D P D, D A'E; E A D, 0], their maximum in each block of a curved cone."""
    row[:] = 0.0
    for j in range(len(d)):
        highest = 0.0
        for p in range(patterns.P_starts[j], patterns.P_starts[j + 1]):
            highest = max(highest, abs(P[p]) * d[patterns.P_rows[p]] * d[j])
        for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
            i = patterns.A_rows[p]
            value = abs(A[p]) * e[i] * d[j]
            highest, row[i] = max(highest, value), max(row[i], value)
        column[j] = highest
    for k in range(len(blocks) - 1):
        highest = 0.0
        for i in range(blocks[k], blocks[k + 1]):
            highest = max(highest, row[i])
        row[blocks[k] : blocks[k + 1]] = highest


@inner_function
def _largest(values: Floats) -> float:
    largest = 0.0
    for value in values:
        largest = max(largest, abs(value))
    return largest


@inner_function
def _is_finite(values: Floats) -> bool:
    poison = 0.0
    for value in values:
        poison += 0.0 * value
    return poison == 0.0


@inner_function
def _expected(b: float, q: float, P: float) -> float:
    """Expected magnitude of the solution: norm(b), or norm(q) / norm(P) if b is negligible, else 1."""
    of_curvature = q / P if P > 0.0 else 0.0
    if b > NEGLIGIBLE_B * of_curvature:
        return b
    return of_curvature if of_curvature > 0.0 else 1.0


@inner_function
def _power_of_two(value: float) -> float:
    return 2.0 ** np.rint(np.log2(value))
