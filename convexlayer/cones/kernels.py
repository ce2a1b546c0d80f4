"""Kernels of the exponential and semidefinite cones, with the formulas of ``exponential`` and ``psd``."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from convexlayer.cones.exponential import BRACKET, FACE_RATIO, MIN_RATIO
from convexlayer.cones.roots import MAX_ITERATIONS, STEP_ABSTOL, STEP_RELTOL, UNDEFINED_VALUE
from convexlayer.runtime.cached_kernel import cached_kernel

__all__ = [
    "CURVED",
    "DUAL",
    "FACE",
    "POLAR",
    "exponential_derivative",
    "exponential_point",
    "psd_derivative",
    "psd_point",
    "warm_up",
]

Floats = NDArray[np.float64]
Codes = NDArray[np.int8]

CURVED, DUAL, POLAR, FACE = 0, 1, 2, 3
"""Region of a point: outside the others, in K*, in -K, or in the face region of the exponential cone."""


@cached_kernel
def exponential_point(w: Floats, code: Codes, region: Floats, y: Floats, first: int, last: int) -> None:
    """Regions of w (N, 3), parameters (a, b, rho, y3) of the curved region (placeholders elsewhere), projections."""
    for k in range(first, last):
        v1, v2, v3 = -w[k, 0], -w[k, 1], -w[k, 2]
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
        region[k, 0], region[k, 1], region[k, 2], region[k, 3] = a, b, rho, y3
        if face:
            code[k] = FACE
            y[k, 0], y[k, 1], y[k, 2] = 0.0, max(w[k, 1], 0.0), max(w[k, 2], 0.0)
        elif (other_zero and mirrored) or (lead_zero and not mirrored):
            code[k] = DUAL
            y[k] = w[k]
        elif lead_zero or other_zero:
            code[k] = POLAR
            y[k] = 0.0
        else:
            code[k] = CURVED
            y[k, 0], y[k, 1], y[k, 2] = -a, a * (rho - 1.0), y3


@njit(nogil=True, error_model="numpy")
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


@cached_kernel
def exponential_derivative(
    w: Floats,
    code: Codes,
    region: Floats,
    y: Floats,
    Q: Floats,
    d: Floats,
    complement: Floats,
    margin: Floats,
    first: int,
    last: int,
) -> None:
    """Derivative of the projection at points with known region and projection y.

    Eigenbases Q (N, 3, 3), eigenvalues d (N, 3), 1 - d, and margins (N,), which are set to infinity in K* and -K.
    """
    for k in range(first, last):
        w1, w2, w3 = w[k, 0], w[k, 1], w[k, 2]
        margin[k] = math.inf
        if code[k] == CURVED:
            y_size = math.sqrt(y[k, 0] ** 2 + y[k, 1] ** 2 + y[k, 2] ** 2)
            s_size = math.sqrt((y[k, 0] - w1) ** 2 + (y[k, 1] - w2) ** 2 + (y[k, 2] - w3) ** 2)
            to_face = math.sqrt(min(w1, 0.0) ** 2 + min(w2, 0.0) ** 2)
            margin[k] = min(min(y_size, s_size), to_face)
        elif code[k] == FACE:
            margin[k] = max(min(min(w1, w2), abs(w3)), 0.0)
        if code[k] != CURVED:
            Q[k] = 0.0
            for i in range(3):
                Q[k, i, i] = 1.0
                one = code[k] == DUAL or (code[k] == FACE and i > 0 and w[k, i] > 0.0)
                d[k, i], complement[k, i] = (1.0, 0.0) if one else (0.0, 1.0)
            continue
        a, b, rho = region[k, 0], region[k, 1], region[k, 2]
        decay = np.exp(-abs(rho))
        grow_y, grow_s = (1.0, decay) if rho > 0.0 else (decay, 1.0)
        y1, y2, y3 = -grow_y, (rho - 1.0) * grow_y, grow_s
        s1, s2, s3 = rho * grow_s, grow_s, grow_y
        y_square, s_square = y1 * y1 + y2 * y2 + y3 * y3, s1 * s1 + s2 * s2 + s3 * s3
        y_size, s_size = math.sqrt(y_square), math.sqrt(s_square)
        y1, y2, y3 = y1 / y_size, y2 / y_size, y3 / y_size
        s1, s2, s3 = s1 / s_size, s2 / s_size, s3 / s_size
        Q[k, 0, 0], Q[k, 1, 0], Q[k, 2, 0] = y1, y2, y3
        Q[k, 0, 1], Q[k, 1, 1], Q[k, 2, 1] = s1, s2, s3
        Q[k, 0, 2], Q[k, 1, 2], Q[k, 2, 2] = y2 * s3 - y3 * s2, y3 * s1 - y1 * s3, y1 * s2 - y2 * s1
        weight = b * (y_square / s_square)
        total = a + weight
        total = total if total > 0.0 else 1.0
        d[k, 0], d[k, 1], d[k, 2] = 1.0, 0.0, a / total
        complement[k, 0], complement[k, 1], complement[k, 2] = 0.0, 1.0, weight / total


@cached_kernel
def psd_point(w: Floats, order: int, values: Floats, vectors: Floats, y: Floats, first: int, last: int) -> None:
    """Eigenvalues (N, order), eigenvectors and projections of w (N, order (order + 1) / 2); NaN if w is not finite."""
    root = math.sqrt(2.0)
    matrix = np.empty((order, order))
    for k in range(first, last):
        finite, p = True, 0
        for j in range(order):
            for i in range(j, order):
                number = w[k, p]
                finite = finite and math.isfinite(number)
                matrix[i, j] = matrix[j, i] = number if i == j else number / root
                p += 1
        if not finite:
            values[k], vectors[k], y[k] = math.nan, 0.0, math.nan
            continue
        found, basis = np.linalg.eigh(matrix)
        values[k], vectors[k] = found, basis
        p = 0
        for j in range(order):
            for i in range(j, order):
                total = 0.0
                for l in range(order):  # noqa: E741
                    if found[l] > 0.0:
                        total += basis[i, l] * found[l] * basis[j, l]
                y[k, p] = total if i == j else total * root
                p += 1


@cached_kernel
def psd_derivative(
    values: Floats, vectors: Floats, Q: Floats, d: Floats, complement: Floats, first: int, last: int
) -> None:
    """Eigenbases Q (N, size, size), eigenvalues d (N, size) and 1 - d of the derivative, from eigendecompositions."""
    order = values.shape[1]
    root = math.sqrt(2.0)
    for k in range(first, last):
        V, pair = vectors[k], 0
        for b in range(order):
            for a in range(b, order):
                positive = max(values[k, a], 0.0) + max(values[k, b], 0.0)
                negative = max(-values[k, a], 0.0) + max(-values[k, b], 0.0)
                total = positive + negative
                d[k, pair] = positive / total if total != 0.0 else 0.0
                complement[k, pair] = negative / total if total != 0.0 else 1.0
                weight = 0.5 if a == b else 0.5 * root
                row = 0
                for j in range(order):
                    for i in range(j, order):
                        product = V[i, a] * V[j, b] + V[i, b] * V[j, a]
                        Q[k, row, pair] = product * weight * (1.0 if i == j else root)
                        row += 1
                pair += 1


def warm_up() -> None:
    """Compile this package's kernels by calling them."""
    w, code = np.ones((1, 3)), np.zeros(1, np.int8)
    region, Q, d = np.zeros((1, 4)), np.zeros((1, 3, 3)), np.zeros((1, 3))
    exponential_point(w, code, region, d, 0, 1)
    exponential_derivative(w, code, region, d, Q, d, d.copy(), np.zeros(1), 0, 1)
    values, vectors = np.zeros((1, 2)), np.zeros((1, 2, 2))
    psd_point(w, 2, values, vectors, d, 0, 1)
    psd_derivative(values, vectors, Q, d, d.copy(), 0, 1)
