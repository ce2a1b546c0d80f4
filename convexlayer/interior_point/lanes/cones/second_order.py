"""Second-order cones in lanes: Nesterov-Todd scaling, products, corrections and step lengths.

For s, y in the interior, with J = diag(1, -1, ..., -1), the scaling point w (w'Jw = 1) and eta^4 = s'Js / y'Jy,

    W = eta (w0, w1'; w1, I + w1 w1' / (1 + w0)),   H = W^2 = eta^2 (2 w w' - J),   W y = W^-1 s = lambda.

``Scaling.factors`` stores w and eta^2. In K, H is dense for a small block and expanded for a large one: with two
additional unknowns it is eta^2 (diag(delta, 1, ...) + u u' - v v'), for wsq = w0^2 + |w1|^2 and

    delta = 1 / (2 wsq),   u = (u0, (2 w0 / u0) w1),   u0^2 = wsq - delta,
    v = (0, v1 w1),   v1^2 = 2 (2 + 1 / wsq) / (2 wsq - 1 / wsq).

Sources: Vandenberghe, The CVXOPT linear and quadratic cone program solvers (2010), section 5; Domahidi, Chu and Boyd,
ECOS: an SOCP solver for embedded systems (2013), for the expansion.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convexlayer.interior_point.lanes.cones.block import Shape, write_packed
from convexlayer.interior_point.lanes.kkt import REGULARISATION
from convexlayer.interior_point.lanes.layout import Block, Places, Point, Scaling
from convexlayer.program import Array, Cones
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import broadcast, load, maximum, minimum, sqrt, store, where

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

DENSE_ROWS = 4
"""Largest block, in rows, that is stored dense in the KKT matrix; larger ones are expanded (Clarabel's
SOC_NO_EXPANSION_MAX_SIZE)."""

DET_FLOOR = 1e-300
"""Lower bound of u'Ju, near the smallest normal double, so that its square root and quotients are finite on the
boundary."""


def shapes(cones: Cones) -> list[Shape]:
    """Every block; small ones are dense in K."""
    return [
        Shape(
            size, degree=1, storage="dense" if size <= DENSE_ROWS else "expanded",
            factor_rows=size + 1, scratch_rows=2 * size,
        )
        for size in cones.second_order
    ]  # fmt: skip


@inner_function
def set_central_point(v: int, block: Block, point: Point) -> None:
    """Set s and y of lane v to the identity (1, 0, ..., 0)."""
    for u in (point.s, point.y):
        for i in range(block.start, block.start + block.size):
            u[i, v] = 1.0 if i == block.start else 0.0


@inner_function
def margin(v: int, block: Block, u: Array) -> float:
    """u0 - norm(u1) of lane v, the smaller eigenvalue."""
    tail = 0.0
    for i in range(block.start + 1, block.start + block.size):
        tail += u[i, v] * u[i, v]
    return u[block.start, v] - np.sqrt(tail)


@inner_function
def add_identity(v: int, block: Block, amount: float, u: Array) -> None:
    """Add ``amount`` to u0 of lane v."""
    u[block.start, v] += amount


@inner_function
def _dot(lanes: Any, size: int, x: Array, x0: int, y: Array, y0: int) -> Any:
    """x1'y1 of blocks that begin in row x0 of x and row y0 of y."""
    total = broadcast(lanes, 0.0)
    for i in range(1, size):
        total = total + load(lanes, x, x0 + i) * load(lanes, y, y0 + i)
    return total


@inner_function
def _det(head: Any, tail: Any) -> Any:
    """u'Ju = (u0 - |u1|) (u0 + |u1|), without cancellation, from u0 and |u1|^2."""
    norm = sqrt(tail)
    return maximum((head - norm) * (head + norm), DET_FLOOR)


@inner_function
def update_scaling(lanes: Any, block: Block, point: Point, scaling: Scaling) -> None:
    """Compute the scaling point and eta^2 of a block, and H if it is stored dense."""
    s, y, start, size = point.s, point.y, block.start, block.size
    s0, y0 = load(lanes, s, start), load(lanes, y, start)
    s_size = sqrt(_det(s0, _dot(lanes, size, s, start, s, start)))
    y_size = sqrt(_det(y0, _dot(lanes, size, y, start, y, start)))
    dot = s0 * y0 + _dot(lanes, size, s, start, y, start)
    norm = 0.5 / sqrt(0.5 * (1.0 + dot / (s_size * y_size)))
    s_factor, y_factor, tail = norm / s_size, norm / y_size, broadcast(lanes, 0.0)
    w, w0 = scaling.factors, block.factor
    for i in range(1, size):
        wi = s_factor * load(lanes, s, start + i) - y_factor * load(lanes, y, start + i)
        store(w, w0 + i, wi)
        tail = tail + wi * wi
    store(w, w0, sqrt(1.0 + tail))
    store(w, w0 + size, s_size / y_size)
    if block.packed >= 0:
        _pack(lanes, block, scaling)


@inner_function
def _pack(lanes: Any, block: Block, scaling: Scaling) -> None:
    """Store H as a packed triangle."""
    w, w0, position = scaling.factors, block.factor, block.packed
    eta2 = load(lanes, w, w0 + block.size)
    for j in range(block.size):
        wj = 2.0 * load(lanes, w, w0 + j)
        for i in range(j):
            store(scaling.packed, position, eta2 * load(lanes, w, w0 + i) * wj)
            position += 1
        store(scaling.packed, position, eta2 * (load(lanes, w, w0 + j) * wj + (1.0 if j > 0 else -1.0)))
        position += 1


@inner_function
def write_scaling(lanes: Any, block: Block, places: Places, scaling: Scaling, values: Array) -> None:
    """Write -H minus the static regularisation into K, dense or expanded (see above)."""
    if block.packed >= 0:
        write_packed(lanes, block, places, scaling, values)
    else:
        _expand(lanes, block, places, scaling, values)


@inner_function
def _expand(lanes: Any, block: Block, places: Places, scaling: Scaling, values: Array) -> None:
    w, size, row = scaling.factors, block.size, places.n + block.start
    diagonal, place = places.diagonal, places.expanded
    v_place, u_place = block.expanded, block.expanded + size
    eta2, w0 = load(lanes, w, block.factor + size), load(lanes, w, block.factor)
    wsq = 2.0 * w0 * w0 - 1.0
    inverse = 1.0 / wsq
    u0 = sqrt(wsq - 0.5 * inverse)
    u1 = -2.0 * eta2 * w0 / u0
    v1 = -1.0 * eta2 * sqrt(2.0 * (2.0 + inverse) / (2.0 * wsq - inverse))
    store(values, diagonal[row], -0.5 * eta2 * inverse - REGULARISATION)
    store(values, place[v_place], broadcast(lanes, 0.0))
    store(values, place[u_place], -1.0 * eta2 * u0)
    for i in range(1, size):
        wi = load(lanes, w, block.factor + i)
        store(values, diagonal[row + i], -1.0 * eta2 - REGULARISATION)
        store(values, place[v_place + i], v1 * wi)
        store(values, place[u_place + i], u1 * wi)
    store(values, diagonal[block.extra], -1.0 * eta2 - REGULARISATION)
    store(values, diagonal[block.extra + 1], eta2 + REGULARISATION)


@inner_function
def multiply(lanes: Any, block: Block, scaling: Scaling, x: Array, out: Array) -> None:
    """The block's rows of out <- eta^2 (2 w (w'x) - J x)."""
    w, f0, start, size = scaling.factors, block.factor, block.start, block.size
    w0, x0, eta2 = load(lanes, w, f0), load(lanes, x, start), load(lanes, w, f0 + size)
    dot = 2.0 * (w0 * x0 + _dot(lanes, size, w, f0, x, start))
    store(out, start, eta2 * (w0 * dot - x0))
    for i in range(1, size):
        store(out, start + i, eta2 * (load(lanes, w, f0 + i) * dot + load(lanes, x, start + i)))


@inner_function
def combined_shift(
    lanes: Any, block: Block, scaling: Scaling, point: Point, direction: Point, sigma_mu: Array, shift: Array
) -> None:
    r"""The block's rows of shift <- W (lambda + lambda \ ((W^-1 ds) o (W dy) - sigma mu e)).

    u o v = (u'v, u0 v1 + v0 u1) is the Jordan product, \ its inverse, e its identity.
    """
    w, f0, start, size, work = scaling.factors, block.factor, block.start, block.size, scaling.work
    y, ds, dy = point.y, direction.s, direction.y
    w0, y0, dy0, ds0 = load(lanes, w, f0), load(lanes, y, start), load(lanes, dy, start), load(lanes, ds, start)
    wy = _dot(lanes, size, w, f0, y, start)
    wdy, wds = _dot(lanes, size, w, f0, dy, start), _dot(lanes, size, w, f0, ds, start)
    eta = sqrt(load(lanes, w, f0 + size))
    inverse, part = 1.0 / eta, 1.0 / (1.0 + w0)
    lambda0, left0, right0 = eta * (w0 * y0 + wy), inverse * (w0 * ds0 - wds), eta * (w0 * dy0 + wdy)
    a, b, c = y0 + wy * part, wds * part - ds0, dy0 + wdy * part
    inner, tail, cross = broadcast(lanes, 0.0), broadcast(lanes, 0.0), broadcast(lanes, 0.0)
    for i in range(1, size):
        wi = load(lanes, w, f0 + i)
        lambda_i = eta * (load(lanes, y, start + i) + a * wi)
        left = inverse * (load(lanes, ds, start + i) + b * wi)
        right = eta * (load(lanes, dy, start + i) + c * wi)
        inner = inner + left * right
        tail = tail + lambda_i * lambda_i
        mixed = left0 * right + right0 * left
        cross = cross + lambda_i * mixed
        store(work, i, lambda_i)
        store(work, size + i, mixed)
    head = (lambda0 * (left0 * right0 + inner - load(lanes, sigma_mu, 0)) - cross) / _det(lambda0, tail)
    along, over = broadcast(lanes, 0.0), 1.0 / lambda0
    for i in range(1, size):
        lambda_i = load(lanes, work, i)
        value = (load(lanes, work, size + i) - head * lambda_i) * over + lambda_i
        store(work, size + i, value)
        along = along + load(lanes, w, f0 + i) * value
    top = head + lambda0
    store(shift, start, eta * (w0 * top + along))
    factor = top + along * part
    for i in range(1, size):
        store(shift, start + i, eta * (load(lanes, work, size + i) + factor * load(lanes, w, f0 + i)))


@inner_function
def shorten_step(lanes: Any, block: Block, scaling: Scaling, point: Point, direction: Point, alpha: Array) -> None:
    """Reduce alpha (V,) to the longest step that keeps s + alpha ds and y + alpha dy in the cone."""
    longest = load(lanes, alpha, 0)
    longest = _longest_step(lanes, block, point.s, direction.s, longest)
    store(alpha, 0, _longest_step(lanes, block, point.y, direction.y, longest))


@inner_function
def _longest_step(lanes: Any, block: Block, u: Array, du: Array, alpha: Any) -> Any:
    """The largest step up to alpha that keeps u + alpha du in the cone: the smallest positive root of u'Ju along it."""
    start, size = block.start, block.size
    u0, du0 = load(lanes, u, start), load(lanes, du, start)
    u_tail, du_tail = _dot(lanes, size, u, start, u, start), _dot(lanes, size, du, start, du, start)
    du_norm = sqrt(du_tail)
    a, c = (du0 - du_norm) * (du0 + du_norm), _det(u0, u_tail)
    b = u0 * du0 - _dot(lanes, size, u, start, du, start)
    alpha = where(du0 < 0.0, minimum(-u0 / du0, alpha), alpha)
    inside = b * b - a * c
    root = sqrt(maximum(inside, 0.0))
    t = where(b < 0.0, root - b, -1.0 * root - b)
    crosses = (inside >= 0.0) & ((a < 0.0) | (b < 0.0))
    first, second = c / t, t / a
    alpha = where(crosses & (first >= 0.0), minimum(first, alpha), alpha)
    return where(crosses & (second >= 0.0), minimum(second, alpha), alpha)
