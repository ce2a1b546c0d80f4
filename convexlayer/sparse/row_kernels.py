"""Kernels of ``certificate`` and ``Residuals``: residuals of a point and the scales that they are measured by."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from convexlayer.runtime.cached_kernel import cached_kernel

__all__ = ["complementary", "nan_max", "residuals", "scales"]

Floats = NDArray[np.float64]


@cached_kernel
def scales(
    P_rows: NDArray[np.int64],
    P_starts: NDArray[np.int64],
    A_rows: NDArray[np.int64],
    A_starts: NDArray[np.int64],
    blocks: NDArray[np.int64],
    free: int,
    constants: tuple[float, float, float, float, float, float, float, float],
    P: Floats,
    q: Floats,
    A: Floats,
    b: Floats,
    x: Floats,
    y: Floats,
    s: Floats,
    variable: Floats,
    dual: Floats,
    primal: Floats,
    c: Floats,
    size: Floats,
    dual_rounding: Floats,
    primal_rounding: Floats,
    first: int,
    last: int,
) -> None:
    """Compute the arrays of ``certificate.Scales``, which documents them, for elements first <= e < last.

    ``blocks`` contains the first rows of the blocks of the curved cones, and m; each earlier row is a block.
    """
    within, floor, lost, bound, noticed, exponent, eps, rounding = constants
    n, m, flat = q.shape[1], b.shape[1], blocks[0]
    abs_x, abs_y, Y, S = np.empty(n), np.empty(m), np.empty(m), np.empty(m)
    for e in range(first, last):
        for j in range(n):
            abs_x[j] = abs(x[e, j])
        for i in range(m):
            abs_y[i] = abs(y[e, i])
        _raise_to_fraction(abs_y, blocks, within)
        _sums(P_rows, P_starts, A_rows, A_starts, P[e], q[e], A[e], b[e], s[e], abs_x, abs_y, dual[e], primal[e])
        S[:] = primal[e]
        _largest_of_blocks(S, blocks)
        Y[:] = 0.0
        for j in range(n):
            highest = 0.0
            for p in range(P_starts[j], P_starts[j + 1]):
                if P_rows[p] == j and P[e, p] != 0.0:
                    highest = dual[e, j] / abs(P[e, p])
            for p in range(A_starts[j], A_starts[j + 1]):
                i, value = A_rows[p], abs(A[e, p])
                if value > 0.0:
                    highest = max(highest, S[i] / value)
                    Y[i] = max(Y[i], dual[e, j] / value)
            variable[e, j] = highest
            abs_x[j] = max(abs_x[j], floor * highest)
        _largest_of_blocks(Y, blocks)
        for i in range(m):
            abs_y[i] = max(abs_y[i], floor * Y[i])
        _sums(P_rows, P_starts, A_rows, A_starts, P[e], q[e], A[e], b[e], s[e], abs_x, abs_y, dual[e], primal[e])
        S[:] = primal[e]
        _largest_of_blocks(S, blocks)
        Y[:] = np.inf
        highest = 0.0
        for j in range(n):
            highest = max(highest, dual[e, j])
        for j in range(n):
            column = max(dual[e, j], rounding * highest)
            for p in range(A_starts[j], A_starts[j + 1]):
                value = abs(A[e, p])
                if value > 0.0 and column > 0.0:
                    Y[A_rows[p]] = min(Y[A_rows[p]], column / value)
        for i in range(m):
            if not np.isfinite(Y[i]):
                Y[i] = 0.0
        _largest_of_blocks(Y, blocks)
        for i in range(flat):
            c[e, i], size[e, i] = _balance(bound * S[i], Y[i], exponent)
            primal_rounding[e, i] = 0.0
        for i in range(free):
            c[e, i] = 1.0
        for j in range(n):
            dual_rounding[e, j] = 0.0
        for k in range(len(blocks) - 1):
            start, stop = blocks[k], blocks[k + 1]
            s_norm, y_norm, w_norm = 0.0, 0.0, 0.0
            for i in range(start, stop):
                s_norm, y_norm = max(s_norm, abs(s[e, i])), max(y_norm, abs(y[e, i]))
                if b[e, i] == 0.0 or abs(b[e, i]) >= lost * S[start]:
                    primal[e, i] = max(primal[e, i], within * S[start])
            s_size, y_size = bound * S[start], Y[start]
            if s_norm > noticed * s_size and y_norm > noticed * y_size:
                s_size, y_size = s_norm, y_norm
            scale, norm = _balance(s_size, y_size, exponent)
            for i in range(start, stop):
                w_norm = max(w_norm, abs(scale * y[e, i]) + abs(s[e, i]) / scale)
            for i in range(start, stop):
                c[e, i], size[e, i] = scale, norm
                primal_rounding[e, i], Y[i] = w_norm * scale, w_norm / scale
        for j in range(n):
            total = abs(q[e, j])
            for p in range(P_starts[j], P_starts[j + 1]):
                total += abs(P[e, p] * x[e, P_rows[p]])
            for p in range(A_starts[j], A_starts[j + 1]):
                i, value = A_rows[p], abs(A[e, p])
                total += value * (abs(y[e, i]) + (Y[i] if i >= flat else 0.0))
                primal_rounding[e, i] += value * abs(x[e, j])
            dual_rounding[e, j] = eps * total
        for i in range(m):
            primal_rounding[e, i] = eps * (primal_rounding[e, i] + abs(b[e, i]) + abs(s[e, i]))


@njit(nogil=True, error_model="numpy")
def _sums(
    P_rows: NDArray[np.int64],
    P_starts: NDArray[np.int64],
    A_rows: NDArray[np.int64],
    A_starts: NDArray[np.int64],
    P: Floats,
    q: Floats,
    A: Floats,
    b: Floats,
    s: Floats,
    abs_x: Floats,
    abs_y: Floats,
    dual: Floats,
    primal: Floats,
) -> None:
    """dual <- |P||x| + |q| + |A|'|y| and primal <- |A||x| + |b| + |s|, for symmetric P."""
    for i in range(len(primal)):
        primal[i] = abs(b[i]) + abs(s[i])
    for j in range(len(dual)):
        total, x_j = abs(q[j]), abs_x[j]
        for p in range(P_starts[j], P_starts[j + 1]):
            total += abs(P[p]) * abs_x[P_rows[p]]
        for p in range(A_starts[j], A_starts[j + 1]):
            value = abs(A[p])
            total += value * abs_y[A_rows[p]]
            primal[A_rows[p]] += value * x_j
        dual[j] = total


@njit(nogil=True, error_model="numpy")
def _largest_of_blocks(v: Floats, blocks: NDArray[np.int64]) -> None:
    for k in range(len(blocks) - 1):
        largest = 0.0
        for i in range(blocks[k], blocks[k + 1]):
            largest = max(largest, v[i])
        for i in range(blocks[k], blocks[k + 1]):
            v[i] = largest


@njit(nogil=True, error_model="numpy")
def _raise_to_fraction(v: Floats, blocks: NDArray[np.int64], fraction: float) -> None:
    """Raise the entries of each block to at least ``fraction`` times its largest."""
    for k in range(len(blocks) - 1):
        largest = 0.0
        for i in range(blocks[k], blocks[k + 1]):
            largest = max(largest, v[i])
        for i in range(blocks[k], blocks[k + 1]):
            v[i] = max(v[i], fraction * largest)


@njit(nogil=True, error_model="numpy")
def _balance(S: float, Y: float, exponent: float) -> tuple[float, float]:
    """c and the size of w, from the sizes of s and y: a power of two near sqrt(S / Y), and sqrt(S Y)."""
    if S > 0.0 and Y > 0.0:
        power = min(max(np.rint(0.5 * np.log2(S / Y)), -exponent), exponent)
        return 2.0**power, np.sqrt(S) * np.sqrt(Y)
    largest = max(S, Y)
    return 1.0, (largest if largest > 0.0 else np.inf)


@cached_kernel
def complementary(
    P_rows: NDArray[np.int64],
    P_starts: NDArray[np.int64],
    A_rows: NDArray[np.int64],
    A_starts: NDArray[np.int64],
    free: int,
    P: Floats,
    q: Floats,
    A: Floats,
    b: Floats,
    x: Floats,
    w: Floats,
    curved: Floats,
    c: Floats,
    dual_size: Floats,
    primal_size: Floats,
    y: Floats,
    s: Floats,
    dual: Floats,
    primal: Floats,
    backward: Floats,
    first: int,
    last: int,
) -> None:
    """y, s, Px + q + A'y, Ax + s - b and backward error of ``certificate.ComplementaryPoint``, first <= e < last.

    ``curved`` (B, m - flat) contains the projections of w onto the duals of the curved cones.
    """
    n, m = q.shape[1], b.shape[1]
    flat = m - curved.shape[1]
    for e in range(first, last):
        for i in range(m):
            projected = w[e, i] if i < free or w[e, i] > 0.0 else 0.0
            if i >= flat:
                projected = curved[e, i - flat]
            y[e, i], s[e, i] = projected / c[e, i], (projected - w[e, i]) * c[e, i]
            primal[e, i] = s[e, i] - b[e, i]
        worst = 0.0
        for j in range(n):
            total = q[e, j]
            for p in range(P_starts[j], P_starts[j + 1]):
                total += P[e, p] * x[e, P_rows[p]]
            for p in range(A_starts[j], A_starts[j + 1]):
                total += A[e, p] * y[e, A_rows[p]]
                primal[e, A_rows[p]] += A[e, p] * x[e, j]
            dual[e, j] = total
            worst = nan_max(worst, _ratio(total, dual_size[e, j]))
        for i in range(m):
            worst = nan_max(worst, _ratio(primal[e, i], primal_size[e, i]))
        backward[e] = np.inf if np.isnan(worst) else worst


@njit(nogil=True, error_model="numpy")
def _ratio(residual: float, size: float) -> float:
    """|residual| / size, with 0 / 0 = 0."""
    if residual == 0.0:
        return 0.0
    return abs(residual) / (size if size > 0.0 else 1e-300)


@cached_kernel
def residuals(
    P_rows: NDArray[np.int64],
    P_starts: NDArray[np.int64],
    A_rows: NDArray[np.int64],
    A_starts: NDArray[np.int64],
    zero: int,
    orthant: int,
    P: Floats,
    q: Floats,
    r: Floats,
    A: Floats,
    b: Floats,
    x: Floats,
    y: Floats,
    s: Floats,
    curved: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """Primal, dual, gap and natural residual, their maximum, and the objective (see ``Residuals``).

    Written to the columns of out (6, B), for elements first <= e < last. ``curved`` (B, m - orthant) contains the
    projections of y - s onto the duals of the curved cones.
    """
    n, m = q.shape[1], b.shape[1]
    Px, Aty, Ax = np.empty(n), np.empty(n), np.empty(m)
    for e in range(first, last):
        Px[:], Ax[:] = 0.0, 0.0
        for j in range(n):
            for p in range(P_starts[j], P_starts[j + 1]):
                Px[P_rows[p]] += P[e, p] * x[e, j]
            total = 0.0
            for p in range(A_starts[j], A_starts[j + 1]):
                Ax[A_rows[p]] += A[e, p] * x[e, j]
                total += A[e, p] * y[e, A_rows[p]]
            Aty[j] = total
        dual, dual_size, xPx, qx = 0.0, 1.0, 0.0, 0.0
        for j in range(n):
            dual = nan_max(dual, abs(Px[j] + q[e, j] + Aty[j]))
            dual_size = max(dual_size, max(abs(Px[j]), max(abs(q[e, j]), abs(Aty[j]))))
            xPx += x[e, j] * Px[j]
            qx += x[e, j] * q[e, j]
        primal, primal_size, by, natural, size = 0.0, 1.0, 0.0, 0.0, 1.0
        for i in range(m):
            primal = nan_max(primal, abs(Ax[i] + s[e, i] - b[e, i]))
            primal_size = max(primal_size, max(abs(Ax[i]), max(abs(s[e, i]), abs(b[e, i]))))
            by += b[e, i] * y[e, i]
            size = max(size, max(abs(y[e, i]), abs(s[e, i])))
            w = y[e, i] - s[e, i]
            projected = curved[e, i - orthant] if i >= orthant else (w if i < zero or w > 0.0 else 0.0)
            natural = nan_max(natural, abs(y[e, i] - projected))
        gap = abs(xPx + qx + by) / max(1.0, max(abs(xPx), max(abs(qx), abs(by))))
        primal, dual, natural = primal / primal_size, dual / dual_size, natural / size
        worst = nan_max(nan_max(primal, dual), nan_max(gap, natural))
        out[0, e], out[1, e], out[2, e], out[3, e] = primal, dual, gap, natural
        out[4, e] = np.inf if np.isnan(worst) else worst
        out[5, e] = 0.5 * xPx + qx + r[e]


@njit(nogil=True)
def nan_max(largest: float, value: float) -> float:
    """The larger of two numbers; NaN if either is."""
    return largest if value <= largest or np.isnan(largest) else value
