"""Small dense matrices in lanes: (k^2, V) arrays with entry (i, j) in row i + j k.

The Jacobi and Laguerre iterations run until every lane has converged. A converged lane is not updated any more, so that
its result does not depend on its neighbours.
"""

from __future__ import annotations

import math
from typing import Any

from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import absolute, any_lane, broadcast, load, maximum, minimum, sqrt, store, where

__all__ = ["cholesky", "congruence", "least_eigenvalue", "orthogonalise", "outer"]

ORTHOGONAL = 1e-15
"""Two columns count as orthogonal if their cosine is below this, a few rounding errors."""

LAST_SWEEP = 1e-9
"""A sweep in which every cosine is below this is the last: Jacobi converges quadratically."""

MAX_SWEEPS = 20
"""Maximum number of Jacobi sweeps."""

MAX_STEPS = 40
"""Maximum number of Laguerre steps; convergence is cubic for a simple root, linear with factor 0.3 for a double one."""

LAST_STEP = 1e-9
"""Laguerre's method ends at a step below this, relative to the norm of the matrix. It converges from below, so that the
step to the boundary of the cone is never overestimated."""

BELOW_GERSHGORIN = 0.01
"""Distance, relative to the norm of the matrix, of the first point of Laguerre's method below Gershgorin's bound: at an
eigenvalue a pivot would be 0. A larger distance costs steps."""


@inner_function
def cholesky(lanes: Any, order: int, X: Any) -> Any:
    """Overwrite the lower triangle of X by its Cholesky factor; returns the mask of lanes with X positive definite."""
    definite = broadcast(lanes, 1.0) > 0.0
    for j in range(order):
        for i in range(j, order):
            total = load(lanes, X, i + j * order)
            for p in range(j):
                total = total - load(lanes, X, i + p * order) * load(lanes, X, j + p * order)
            if i == j:
                definite = definite & (total > 0.0) & (total < math.inf)
                total = sqrt(where(definite, total, 1.0))
                store(X, i + j * order, total)
            else:
                store(X, i + j * order, total / load(lanes, X, j + j * order))
    return definite


@inner_function
def congruence(lanes: Any, order: int, A: Any, down: int, right: int, X: Any, T: Any, out: Any) -> None:
    """Out <- A X A' with symmetric X and A's entry (i, j) in row ``i down + j right``; T is scratch."""
    for j in range(order):
        for i in range(order):
            total = broadcast(lanes, 0.0)
            for p in range(order):
                total = total + load(lanes, X, i + p * order) * load(lanes, A, j * down + p * right)
            store(T, i + j * order, total)
    for j in range(order):
        for i in range(j, order):
            total = broadcast(lanes, 0.0)
            for p in range(order):
                total = total + load(lanes, A, i * down + p * right) * load(lanes, T, p + j * order)
            store(out, i + j * order, total)
            store(out, j + i * order, total)


@inner_function
def outer(lanes: Any, order: int, R: Any, W: Any) -> None:
    """W <- R R'."""
    for j in range(order):
        for i in range(j, order):
            total = broadcast(lanes, 0.0)
            for p in range(order):
                total = total + load(lanes, R, i + p * order) * load(lanes, R, j + p * order)
            store(W, i + j * order, total)
            store(W, j + i * order, total)


@inner_function
def orthogonalise(lanes: Any, order: int, M: Any, L: Any) -> None:
    """One-sided Jacobi: rotate pairs of columns of M, and of L alike, until those of M are orthogonal (Hestenes 1958).

    The norms of the columns of M are then its singular values, with full relative precision even of the small ones
    (Demmel and Veselic 1992).
    """
    moving = broadcast(lanes, 1.0) > 0.0
    for _ in range(MAX_SWEEPS):
        far = broadcast(lanes, 0.0) > 0.0
        for j in range(order - 1):
            for i in range(j + 1, order):
                left, right, between = broadcast(lanes, 0.0), broadcast(lanes, 0.0), broadcast(lanes, 0.0)
                for p in range(order):
                    x, y = load(lanes, M, p + j * order), load(lanes, M, p + i * order)
                    left, right, between = left + x * x, right + y * y, between + x * y
                size = sqrt(left * right)
                turn = moving & (absolute(between) > ORTHOGONAL * size)
                if not any_lane(turn):
                    continue
                far = far | (absolute(between) > LAST_SWEEP * size)
                half = 0.5 * (right - left) / between
                tangent = 1.0 / (absolute(half) + sqrt(1.0 + half * half))
                tangent = where(turn, where(half < 0.0, -tangent, tangent), 0.0)
                cosine = 1.0 / sqrt(1.0 + tangent * tangent)
                sine = cosine * tangent
                for p in range(order):
                    x, y = load(lanes, M, p + j * order), load(lanes, M, p + i * order)
                    store(M, p + j * order, cosine * x - sine * y)
                    store(M, p + i * order, sine * x + cosine * y)
                    x, y = load(lanes, L, p + j * order), load(lanes, L, p + i * order)
                    store(L, p + j * order, cosine * x - sine * y)
                    store(L, p + i * order, sine * x + cosine * y)
        moving = moving & far
        if not any_lane(moving):
            break


@inner_function
def least_eigenvalue(lanes: Any, order: int, X: Any, work: Any, squares: Any) -> Any:
    """The smallest eigenvalue of symmetric X, from below, to LAST_STEP times its norm; NaN if X is not finite.

    Laguerre's method on the Householder tridiagonal form. X, work (k rows) and squares (k rows) are overwritten.
    """
    _tridiagonalise(lanes, order, X, work, squares)
    zero = broadcast(lanes, 0.0)
    least, size, before, taint = broadcast(lanes, math.inf), zero, zero, zero
    for i in range(order):
        after = zero
        if i < order - 1:
            after = sqrt(load(lanes, squares, i))
        diagonal = load(lanes, X, i + i * order)
        least = minimum(diagonal - before - after, least)
        size = maximum(absolute(diagonal) + before + after, size)
        before = after
        taint = taint + 0.0 * (diagonal + after)
    x = least - BELOW_GERSHGORIN * size + taint
    moving = size > 0.0
    n = float(order)
    for _ in range(MAX_STEPS):
        # The sums of 1 / (eigenvalue - x) and of its square, the derivatives of -log det(X - x I), from the pivots of
        # X - x I. A pivot is negative if rounding has moved x past the smallest eigenvalue.
        first, second = zero, zero
        square, inverse, ratio, curve = zero, zero, zero, zero
        for i in range(order):
            pull = square * inverse
            slope = pull * ratio + 1.0
            bend = pull * (curve + 2.0 * ratio * ratio)
            inverse = 1.0 / (load(lanes, X, i + i * order) - x - pull)
            moving = moving & (inverse > 0.0)
            ratio, curve = slope * inverse, bend * inverse
            first = first + ratio
            second = second + (ratio * ratio + curve)
            if i < order - 1:
                square = load(lanes, squares, i)
        spread = (n - 1.0) * (n * second - first * first)
        step = n / (first + sqrt(maximum(spread, 0.0)))
        step = where(moving, maximum(step, 0.0), 0.0)
        x = x + step
        moving = moving & (step > LAST_STEP * size)
        if not any_lane(moving):
            break
    return x


@inner_function
def _tridiagonalise(lanes: Any, order: int, X: Any, work: Any, squares: Any) -> None:
    """Householder tridiagonalisation: the diagonal stays in X, ``squares`` gets the squared off-diagonal entries."""
    zero = broadcast(lanes, 0.0)
    for j in range(order - 1):
        norm = zero
        for i in range(j + 1, order):
            norm = norm + load(lanes, X, i + j * order) * load(lanes, X, i + j * order)
        store(squares, j, norm)
        if j == order - 2:
            break
        head = load(lanes, X, j + 1 + j * order)
        root = sqrt(norm)
        store(X, j + 1 + j * order, head + where(head < 0.0, -root, root))
        weight = norm + absolute(head) * root
        weight = where(weight > 0.0, 1.0 / weight, 0.0)
        inner = zero
        for i in range(j + 1, order):
            total = zero
            for p in range(j + 1, order):
                total = total + load(lanes, X, i + p * order) * load(lanes, X, p + j * order)
            total = total * weight
            store(work, i, total)
            inner = inner + total * load(lanes, X, i + j * order)
        inner = 0.5 * weight * inner
        for i in range(j + 1, order):
            store(work, i, load(lanes, work, i) - inner * load(lanes, X, i + j * order))
        for q in range(j + 1, order):
            for p in range(q, order):
                entry = load(lanes, X, p + q * order) - load(lanes, X, p + j * order) * load(lanes, work, q)
                entry = entry - load(lanes, work, p) * load(lanes, X, q + j * order)
                store(X, p + q * order, entry)
                store(X, q + p * order, entry)
