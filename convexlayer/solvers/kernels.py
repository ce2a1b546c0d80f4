"""Kernels of the conversion between the standard form and the dense form (see ``dense_form``)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from convexlayer.program import Array
from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.solvers.dense_form import Dense, DenseLayout

__all__ = ["from_dense", "to_dense", "warm_up"]


@cached_kernel
def to_dense(layout: DenseLayout, P: Array, q: Array, A: Array, b: Array, first: int, out: Dense) -> None:
    """Convert the elements first ... first + len(out.weight) - 1 to the dense form.

    Args:
        layout: index arrays of the structure.
        P: values, (B, nnz(P)).
        q: (B, n).
        A: values, (B, nnz(A)).
        b: (B, m).
        first: index of the first element.
        out: out, the dense form.
    """
    n, k = q.shape[1], len(layout.bound_starts) - 1
    for at in range(len(out.weight)):
        e = first + at
        largest = 0.0
        for p in layout.diagonal:
            largest = max(largest, P[e, p])
        weight = largest if largest > 0.0 else 1.0
        inverse = 1.0 / weight
        out.weight[at] = weight
        matrix = out.P[at].reshape(n * n)
        matrix[:] = 0.0
        for p in range(len(layout.P_place)):
            matrix[layout.P_place[p]] = P[e, p] * inverse
        for j in range(n):
            out.q[at, j] = q[e, layout.variables[j]] * inverse

        matrix = out.A[at].reshape(len(layout.rows) * n)
        matrix[:] = 0.0
        for p in range(len(layout.A_place)):
            matrix[layout.A_place[p]] = A[e, layout.A_source[p]]
        equality = 0.0
        for i in range(len(layout.rows)):
            row = out.A[at, i]
            square = 0.0
            for value in row:
                square += value * value
            norm = math.sqrt(square) if square > 0.0 else 1.0
            row /= norm
            limit = b[e, layout.rows[i]] / norm
            out.norms[at, i], out.upper[at, k + i] = norm, limit
            out.lower[at, k + i] = limit if i < layout.zero else -math.inf
            if i < layout.zero:
                equality = max(equality, abs(limit))
        out.largest[at] = equality

        for j in range(k):
            lower, upper = -math.inf, math.inf
            for t in range(layout.bound_starts[j], layout.bound_starts[j + 1]):
                a, limit = A[e, layout.bound_entries[t]], b[e, layout.bound_rows[t]]
                if a > 0.0:
                    upper = min(upper, limit / a)
                elif a < 0.0:
                    lower = max(lower, limit / a)
                elif limit < 0.0:  # 0 <= limit is false
                    upper = -math.inf
            out.lower[at, j], out.upper[at, j] = lower, upper


@cached_kernel
def from_dense(
    layout: DenseLayout,
    dense: Dense,
    A: Array,
    b: Array,
    found: Array,
    multipliers: Array,
    solved: NDArray[np.bool_],
    first: int,
    x: Array,
    y: Array,
    s: Array,
) -> None:
    """Convert solutions of the dense form to the standard form; NaN for elements without a solution.

    Active bounds of one variable that coincide share its multiplier equally.

    Args:
        layout: index arrays of the structure.
        dense: dense form of the elements.
        A: values, (B, nnz(A)).
        b: (B, m).
        found: x of the dense form, (elements, n).
        multipliers: multipliers of its bounds and rows, negative at lower limits, (elements, k + r).
        solved: whether an element has a solution, (elements,).
        first: index of the first element.
        x: out, (B, n).
        y: out, (B, m).
        s: out, (B, m).
    """
    k = len(layout.bound_starts) - 1
    for at in range(len(solved)):
        e = first + at
        if not solved[at]:
            x[e], y[e], s[e] = math.nan, math.nan, math.nan
            continue
        for j in range(len(layout.variables)):
            x[e, layout.variables[j]] = found[at, j]
        for j in range(k):
            multiplier, start, stop = multipliers[at, j], layout.bound_starts[j], layout.bound_starts[j + 1]
            binding = dense.upper[at, j] if multiplier > 0.0 else dense.lower[at, j]
            count = 0
            for t in range(start, stop):
                i, a = layout.bound_rows[t], A[e, layout.bound_entries[t]]
                y[e, i] = 0.0
                if multiplier * a > 0.0 and b[e, i] / a == binding:
                    y[e, i] = multiplier * dense.weight[at] / a
                    count += 1
            for t in range(start, stop):
                i, a = layout.bound_rows[t], A[e, layout.bound_entries[t]]
                y[e, i] /= max(count, 1)
                s[e, i] = 0.0 if y[e, i] > 0.0 else max(b[e, i] - a * found[at, j], 0.0)
        for r in range(len(layout.rows)):
            i, norm = layout.rows[r], dense.norms[at, r]
            y[e, i] = multipliers[at, k + r] * dense.weight[at] / norm
            s[e, i] = 0.0
            if r >= layout.zero:
                y[e, i] = max(y[e, i], 0.0)
                if y[e, i] <= 0.0:
                    left = dense.upper[at, k + r]
                    for j in range(len(layout.variables)):
                        left -= dense.A[at, r, j] * found[at, j]
                    s[e, i] = max(left * norm, 0.0)


def warm_up() -> None:
    """Compile this package's kernels by calling them."""
    one, index = np.ones((1, 1)), np.zeros(1, np.int64)
    layout = DenseLayout(*(index,) * 7, np.array([0, 1]), index, 0)
    dense = Dense(np.ones((1, 1, 1)), one, np.ones((1, 1, 1)), np.ones((1, 2)), np.ones((1, 2)), one[0], one, one[0])
    to_dense(layout, one, one, one, one, 0, dense)
    from_dense(layout, dense, one, one, one, np.ones((1, 2)), np.ones(1, bool), 0, one, one, one)
