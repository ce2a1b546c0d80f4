"""Power blocks, with the formulas of ``cones.power``; the region, the scale and the logarithms of y and s are saved."""

from __future__ import annotations

import math

import numpy as np

from convexlayer.cones.kernels.block import NEEDS_DISTANCE, Block, BlocksDerivative, Floats
from convexlayer.cones.power import BRACKET_SLOPE, BRACKET_START, CENTRE, LOG_ZERO, MAX_LOG_RATIO, RADIUS, TINY
from convexlayer.cones.rays import DEPTH_STEPS
from convexlayer.cones.roots import MAX_ITERATIONS, STEP_ABSTOL, STEP_RELTOL
from convexlayer.runtime.inner_function import inner_function

__all__ = ["derive", "margin", "project", "saved_size"]

CURVED, DUAL, POLAR = 0.0, 1.0, 2.0
"""Region of a point: outside the others, in K*, or in -K."""


def saved_size(size: int, order: int) -> int:
    """The region, the scale, and the logarithms of abs(y) and abs(s)."""
    return 8


@inner_function
def project(block: Block, w: Floats, y: Floats, saved: Floats) -> None:
    """The projection by region; NaN if w is not finite."""
    k, out = block.start, saved[block.saved :]
    w1, w2, w3 = w[k], w[k + 1], w[k + 2]
    if not math.isfinite(w1 + w2 + w3):
        out[:8] = math.nan
        out[0] = CURVED
        y[k], y[k + 1], y[k + 2] = math.nan, math.nan, math.nan
        return
    alpha, beta = block.exponent, 1.0 - block.exponent
    scale = max(abs(w1), max(abs(w2), abs(w3)))
    scale = scale if scale > 0.0 else 1.0
    v1, v2, z = -w1 / scale, -w2 / scale, abs(w3) / scale
    log_z = np.log(max(z, TINY)) if z > 0.0 else LOG_ZERO
    log_v1, log_v2 = np.log(max(abs(v1), TINY)), np.log(max(abs(v2), TINY))
    primal = alpha * log_v1 + beta * log_v2
    dual = alpha * (log_v1 - np.log(alpha)) + beta * (log_v2 - np.log(beta))
    out[1] = scale
    if v1 >= 0.0 and v2 >= 0.0 and (z == 0.0 or (v1 > 0.0 and v2 > 0.0 and primal >= log_z)):
        out[0] = POLAR
        y[k], y[k + 1], y[k + 2] = 0.0, 0.0, 0.0
    elif v1 <= 0.0 and v2 <= 0.0 and (z == 0.0 or (v1 < 0.0 and v2 < 0.0 and dual >= log_z)):
        out[0] = DUAL
        y[k], y[k + 1], y[k + 2] = w1, w2, w3
    else:
        out[0] = CURVED
        y1, y2, y3 = _curved(alpha, beta, v1, v2, z, log_z, out)
        y[k], y[k + 1] = y1 * scale, y2 * scale
        y[k + 2] = math.copysign(1.0, w3) * y3 * scale if w3 != 0.0 else 0.0


@inner_function
def _curved(
    alpha: float, beta: float, v1: float, v2: float, z: float, log_z: float, out: Floats
) -> tuple[float, float, float]:
    """y1, y2 and abs(y3) in the curved region, and the logarithms of abs(y) and abs(s) in ``out``."""
    log_alpha, log_beta = np.log(alpha), np.log(beta)
    high = (BRACKET_START - BRACKET_SLOPE * log_z) / min(alpha, beta)
    low, x = -high, 0.0
    for _ in range(MAX_ITERATIONS):
        log_r, log_g = _shares(x, log_z)
        product1, product2 = log_alpha + (log_r + log_g), log_beta + (log_r + log_g)
        large1, large2 = _log_larger(v1, product1), _log_larger(v2, product2)
        log_s1 = large1 if v1 >= 0.0 else product1 - large1
        log_s2 = large2 if v2 >= 0.0 else product2 - large2
        ratio1, ratio2 = np.exp(product1 - 2.0 * large1), np.exp(product2 - 2.0 * large2)
        share = alpha * (ratio1 if v1 >= 0.0 else 1.0) / (1.0 + ratio1)
        share += beta * (ratio2 if v2 >= 0.0 else 1.0) / (1.0 + ratio2)
        coshare = alpha * (1.0 if v1 >= 0.0 else ratio1) / (1.0 + ratio1)
        coshare += beta * (1.0 if v2 >= 0.0 else ratio2) / (1.0 + ratio2)
        value = log_r - (alpha * log_s1 + beta * log_s2)
        newton = x - value / (np.exp(log_g - log_z) * coshare + np.exp(log_r - log_z) * share + TINY)
        if value < 0.0:
            low = x
        elif value > 0.0:
            high = x
        if not abs(newton - x) > STEP_ABSTOL + STEP_RELTOL * abs(x):
            x = newton
            break
        x = 0.5 * (low + high) if newton <= low or newton >= high else newton
    log_r, log_g = _shares(x, log_z)
    product1, product2 = log_alpha + (log_r + log_g), log_beta + (log_r + log_g)
    large1, large2 = _log_larger(v1, product1), _log_larger(v2, product2)
    small1, small2 = product1 - large1, product2 - large2
    out[2], out[5] = (small1, large1) if v1 >= 0.0 else (large1, small1)
    out[3], out[6] = (small2, large2) if v2 >= 0.0 else (large2, small2)
    out[4], out[7] = log_g, log_r
    decay = np.exp(-abs(x))
    product = z * z * decay / (1.0 + decay) ** 2
    return _smaller(v1, alpha * product), _smaller(v2, beta * product), np.exp(log_g)


@inner_function
def _shares(x: float, log_z: float) -> tuple[float, float]:
    """Logarithms of r and g."""
    softplus = np.log1p(np.exp(-abs(x)))
    return log_z + min(x, 0.0) - softplus, log_z - max(x, 0.0) - softplus


@inner_function
def _log_larger(v: float, log_product: float) -> float:
    """Logarithm of the larger of s_i and y_i, from that of their product."""
    large = 0.5 * (abs(v) + math.sqrt(v * v + 4.0 * np.exp(log_product) + TINY))
    return max(np.log(large), 0.5 * log_product)


@inner_function
def _smaller(v: float, product: float) -> float:
    """y_i from the product of s_i and y_i."""
    large = 0.5 * (abs(v) + math.sqrt(v * v + 4.0 * product + TINY))
    return product / large if v >= 0.0 else large


@inner_function
def derive(block: Block, w: Floats, y: Floats, saved: Floats, derivative: BlocksDerivative) -> None:
    """Q = (y / norm y, s / norm s, their cross product), d = (1, 0, delta) in the curved region."""
    k, region = block.start, saved[block.saved :]
    d, complement, Q = derivative.d, derivative.complement, derivative.basis[block.basis :]
    if region[0] != CURVED:
        one = region[0] == DUAL
        for i in range(3):
            for j in range(3):
                Q[3 * i + j] = 1.0 if i == j else 0.0
            d[k + i], complement[k + i] = (1.0, 0.0) if one else (0.0, 1.0)
        return
    sign = math.copysign(1.0, w[k + 2])
    y1, y2, y3, log_y = _unit(region[2], region[3], region[4], sign)
    s1, s2, s3, log_s = _unit(region[5], region[6], region[7], -sign)
    along = y1 * s1 + y2 * s2 + y3 * s3
    s1, s2, s3 = s1 - y1 * along, s2 - y2 * along, s3 - y3 * along
    size = math.sqrt(s1 * s1 + s2 * s2 + s3 * s3)
    s1, s2, s3 = s1 / size, s2 / size, s3 / size
    alpha, beta = block.exponent, 1.0 - block.exponent
    log_ratio = 2.0 * (region[5] + region[6] + log_y - log_s) - (np.log(alpha) + np.log(beta))
    log_ratio = log_ratio - 3.0 * region[4] - region[7]
    log_ratio = min(max(log_ratio, -MAX_LOG_RATIO), MAX_LOG_RATIO)
    Q[0], Q[3], Q[6] = y1, y2, y3
    Q[1], Q[4], Q[7] = s1, s2, s3
    Q[2], Q[5], Q[8] = y2 * s3 - y3 * s2, y3 * s1 - y1 * s3, y1 * s2 - y2 * s1
    d[k], d[k + 1], d[k + 2] = 1.0, 0.0, 1.0 / (1.0 + np.exp(log_ratio))
    complement[k], complement[k + 1], complement[k + 2] = 0.0, 1.0, 1.0 / (1.0 + np.exp(-log_ratio))


@inner_function
def _unit(log1: float, log2: float, log3: float, sign: float) -> tuple[float, float, float, float]:
    """The unit vector along exp(logs), with the sign of its third entry, and the logarithm of the norm."""
    largest = max(log1, max(log2, log3))
    x1, x2, x3 = np.exp(log1 - largest), np.exp(log2 - largest), np.exp(log3 - largest)
    norm = math.sqrt(x1 * x1 + x2 * x2 + x3 * x3)
    return x1 / norm, x2 / norm, x3 * sign / norm, largest + np.log(norm)


@inner_function
def margin(block: Block, w: Floats, y: Floats, saved: Floats) -> float:
    """Distance to the boundaries of K* and -K."""
    k, code = block.start, saved[block.saved]
    w1, w2, w3 = w[k], w[k + 1], w[k + 2]
    if code == CURVED:
        y_size = math.sqrt(y[k] ** 2 + y[k + 1] ** 2 + y[k + 2] ** 2)
        s_size = math.sqrt((y[k] - w1) ** 2 + (y[k + 1] - w2) ** 2 + (y[k + 2] - w3) ** 2)
        return min(y_size, s_size)
    alpha, beta = block.exponent, 1.0 - block.exponent
    offset = alpha * np.log(alpha) + beta * np.log(beta) if code == DUAL else 0.0
    x1, x2, x3 = abs(w1), abs(w2), abs(w3)
    length, share = math.sqrt(x1 * x1 + x2 * x2 + x3 * x3), 1.0
    for _ in range(DEPTH_STEPS):
        step = length * share
        p1, p2, p3 = x1 - step * CENTRE[0], x2 - step * CENTRE[1], abs(x3 - step * CENTRE[2])
        if p1 > 0.0 and p2 > 0.0 and alpha * np.log(p1) + beta * np.log(p2) - offset >= np.log(max(p3, TINY)):
            return RADIUS * step
        share *= 0.5
    return NEEDS_DISTANCE
