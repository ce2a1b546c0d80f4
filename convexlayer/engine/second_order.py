"""Second-order cones in lanes: Nesterov-Todd scaling, products, corrections and step lengths.

For s, y in the interior, with J = diag(1, -1, ..., -1) and the scaling point w (w'Jw = 1), eta = (s'Js / y'Jy)^(1/4),

    W = eta (w0, w1'; w1, I + w1 w1' / (1 + w0)),   W^2 = eta^2 (2 w w' - J),   W y = W^-1 s = lambda.

Reference: Vandenberghe, The CVXOPT linear and quadratic cone program solvers (2010), section 5; the expansion of W^2
as a diagonal and two rank-one terms follows Domahidi, Chu and Boyd (2013).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from convexlayer.program import Array, IndexArray

__all__ = [
    "second_order_expand",
    "second_order_margin",
    "second_order_pack",
    "second_order_product",
    "second_order_scale",
    "second_order_shift",
    "second_order_step",
]

TINY = 1e-300


@njit(nogil=True, error_model="numpy")
def second_order_margin(u: Array, start: int, size: int, v: int) -> float:
    """u0 - norm(u1) of one lane's block."""
    tail = 0.0
    for i in range(start + 1, start + size):
        tail += u[i, v] * u[i, v]
    return u[start, v] - np.sqrt(tail)


@njit(nogil=True, error_model="numpy")
def second_order_scale(lanes, s: Array, y: Array, start: int, size: int, w: Array, eta2: Array) -> None:  # type: ignore[no-untyped-def]
    """The scaling point of a block, into its rows of w, and eta^2, (V,)."""
    V = len(lanes)
    s_tail, y_tail, dot = np.zeros(V), np.zeros(V), np.zeros(V)
    for i in range(start + 1, start + size):
        for v in range(V):
            s_tail[v] += s[i, v] * s[i, v]
            y_tail[v] += y[i, v] * y[i, v]
            dot[v] += s[i, v] * y[i, v]
    s_unit, y_unit, norm = np.empty(V), np.empty(V), np.empty(V)
    for v in range(V):
        s0, y0, s1, y1 = s[start, v], y[start, v], np.sqrt(s_tail[v]), np.sqrt(y_tail[v])
        s_size = np.sqrt(max((s0 - s1) * (s0 + s1), TINY))
        y_size = np.sqrt(max((y0 - y1) * (y0 + y1), TINY))
        s_unit[v], y_unit[v] = 1.0 / s_size, 1.0 / y_size
        gamma = np.sqrt(0.5 * (1.0 + (s0 * y0 + dot[v]) * s_unit[v] * y_unit[v]))
        norm[v] = 0.5 / gamma
        eta2[v] = s_size * y_unit[v]
    tail = np.zeros(V)
    for i in range(start + 1, start + size):
        for v in range(V):
            w[i, v] = (s[i, v] * s_unit[v] - y[i, v] * y_unit[v]) * norm[v]
            tail[v] += w[i, v] * w[i, v]
    for v in range(V):
        w[start, v] = np.sqrt(1.0 + tail[v])


@njit(nogil=True, error_model="numpy")
def second_order_pack(lanes, w: Array, eta2: Array, start: int, size: int, packed: Array, offset: int) -> None:  # type: ignore[no-untyped-def]
    """W^2 = eta^2 (2 w w' - J) of a block, as a packed upper triangle."""
    V = len(lanes)
    for j in range(size):
        for i in range(j + 1):
            for v in range(V):
                value = 2.0 * w[start + i, v] * w[start + j, v]
                if i == j:
                    value += 1.0 if i > 0 else -1.0
                packed[offset, v] = eta2[v] * value
            offset += 1


@njit(nogil=True, error_model="numpy")
def second_order_expand(  # type: ignore[no-untyped-def]
    lanes, w: Array, eta2: Array, start: int, size: int, diagonal: IndexArray, extra: int, place: IndexArray,
    first: int, row: int, values: Array, shift: float,
) -> None:  # fmt: skip
    """Write -W^2 = -eta^2 (diag(delta, 1, ...) + u u' - v v') of a block into K, in its two unknowns more.

    With wsq = w0^2 + |w1|^2: delta = 1 / (2 wsq), u = (u0, (2 w0 / u0) w1), u0^2 = wsq - delta,
    v = (0, v1 w1), v1^2 = 2 (2 + 1 / wsq) / (2 wsq - 1 / wsq).
    """
    V = len(lanes)
    for v in range(V):
        wsq = 2.0 * w[start, v] * w[start, v] - 1.0
        delta = 0.5 / wsq
        u0 = np.sqrt(wsq - delta)
        u1 = 2.0 * w[start, v] / u0
        v1 = np.sqrt(2.0 * (2.0 + 1.0 / wsq) / (2.0 * wsq - 1.0 / wsq))
        values[diagonal[row], v] = -eta2[v] * delta - shift
        values[place[first], v] = 0.0
        values[place[first + size], v] = -eta2[v] * u0
        for i in range(1, size):
            values[diagonal[row + i], v] = -eta2[v] - shift
            values[place[first + i], v] = -eta2[v] * v1 * w[start + i, v]
            values[place[first + size + i], v] = -eta2[v] * u1 * w[start + i, v]
        values[diagonal[extra], v] = -eta2[v] - shift
        values[diagonal[extra + 1], v] = eta2[v] + shift


@njit(nogil=True, error_model="numpy")
def second_order_product(lanes, w: Array, eta2: Array, start: int, size: int, x: Array, out: Array) -> None:  # type: ignore[no-untyped-def]
    """W^2 x of a block: eta^2 (2 w (w'x) - J x)."""
    V = len(lanes)
    dot = np.zeros(V)
    for i in range(start, start + size):
        for v in range(V):
            dot[v] += w[i, v] * x[i, v]
    for v in range(V):
        out[start, v] = eta2[v] * (2.0 * w[start, v] * dot[v] - x[start, v])
    for i in range(start + 1, start + size):
        for v in range(V):
            out[i, v] = eta2[v] * (2.0 * w[i, v] * dot[v] + x[i, v])


@njit(nogil=True, error_model="numpy")
def second_order_shift(  # type: ignore[no-untyped-def]
    lanes, w: Array, eta2: Array, start: int, size: int, y: Array, ds: Array, dy: Array, target: Array, shift: Array
) -> None:
    """Combined shift W (lambda \\ (lambda o lambda + (W^-1 ds) o (W dy) - target e)), into the block's rows of shift."""
    V = len(lanes)
    scaled, left, right = np.empty((size, V)), np.empty((size, V)), np.empty((size, V))
    dots = np.zeros((3, V))
    for i in range(1, size):
        for v in range(V):
            wi = w[start + i, v]
            dots[0, v] += wi * y[start + i, v]
            dots[1, v] += wi * dy[start + i, v]
            dots[2, v] += wi * ds[start + i, v]
    eta, inverse = np.empty(V), np.empty(V)
    a, b, c, head, dot, tail = np.empty(V), np.empty(V), np.empty(V), np.empty(V), np.zeros(V), np.zeros(V)
    for v in range(V):
        w0 = w[start, v]
        eta[v] = np.sqrt(eta2[v])
        inverse[v] = 1.0 / eta[v]
        y0, dy0, ds0 = y[start, v], dy[start, v], ds[start, v]
        scaled[0, v] = eta[v] * (w0 * y0 + dots[0, v])
        left[0, v] = inverse[v] * (w0 * ds0 - dots[2, v])
        right[0, v] = eta[v] * (w0 * dy0 + dots[1, v])
        a[v] = y0 + dots[0, v] / (1.0 + w0)
        b[v] = dots[2, v] / (1.0 + w0) - ds0
        c[v] = dy0 + dots[1, v] / (1.0 + w0)
    for i in range(1, size):
        for v in range(V):
            wi = w[start + i, v]
            scaled[i, v] = eta[v] * (y[start + i, v] + a[v] * wi)
            left[i, v] = inverse[v] * (ds[start + i, v] + b[v] * wi)
            right[i, v] = eta[v] * (dy[start + i, v] + c[v] * wi)
            dot[v] += left[i, v] * right[i, v]
            tail[v] += scaled[i, v] * scaled[i, v]
    # the division lambda \ (lambda o lambda + r) is lambda + lambda \ r, with r = left o right - target e
    cross = np.zeros(V)
    for i in range(1, size):
        for v in range(V):
            left[i, v] = left[0, v] * right[i, v] + right[0, v] * left[i, v]
            cross[v] += scaled[i, v] * left[i, v]
    for v in range(V):
        r0 = left[0, v] * right[0, v] + dot[v] - target[v]
        norm = np.sqrt(tail[v])
        det = max((scaled[0, v] - norm) * (scaled[0, v] + norm), TINY)
        head[v] = (scaled[0, v] * r0 - cross[v]) / det
    along = np.zeros(V)
    for i in range(1, size):
        for v in range(V):
            left[i, v] = (left[i, v] - head[v] * scaled[i, v]) / scaled[0, v] + scaled[i, v]
            along[v] += w[start + i, v] * left[i, v]
    for v in range(V):
        top = head[v] + scaled[0, v]
        shift[start, v] = eta[v] * (w[start, v] * top + along[v])
        a[v] = top + along[v] / (1.0 + w[start, v])
    for i in range(1, size):
        for v in range(V):
            shift[start + i, v] = eta[v] * (left[i, v] + a[v] * w[start + i, v])


@njit(nogil=True, error_model="numpy")
def second_order_step(lanes, u: Array, du: Array, start: int, size: int, alpha: Array) -> None:  # type: ignore[no-untyped-def]
    """Reduce alpha to the largest step that keeps u + alpha du in the cone: the least positive root of its det."""
    V = len(lanes)
    u_tail, du_tail, cross = np.zeros(V), np.zeros(V), np.zeros(V)
    for i in range(start + 1, start + size):
        for v in range(V):
            u_tail[v] += u[i, v] * u[i, v]
            du_tail[v] += du[i, v] * du[i, v]
            cross[v] += u[i, v] * du[i, v]
    for v in range(V):
        u0, du0, u1, du1 = u[start, v], du[start, v], np.sqrt(u_tail[v]), np.sqrt(du_tail[v])
        a = (du0 - du1) * (du0 + du1)
        b = u0 * du0 - cross[v]
        c = max((u0 - u1) * (u0 + u1), 0.0)
        limit = -u0 / du0 if du0 < 0.0 else alpha[v]
        inside = b * b - a * c
        if inside >= 0.0 and not (a >= 0.0 and b >= 0.0):
            t = -(b + np.copysign(np.sqrt(inside), b))
            first, second = c / t, t / a
            limit = min(limit, first) if first >= 0.0 else limit
            limit = min(limit, second) if second >= 0.0 else limit
        alpha[v] = min(alpha[v], limit)
