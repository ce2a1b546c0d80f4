"""Exponential blocks, with the formulas of ``cones.exponential``; the region and (a, b, rho, y3) are saved."""

from __future__ import annotations

import math

import numpy as np

from convexlayer.cones.exponential import BRACKET, CENTRE, FACE_RATIO, MIN_RATIO, RADIUS
from convexlayer.cones.kernels.block import NEEDS_DISTANCE, Block, BlocksDerivative, Floats
from convexlayer.cones.rays import DEPTH_STEPS
from convexlayer.cones.roots import MAX_ITERATIONS, STEP_ABSTOL, STEP_RELTOL, UNDEFINED_VALUE
from convexlayer.runtime.inner_function import inner_function

__all__ = ["derive", "margin", "project", "saved_size"]

CURVED, DUAL, POLAR, FACE = 0.0, 1.0, 2.0, 3.0
"""Region of a point: outside the others, in K*, in -K, or in the face region."""


def saved_size(size: int, order: int) -> int:
    """The region, a, b, rho and y3."""
    return 5


@inner_function
def project(block: Block, w: Floats, y: Floats, saved: Floats) -> None:
    """The projection by region; a, b, rho and y3 are placeholders outside the curved region."""
    k, out = block.start, saved[block.saved :]
    v1, v2, v3 = -w[k], -w[k + 1], -w[k + 2]
    mirrored = v2 > v1
    p, other = (v2, v1) if mirrored else (v1, v2)
    face = p <= FACE_RATIO * max(abs(v1), max(abs(v2), abs(v3)))
    r, z = 0.0, 0.0
    if face:
        p = 1.0
    else:
        r = other / p
        z = (-math.e * v3 if mirrored else v3) / p
    kappa = math.e * math.e if mirrored else 1.0
    lead_zero = z + kappa * np.exp(r - 1.0) <= 0.0
    bounded = max(r, MIN_RATIO)
    other_zero = r > 0.0 and z >= bounded * np.exp(1.0 / bounded) and not lead_zero
    if lead_zero or other_zero:
        r, z = 0.0, 0.0
    t = np.exp(_log_t(r, z, kappa))
    c = 1.0 - r + r * r
    N = c + (1.0 - 2.0 * r) * t + t * t
    lead, rest = p * t / N, p * max(c - r * t, 0.0) / N
    shifted = 1.0 - r + t
    small = rest * np.exp(-shifted)
    a, b = (lead, rest) if mirrored else (rest, lead)
    rho = r - t if mirrored else shifted
    y3 = max(math.e * small - v3, 0.0) if mirrored else small
    out[1], out[2], out[3], out[4] = a, b, rho, y3
    if face:
        out[0] = FACE
        y[k], y[k + 1], y[k + 2] = 0.0, max(w[k + 1], 0.0), max(w[k + 2], 0.0)
    elif (other_zero and mirrored) or (lead_zero and not mirrored):
        out[0] = DUAL
        y[k], y[k + 1], y[k + 2] = w[k], w[k + 1], w[k + 2]
    elif lead_zero or other_zero:
        out[0] = POLAR
        y[k], y[k + 1], y[k + 2] = 0.0, 0.0, 0.0
    else:
        out[0] = CURVED
        y[k], y[k + 1], y[k + 2] = -a, a * (rho - 1.0), y3


@inner_function
def _log_t(r: float, z: float, kappa: float) -> float:
    """log t at the root, by safeguarded Newton's method (see ``roots``)."""
    base, slope = 1.0 - r, 1.0 - 2.0 * r
    c = base + r * r
    start = z + kappa * np.exp(-base)
    first_order = np.log(start * c) - base
    guess = np.log(first_order) if first_order > 1.0 else first_order
    bound = 2.0 * (np.log(start) - base + 2.0 * np.log(1.0 + base) + 1.0)
    high = np.log(max(bound, 1.0))
    if r > 0.0:
        high = min(high, np.log(c / r))
    low = guess - BRACKET
    x = min(guess, 0.5 * (low + high))
    for _ in range(MAX_ITERATIONS):
        t = np.exp(x)
        N, dN = c + slope * t + t * t, slope + 2.0 * t
        other, decay = (c - r * t) / N, kappa * np.exp(-(base + t))
        right = z + other * decay
        value = x + base + t - np.log(N * right) if right > 0.0 else UNDEFINED_VALUE
        right = right if right > 0.0 else 1.0
        newton = x - value / (1.0 + t * (1.0 - dN / N + decay * ((r + other * dN) / N + other) / right))
        if value < 0.0:
            low = x
        elif value > 0.0:
            high = x
        if not abs(newton - x) > STEP_ABSTOL + STEP_RELTOL * abs(x):
            return newton
        x = 0.5 * (low + high) if newton <= low or newton >= high else newton
    return x


@inner_function
def derive(block: Block, w: Floats, y: Floats, saved: Floats, derivative: BlocksDerivative) -> None:
    """Q = (y / norm y, s / norm s, their cross product), d = (1, 0, delta) in the curved region."""
    k, region = block.start, saved[block.saved :]
    d, complement, Q = derivative.d, derivative.complement, derivative.basis[block.basis :]
    code = region[0]
    if code != CURVED:
        for i in range(3):
            for j in range(3):
                Q[3 * i + j] = 1.0 if i == j else 0.0
            one = code == DUAL or (code == FACE and i > 0 and w[k + i] > 0.0)
            d[k + i], complement[k + i] = (1.0, 0.0) if one else (0.0, 1.0)
        return
    a, b, rho = region[1], region[2], region[3]
    decay = np.exp(-abs(rho))
    grow_y, grow_s = (1.0, decay) if rho > 0.0 else (decay, 1.0)
    y1, y2, y3 = -grow_y, (rho - 1.0) * grow_y, grow_s
    s1, s2, s3 = rho * grow_s, grow_s, grow_y
    y_square, s_square = y1 * y1 + y2 * y2 + y3 * y3, s1 * s1 + s2 * s2 + s3 * s3
    y_size, s_size = math.sqrt(y_square), math.sqrt(s_square)
    y1, y2, y3 = y1 / y_size, y2 / y_size, y3 / y_size
    s1, s2, s3 = s1 / s_size, s2 / s_size, s3 / s_size
    Q[0], Q[3], Q[6] = y1, y2, y3
    Q[1], Q[4], Q[7] = s1, s2, s3
    Q[2], Q[5], Q[8] = y2 * s3 - y3 * s2, y3 * s1 - y1 * s3, y1 * s2 - y2 * s1
    weight = b * (y_square / s_square)
    total = a + weight
    total = total if total > 0.0 else 1.0
    d[k], d[k + 1], d[k + 2] = 1.0, 0.0, a / total
    complement[k], complement[k + 1], complement[k + 2] = 0.0, 1.0, weight / total


@inner_function
def margin(block: Block, w: Floats, y: Floats, saved: Floats) -> float:
    """Distance from the boundaries of K*, of -K and of the pieces w3 < 0 and w3 > 0 of the face region."""
    k, code = block.start, saved[block.saved]
    w1, w2, w3 = w[k], w[k + 1], w[k + 2]
    if code == FACE:
        return max(min(min(w1, w2), abs(w3)), 0.0)
    if code == CURVED:
        y_size = math.sqrt(y[k] ** 2 + y[k + 1] ** 2 + y[k + 2] ** 2)
        s_size = math.sqrt((y[k] - w1) ** 2 + (y[k + 1] - w2) ** 2 + (y[k + 2] - w3) ** 2)
        to_face = math.sqrt(min(w1, 0.0) ** 2 + min(w2, 0.0) ** 2)
        return min(min(y_size, s_size), to_face)
    dual = code == DUAL
    x1, x2, x3 = (w1, w2, w3) if dual else (-w1, -w2, -w3)
    length, share = math.sqrt(x1 * x1 + x2 * x2 + x3 * x3), 1.0
    for _ in range(DEPTH_STEPS):
        step = length * share
        if _is_inside(x1 - step * CENTRE[0], x2 - step * CENTRE[1], x3 - step * CENTRE[2], dual):
            return RADIUS * step
        share *= 0.5
    return NEEDS_DISTANCE


@inner_function
def _is_inside(x1: float, x2: float, x3: float, dual: bool) -> bool:
    """Whether x is in K*, where ``dual``, or in K."""
    head, scale = (x1 - x2, -x1) if dual else (x1, x2)
    return scale > 0.0 and x3 > 0.0 and head <= scale * (np.log(x3) - np.log(scale))
