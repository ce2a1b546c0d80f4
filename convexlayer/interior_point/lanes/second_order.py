"""Second-order cones in lanes: Nesterov-Todd scaling, products, corrections and step lengths.

For s, y in the interior, with J = diag(1, -1, ..., -1), the scaling point w (w'Jw = 1) and eta^4 = s'Js / y'Jy,

    W = eta (w0, w1'; w1, I + w1 w1' / (1 + w0)),   W^2 = eta^2 (2 w w' - J),   W y = W^-1 s = lambda.

Source: Vandenberghe, The CVXOPT linear and quadratic cone program solvers (2010), section 5; the expansion of W^2 as a
diagonal and two rank-one terms follows Domahidi, Chu and Boyd (2013).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from convexlayer.linalg.lanes import Indices
from convexlayer.linalg.simd import broadcast, load, maximum, minimum, sqrt, store, where
from convexlayer.program import Array

__all__ = ["expand", "margin", "pack", "product", "scale", "shift", "shorten_step"]

TINY = 1e-300
"""Lower bound of u'Ju, so that its square root and quotients are finite on the boundary."""


@njit(nogil=True, error_model="numpy")
def margin(u: Array, start: int, size: int, v: int) -> float:
    """u0 - norm(u1) of lane v's block, its smallest eigenvalue."""
    tail = 0.0
    for i in range(start + 1, start + size):
        tail += u[i, v] * u[i, v]
    return u[start, v] - np.sqrt(tail)


@njit(nogil=True, error_model="numpy")
def _dot(lanes: Any, x: Array, y: Array, start: int, size: int) -> Any:
    """x1'y1 of a block."""
    total = broadcast(lanes, 0.0)
    for i in range(start + 1, start + size):
        total = total + load(lanes, x, i) * load(lanes, y, i)
    return total


@njit(nogil=True, error_model="numpy")
def _det(head: Any, tail: Any) -> Any:
    """u'Ju = (u0 - |u1|) (u0 + |u1|), without cancellation, from u0 and |u1|^2."""
    norm = sqrt(tail)
    return maximum((head - norm) * (head + norm), TINY)


@njit(nogil=True, error_model="numpy")
def scale(lanes: Any, s: Array, y: Array, start: int, size: int, w: Array, eta2: Array, block: int) -> None:
    """Compute the scaling point of a block (its rows of w) and eta^2 (row ``block`` of eta2)."""
    s0, y0 = load(lanes, s, start), load(lanes, y, start)
    s_size = sqrt(_det(s0, _dot(lanes, s, s, start, size)))
    y_size = sqrt(_det(y0, _dot(lanes, y, y, start, size)))
    dot = s0 * y0 + _dot(lanes, s, y, start, size)
    norm = 0.5 / sqrt(0.5 * (1.0 + dot / (s_size * y_size)))
    s_factor, y_factor, tail = norm / s_size, norm / y_size, broadcast(lanes, 0.0)
    for i in range(start + 1, start + size):
        wi = s_factor * load(lanes, s, i) - y_factor * load(lanes, y, i)
        store(w, i, wi)
        tail = tail + wi * wi
    store(w, start, sqrt(1.0 + tail))
    store(eta2, block, s_size / y_size)


@njit(nogil=True, error_model="numpy")
def pack(lanes: Any, w: Array, eta2: Array, block: int, start: int, size: int, packed: Array, offset: int) -> None:
    """Store W^2 of a block in ``packed`` as an upper triangle by columns."""
    eta2_ = load(lanes, eta2, block)
    for j in range(size):
        wj = 2.0 * load(lanes, w, start + j)
        for i in range(j):
            store(packed, offset, eta2_ * load(lanes, w, start + i) * wj)
            offset += 1
        store(packed, offset, eta2_ * (load(lanes, w, start + j) * wj + (1.0 if j > 0 else -1.0)))
        offset += 1


@njit(nogil=True, error_model="numpy")
def expand(
    lanes: Any, w: Array, eta2: Array, block: int, start: int, size: int, diagonal: Indices, row: int, extra: int,
    place: Indices, first: int, values: Array, shift: float,
) -> None:  # fmt: skip
    """Write -W^2 = -eta^2 (diag(delta, 1, ...) + u u' - v v') of a block into K, with two additional unknowns.

    With wsq = w0^2 + |w1|^2: delta = 1 / (2 wsq), u = (u0, (2 w0 / u0) w1), u0^2 = wsq - delta,
    v = (0, v1 w1), v1^2 = 2 (2 + 1 / wsq) / (2 wsq - 1 / wsq).
    """
    eta2_, w0 = load(lanes, eta2, block), load(lanes, w, start)
    wsq = 2.0 * w0 * w0 - 1.0
    inverse = 1.0 / wsq
    u0 = sqrt(wsq - 0.5 * inverse)
    u1 = -2.0 * eta2_ * w0 / u0
    v1 = -1.0 * eta2_ * sqrt(2.0 * (2.0 + inverse) / (2.0 * wsq - inverse))
    store(values, diagonal[row], -0.5 * eta2_ * inverse - shift)
    store(values, place[first], broadcast(lanes, 0.0))
    store(values, place[first + size], -1.0 * eta2_ * u0)
    for i in range(1, size):
        wi = load(lanes, w, start + i)
        store(values, diagonal[row + i], -1.0 * eta2_ - shift)
        store(values, place[first + i], v1 * wi)
        store(values, place[first + size + i], u1 * wi)
    store(values, diagonal[extra], -1.0 * eta2_ - shift)
    store(values, diagonal[extra + 1], eta2_ + shift)


@njit(nogil=True, error_model="numpy")
def product(lanes: Any, w: Array, eta2: Array, block: int, start: int, size: int, x: Array, out: Array) -> None:
    """The block's rows of out <- W^2 x = eta^2 (2 w (w'x) - J x)."""
    w0, x0, eta2_ = load(lanes, w, start), load(lanes, x, start), load(lanes, eta2, block)
    dot = 2.0 * (w0 * x0 + _dot(lanes, w, x, start, size))
    store(out, start, eta2_ * (w0 * dot - x0))
    for i in range(start + 1, start + size):
        store(out, i, eta2_ * (load(lanes, w, i) * dot + load(lanes, x, i)))


@njit(nogil=True, error_model="numpy")
def shift(
    lanes: Any, w: Array, eta2: Array, block: int, start: int, size: int, y: Array, ds: Array, dy: Array, target: Any,
    out: Array, work: Array,
) -> None:  # fmt: skip
    r"""The block's rows of out <- W (lambda + lambda \ ((W^-1 ds) o (W dy) - target e)), the combined step's shift.

    u o v = (u'v, u0 v1 + v0 u1) is the Jordan product, \ its inverse, e its identity; work has at least 2 size rows.
    """
    w0, y0, dy0, ds0 = load(lanes, w, start), load(lanes, y, start), load(lanes, dy, start), load(lanes, ds, start)
    wy, wdy, wds = _dot(lanes, w, y, start, size), _dot(lanes, w, dy, start, size), _dot(lanes, w, ds, start, size)
    eta = sqrt(load(lanes, eta2, block))
    inverse, part = 1.0 / eta, 1.0 / (1.0 + w0)
    lambda0, left0, right0 = eta * (w0 * y0 + wy), inverse * (w0 * ds0 - wds), eta * (w0 * dy0 + wdy)
    a, b, c = y0 + wy * part, wds * part - ds0, dy0 + wdy * part
    inner, tail, cross = broadcast(lanes, 0.0), broadcast(lanes, 0.0), broadcast(lanes, 0.0)
    for i in range(1, size):
        wi = load(lanes, w, start + i)
        lambda_i = eta * (load(lanes, y, start + i) + a * wi)
        left = inverse * (load(lanes, ds, start + i) + b * wi)
        right = eta * (load(lanes, dy, start + i) + c * wi)
        inner = inner + left * right
        tail = tail + lambda_i * lambda_i
        mixed = left0 * right + right0 * left
        cross = cross + lambda_i * mixed
        store(work, i, lambda_i)
        store(work, size + i, mixed)
    head = (lambda0 * (left0 * right0 + inner - target) - cross) / _det(lambda0, tail)
    along, over = broadcast(lanes, 0.0), 1.0 / lambda0
    for i in range(1, size):
        lambda_i = load(lanes, work, i)
        value = (load(lanes, work, size + i) - head * lambda_i) * over + lambda_i
        store(work, size + i, value)
        along = along + load(lanes, w, start + i) * value
    top = head + lambda0
    store(out, start, eta * (w0 * top + along))
    factor = top + along * part
    for i in range(1, size):
        store(out, start + i, eta * (load(lanes, work, size + i) + factor * load(lanes, w, start + i)))


@njit(nogil=True, error_model="numpy")
def shorten_step(lanes: Any, u: Array, du: Array, start: int, size: int, alpha: Any) -> Any:
    """The largest step up to alpha that keeps u + alpha du in the cone: the smallest positive root of u'Ju along it."""
    u0, du0 = load(lanes, u, start), load(lanes, du, start)
    u_tail, du_tail = _dot(lanes, u, u, start, size), _dot(lanes, du, du, start, size)
    du_norm = sqrt(du_tail)
    a, c = (du0 - du_norm) * (du0 + du_norm), _det(u0, u_tail)
    b = u0 * du0 - _dot(lanes, u, du, start, size)
    alpha = where(du0 < 0.0, minimum(-u0 / du0, alpha), alpha)
    inside = b * b - a * c
    root = sqrt(maximum(inside, 0.0))
    t = where(b < 0.0, root - b, -1.0 * root - b)
    crosses = (inside >= 0.0) & ((a < 0.0) | (b < 0.0))
    first, second = c / t, t / a
    alpha = where(crosses & (first >= 0.0), minimum(first, alpha), alpha)
    return where(crosses & (second >= 0.0), minimum(second, alpha), alpha)
