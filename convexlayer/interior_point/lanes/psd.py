"""Small positive semidefinite blocks in lanes: S and Y of order k, as scaled lower triangles.

Nesterov-Todd scaling, from Cholesky factors S = L L', Y = M M' and a singular value decomposition M'L = U diag(lam) V':

    R = L V diag(lam)^-1/2,   R^-1 = diag(lam)^-1/2 U'M',   R'Y R = R^-1 S R^-T = diag(lam)
    W = R R',   H v = svec(W mat(v) W),   H y = s

``factors`` stores, in 2 k^2 + k rows per block, the columns of R, the rows of R^-1, and lam.

Source: Vandenberghe, The CVXOPT linear and quadratic cone program solvers (2010), sections 4 and 5.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from convexlayer.interior_point.lanes.elementary import log
from convexlayer.interior_point.lanes.small_matrices import cholesky, congruence, least_eigenvalue, orthogonalise, outer
from convexlayer.linalg.simd import broadcast, load, minimum, sqrt, store, where

__all__ = [
    "add_barrier",
    "add_unit",
    "combined_shift",
    "factor_rows",
    "identity",
    "margin",
    "multiply",
    "scratch_rows",
    "shorten_step",
    "update_scaling",
]


@njit(nogil=True, error_model="numpy")
def factor_rows(order: int) -> int:
    """Number of rows of ``factors`` per block of this order."""
    return 2 * order * order + order


@njit(nogil=True, error_model="numpy")
def scratch_rows(order: int) -> int:
    """Number of rows of scratch for a block of this order."""
    return 4 * order * order + order


@njit(nogil=True, error_model="numpy")
def identity(order: int, s: Any, y: Any, r0: int, v: int) -> None:
    """Set lane v's block of s and y to the identity."""
    row = r0
    for j in range(order):
        for i in range(j, order):
            s[row, v] = y[row, v] = 1.0 if i == j else 0.0
            row += 1


@njit(nogil=True, error_model="numpy")
def add_unit(x: Any, r0: int, order: int, amount: float, v: int) -> None:
    """Add a multiple of the identity to lane v's block of x."""
    row = r0
    for j in range(order):
        x[row, v] += amount
        row += order - j


@njit(nogil=True, error_model="numpy")
def margin(x: Any, r0: int, order: int, v: int) -> float:
    """The smallest eigenvalue of lane v's block of x."""
    k2, single = order * order, (0.0,)
    block, scratch, least = np.empty((order * (order + 1) // 2, 1)), np.empty((scratch_rows(order), 1)), np.empty(1)
    block[:, 0] = x[r0 : r0 + len(block), v]
    _unpack(single, 0, order, block, block, broadcast(single, 0.0), scratch[:k2])
    store(least, 0, least_eigenvalue(single, order, scratch[:k2], scratch[k2 : 2 * k2], scratch[2 * k2 :]))
    return least[0]


@njit(nogil=True, error_model="numpy")
def _unpack(lanes: Any, r0: int, order: int, x: Any, dx: Any, alpha: Any, X: Any) -> None:
    """X <- mat(x + alpha dx)."""
    row = r0
    for j in range(order):
        for i in range(j, order):
            entry = load(lanes, x, row) + alpha * load(lanes, dx, row)
            entry = entry * (1.0 if i == j else math.sqrt(0.5))
            store(X, i + j * order, entry)
            store(X, j + i * order, entry)
            row += 1


@njit(nogil=True, error_model="numpy")
def _pack(lanes: Any, r0: int, order: int, X: Any, x: Any) -> None:
    """The block's rows of x <- svec(X)."""
    row = r0
    for j in range(order):
        for i in range(j, order):
            store(x, row, load(lanes, X, i + j * order) * (1.0 if i == j else math.sqrt(2.0)))
            row += 1


@njit(nogil=True, error_model="numpy")
def update_scaling(
    lanes: Any, r0: int, h0: int, f0: int, order: int, s: Any, y: Any, H: Any, factors: Any, scratch: Any, ok: Any
) -> None:
    """Compute H and the factors of a block from s and y; set ok (V,) to 0.0 where S or Y is not positive definite.

    Args:
        lanes: a tuple of V floats.
        r0: first row of the block.
        h0: first row of the block in H.
        f0: first row of the block in factors.
        order: k.
        s: (m, V).
        y: (m, V).
        H: out, packed upper triangles by columns, (entries, V).
        factors: out, factor_rows(k) rows per block.
        scratch: at least scratch_rows(k) rows.
        ok: in and out, (V,) of 1.0 and 0.0.
    """
    k2 = order * order
    R, inverse, lam = factors[f0 : f0 + k2], factors[f0 + k2 : f0 + 2 * k2], factors[f0 + 2 * k2 : f0 + 2 * k2 + order]
    M, N = scratch[:k2], scratch[k2 : 2 * k2]
    zero = broadcast(lanes, 0.0)
    _unpack(lanes, r0, order, s, s, zero, R)
    _unpack(lanes, r0, order, y, y, zero, M)
    definite = cholesky(lanes, order, R) & cholesky(lanes, order, M)
    for j in range(order):
        for i in range(order):
            if i < j:
                store(R, i + j * order, zero)
            total = zero
            for p in range(max(i, j), order):
                total = total + load(lanes, M, p + i * order) * load(lanes, R, p + j * order)
            store(N, i + j * order, total)
    orthogonalise(lanes, order, N, R)
    for j in range(order):
        square = zero
        for p in range(order):
            square = square + load(lanes, N, p + j * order) * load(lanes, N, p + j * order)
        definite = definite & (square > 0.0)
        value = sqrt(square)
        root = 1.0 / sqrt(value)
        store(lam, j, value)
        for i in range(order):
            total = zero
            for p in range(i + 1):
                total = total + load(lanes, M, i + p * order) * load(lanes, N, p + j * order)
            store(inverse, j + i * order, total * root / value)
            store(R, i + j * order, load(lanes, R, i + j * order) * root)
    outer(lanes, order, R, N)
    _store_kronecker(lanes, h0, order, N, H)
    store(ok, 0, where(definite, load(lanes, ok, 0), 0.0))


@njit(nogil=True, error_model="numpy")
def _store_kronecker(lanes: Any, h0: int, order: int, W: Any, H: Any) -> None:
    """H <- the matrix of v -> svec(W mat(v) W): c (W_ip W_jq + W_iq W_jp) / 2, c = 2^(number of i != j, p != q) / 2."""
    row = h0
    for j in range(order):
        for i in range(j, order):
            column = 1.0 if i == j else math.sqrt(2.0)
            for q in range(j + 1):
                for p in range(q, order if q < j else i + 1):
                    scale = column * (0.5 if p == q else math.sqrt(0.5))
                    first = load(lanes, W, i + p * order) * load(lanes, W, j + q * order)
                    second = load(lanes, W, i + q * order) * load(lanes, W, j + p * order)
                    store(H, row, (first + second) * scale)
                    row += 1


@njit(nogil=True, error_model="numpy")
def multiply(lanes: Any, r0: int, f0: int, order: int, factors: Any, v: Any, out: Any, scratch: Any) -> None:
    """The block's rows of out <- H v = svec(R R' mat(v) R R')."""
    k2 = order * order
    R = factors[f0 : f0 + k2]
    X, T, Z = scratch[:k2], scratch[k2 : 2 * k2], scratch[2 * k2 : 3 * k2]
    _unpack(lanes, r0, order, v, v, broadcast(lanes, 0.0), X)
    congruence(lanes, order, R, order, 1, X, T, Z)
    congruence(lanes, order, R, 1, order, Z, T, X)
    _pack(lanes, r0, order, X, out)


@njit(nogil=True, error_model="numpy")
def _scaled(lanes: Any, r0: int, f0: int, order: int, factors: Any, ds: Any, dy: Any, T: Any, S: Any, Y: Any) -> None:
    """S <- R^-1 mat(ds) R^-T, Y <- R' mat(dy) R; T is scratch for two matrices."""
    k2 = order * order
    R, inverse, zero = factors[f0 : f0 + k2], factors[f0 + k2 : f0 + 2 * k2], broadcast(lanes, 0.0)
    _unpack(lanes, r0, order, ds, ds, zero, T[:k2])
    congruence(lanes, order, inverse, 1, order, T[:k2], T[k2:], S)
    _unpack(lanes, r0, order, dy, dy, zero, T[:k2])
    congruence(lanes, order, R, order, 1, T[:k2], T[k2:], Y)


@njit(nogil=True, error_model="numpy")
def combined_shift(
    lanes: Any, r0: int, f0: int, order: int, factors: Any, ds: Any, dy: Any, sigma_mu: Any, shift: Any, scratch: Any
) -> None:
    """Shift <- svec(R Z R') with (lam_i + lam_j) Z_ij = (2 diag(lam)^2 + S Y + Y S - 2 sigma mu I)_ij.

    S and Y are the affine direction ds, dy in the scaled space.
    """
    k2 = order * order
    lam = factors[f0 + 2 * k2 : f0 + 2 * k2 + order]
    T, S, Y = scratch[: 2 * k2], scratch[2 * k2 : 3 * k2], scratch[3 * k2 : 4 * k2]
    _scaled(lanes, r0, f0, order, factors, ds, dy, T, S, Y)
    for j in range(order):
        at_j = load(lanes, lam, j)
        for i in range(j, order):
            total = broadcast(lanes, 0.0)
            if i == j:
                total = 2.0 * (at_j * at_j - load(lanes, sigma_mu, 0))
            for p in range(order):
                total = total + load(lanes, S, p + i * order) * load(lanes, Y, p + j * order)
                total = total + load(lanes, Y, p + i * order) * load(lanes, S, p + j * order)
            entry = total / (at_j + load(lanes, lam, i))
            store(T, i + j * order, entry)
            store(T, j + i * order, entry)
    congruence(lanes, order, factors[f0 : f0 + k2], 1, order, T[:k2], T[k2:], S)
    _pack(lanes, r0, order, S, shift)


@njit(nogil=True, error_model="numpy")
def shorten_step(
    lanes: Any, r0: int, f0: int, order: int, factors: Any, ds: Any, dy: Any, alpha: Any, scratch: Any
) -> None:
    """Reduce alpha (V,) to the longest step that keeps s + alpha ds and y + alpha dy semidefinite; 0 for NaN.

    With Z = diag(lam)^-1/2 (scaled ds or dy) diag(lam)^-1/2, it is -1 / (smallest eigenvalue of Z) if that is negative.
    """
    k2 = order * order
    lam = factors[f0 + 2 * k2 : f0 + 2 * k2 + order]
    T, S, Y, work = scratch[: 2 * k2], scratch[2 * k2 : 3 * k2], scratch[3 * k2 : 4 * k2], scratch[4 * k2 :]
    _scaled(lanes, r0, f0, order, factors, ds, dy, T, S, Y)
    longest = load(lanes, alpha, 0)
    for X in (S, Y):
        for j in range(order):
            for i in range(j, order):
                scale = 1.0 / sqrt(load(lanes, lam, i) * load(lanes, lam, j))
                entry = load(lanes, X, i + j * order) * scale
                store(X, i + j * order, entry)
                store(X, j + i * order, entry)
        least = least_eigenvalue(lanes, order, X, T, work)
        longest = where(least < 0.0, minimum(-1.0 / least, longest), where(least >= 0.0, longest, 0.0))
    store(alpha, 0, longest)


@njit(nogil=True, error_model="numpy")
def add_barrier(
    lanes: Any, r0: int, order: int, s: Any, y: Any, ds: Any, dy: Any, alpha: Any, barrier: Any, scratch: Any
) -> None:
    """Barrier (V,) -= log det(S + alpha dS) + log det(Y + alpha dY); infinity if either is not positive definite."""
    X, length = scratch[: order * order], load(lanes, alpha, 0)
    value = broadcast(lanes, 0.0)
    for x, dx in ((s, ds), (y, dy)):
        _unpack(lanes, r0, order, x, dx, length, X)
        definite = cholesky(lanes, order, X)
        for j in range(order):
            value = value - 2.0 * log(load(lanes, X, j + j * order))
        value = where(definite, value, math.inf)
    store(barrier, 0, load(lanes, barrier, 0) + value)
