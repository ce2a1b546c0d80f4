"""Small positive semidefinite blocks in lanes: S and Y of order k, as scaled lower triangles.

Nesterov-Todd scaling, from Cholesky factors S = L L', Y = M M' and a singular value decomposition M'L = U diag(lam) V':

    R = L V diag(lam)^-1/2,   R^-1 = diag(lam)^-1/2 U'M',   R'Y R = R^-1 S R^-T = diag(lam)
    W = R R',   H v = svec(W mat(v) W),   H y = s

``Scaling.factors`` stores, in 2 k^2 + k rows per block, R, R^-1 and lam. A matrix in lanes is an array (k^2, V), by
columns (see ``small_matrices``).

Source: Vandenberghe, The CVXOPT linear and quadratic cone program solvers (2010), sections 4 and 5.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convexlayer.interior_point.lanes.cones.block import Shape, write_packed
from convexlayer.interior_point.lanes.cones.small_matrices import (
    cholesky,
    congruence,
    least_eigenvalue,
    orthogonalise,
    outer,
)
from convexlayer.interior_point.lanes.layout import Block, Point, Scaling
from convexlayer.program import Array, Cones
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import broadcast, load, minimum, sqrt, store, where

__all__ = [
    "add_identity",
    "combined_shift",
    "margin",
    "multiply",
    "set_central_point",
    "shapes",
    "shorten_step",
    "update_scaling",
    "write_scaling",
]


SCRATCH_MATRICES = 4
"""Number of matrices that the functions of this module need as scratch."""


def shapes(cones: Cones) -> list[Shape]:
    """Every block, with R, R^-1 and lam in ``factors``, and scratch for four matrices and a vector."""
    return [
        Shape(
            size=k * (k + 1) // 2, degree=k, order=k,
            factor_rows=2 * k * k + k, scratch_rows=SCRATCH_MATRICES * k * k + k,
        )
        for k in cones.psd
    ]  # fmt: skip


@inner_function
def _factors(block: Block, scaling: Scaling) -> tuple[Array, Array, Array]:
    """R, R^-1 and lam of a block."""
    k2, f0 = block.order * block.order, block.factor
    return (
        scaling.factors[f0 : f0 + k2],
        scaling.factors[f0 + k2 : f0 + 2 * k2],
        scaling.factors[f0 + 2 * k2 : f0 + 2 * k2 + block.order],
    )


@inner_function
def set_central_point(v: int, block: Block, point: Point) -> None:
    """Set s and y of lane v to the identity matrix."""
    row = block.start
    for j in range(block.order):
        for i in range(j, block.order):
            point.s[row, v] = point.y[row, v] = 1.0 if i == j else 0.0
            row += 1


@inner_function
def add_identity(v: int, block: Block, amount: float, u: Array) -> None:
    """Add a multiple of the identity matrix to lane v's u."""
    row = block.start
    for j in range(block.order):
        u[row, v] += amount
        row += block.order - j


@inner_function
def margin(v: int, block: Block, u: Array) -> float:
    """The smallest eigenvalue of lane v's u."""
    order, single = block.order, (0.0,)
    k2 = order * order
    x, scratch, least = np.empty((block.size, 1)), np.empty((2 * k2 + 2 * order, 1)), np.empty(1)
    for p in range(block.size):
        x[p, 0] = u[block.start + p, v]
    _unpack(single, 0, order, x, scratch[:k2])
    store(least, 0, least_eigenvalue(single, order, scratch[:k2], scratch[k2 : 2 * k2], scratch[2 * k2 :]))
    return least[0]


@inner_function
def _unpack(lanes: Any, r0: int, order: int, x: Array, X: Array) -> None:
    """X <- mat(x), from the rows of x that begin at r0."""
    row = r0
    for j in range(order):
        for i in range(j, order):
            entry = load(lanes, x, row) * (1.0 if i == j else math.sqrt(0.5))
            store(X, i + j * order, entry)
            store(X, j + i * order, entry)
            row += 1


@inner_function
def _pack(lanes: Any, r0: int, order: int, X: Array, x: Array) -> None:
    """The rows of x that begin at r0 <- svec(X)."""
    row = r0
    for j in range(order):
        for i in range(j, order):
            store(x, row, load(lanes, X, i + j * order) * (1.0 if i == j else math.sqrt(2.0)))
            row += 1


@inner_function
def update_scaling(lanes: Any, block: Block, point: Point, scaling: Scaling) -> None:
    """Compute H and the factors of a block; set ``scaling.ok`` to 0 where S or Y is not positive definite."""
    order, work = block.order, scaling.work
    k2 = order * order
    R, inverse, lam = _factors(block, scaling)
    M, N = work[:k2], work[k2 : 2 * k2]
    zero = broadcast(lanes, 0.0)
    _unpack(lanes, block.start, order, point.s, R)
    _unpack(lanes, block.start, order, point.y, M)
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
    _store_kronecker(lanes, block.packed, order, N, scaling.packed)
    store(scaling.ok, 0, where(definite, load(lanes, scaling.ok, 0), 0.0))


@inner_function
def _store_kronecker(lanes: Any, h0: int, order: int, W: Array, H: Array) -> None:
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


write_scaling = write_packed


@inner_function
def multiply(lanes: Any, block: Block, scaling: Scaling, x: Array, out: Array) -> None:
    """The block's rows of out <- H x = svec(R R' mat(x) R R')."""
    order, work = block.order, scaling.work
    k2 = order * order
    R, _, _ = _factors(block, scaling)
    X, T, Z = work[:k2], work[k2 : 2 * k2], work[2 * k2 : 3 * k2]
    _unpack(lanes, block.start, order, x, X)
    congruence(lanes, order, R, order, 1, X, T, Z)
    congruence(lanes, order, R, 1, order, Z, T, X)
    _pack(lanes, block.start, order, X, out)


@inner_function
def _scaled(lanes: Any, block: Block, scaling: Scaling, direction: Point) -> tuple[Array, Array, Array, Array]:
    """S = R^-1 mat(ds) R^-T, Y = R' mat(dy) R, scratch for two matrices, and the rest, all in ``scaling.work``."""
    order, work = block.order, scaling.work
    k2 = order * order
    R, inverse, _ = _factors(block, scaling)
    T, S, Y = work[: 2 * k2], work[2 * k2 : 3 * k2], work[3 * k2 : 4 * k2]
    _unpack(lanes, block.start, order, direction.s, T[:k2])
    congruence(lanes, order, inverse, 1, order, T[:k2], T[k2:], S)
    _unpack(lanes, block.start, order, direction.y, T[:k2])
    congruence(lanes, order, R, order, 1, T[:k2], T[k2:], Y)
    return S, Y, T, work[4 * k2 :]


@inner_function
def combined_shift(
    lanes: Any, block: Block, scaling: Scaling, point: Point, direction: Point, sigma_mu: Array, shift: Array
) -> None:
    """Shift <- svec(R Z R') with (lam_i + lam_j) Z_ij = (2 diag(lam)^2 + S Y + Y S - 2 sigma mu I)_ij.

    S and Y are the affine direction ds, dy in the scaled space.
    """
    order = block.order
    k2 = order * order
    R, _, lam = _factors(block, scaling)
    S, Y, T, _ = _scaled(lanes, block, scaling, direction)
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
    congruence(lanes, order, R, 1, order, T[:k2], T[k2:], S)
    _pack(lanes, block.start, order, S, shift)


@inner_function
def shorten_step(lanes: Any, block: Block, scaling: Scaling, point: Point, direction: Point, alpha: Array) -> None:
    """Reduce alpha (V,) to the longest step that keeps s + alpha ds and y + alpha dy semidefinite; 0 for NaN.

    With Z = diag(lam)^-1/2 (scaled ds or dy) diag(lam)^-1/2, it is -1 / (smallest eigenvalue of Z) if that is negative.
    """
    order = block.order
    _, _, lam = _factors(block, scaling)
    S, Y, T, work = _scaled(lanes, block, scaling, direction)
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
