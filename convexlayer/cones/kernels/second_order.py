"""Second-order blocks, with the formulas of ``cones.second_order``; the norm of u is saved."""

from __future__ import annotations

import math

from convexlayer.cones.kernels.block import Block, BlocksDerivative, Floats
from convexlayer.runtime.inner_function import inner_function

__all__ = ["derive", "margin", "project", "saved_size"]

ROOT_HALF = math.sqrt(0.5)


def saved_size(size: int, order: int) -> int:
    """The norm."""
    return 1


@inner_function
def project(block: Block, w: Floats, y: Floats, saved: Floats) -> None:
    """The projection, and the norm of u."""
    start, stop = block.start, block.start + block.size
    square = 0.0
    for i in range(start + 1, stop):
        square += w[i] * w[i]
    t, norm = w[start], math.sqrt(square)
    saved[block.saved] = norm
    if t >= norm:
        for i in range(start, stop):
            y[i] = w[i]
        return
    head = 0.5 * (t + norm)
    head = 0.0 if head < 0.0 else head  # NaN stays
    y[start], ratio = head, head / (norm if norm > 0.0 else 1.0)
    for i in range(start + 1, stop):
        y[i] = w[i] * ratio


@inner_function
def derive(block: Block, w: Floats, y: Floats, saved: Floats, derivative: BlocksDerivative) -> None:
    """D = I, D = 0, or eigenvalues 1, 0 and delta = (1 + t / norm(u)) / 2."""
    start, size = block.start, block.size
    d, complement, Q = derivative.d, derivative.complement, derivative.basis[block.basis :]
    t, norm = w[start], saved[block.saved]
    inside, polar = t >= norm and t > 0.0, t <= -norm
    scale = 1.0 / (norm if norm > 0.0 else 1.0)
    delta, rest = 0.5 * scale * (norm + t), 0.5 * scale * (norm - t)
    if inside or polar:
        delta, rest = (1.0, 0.0) if inside else (0.0, 1.0)
    for i in range(start, start + size):
        d[i], complement[i] = delta, rest
    if block.rank_two:
        curved = 0.0 if inside or polar else ROOT_HALF
        Q[0], Q[size] = curved, curved
        for i in range(1, size):
            tail = w[start + i] * (scale * curved)
            Q[i], Q[size + i] = tail, -tail
        return
    if size == 1:
        Q[0] = 1.0
        return
    if not (inside or polar):
        d[start], complement[start], d[start + 1], complement[start + 1] = 1.0, 0.0, 0.0, 1.0
    _basis(size, w[start + 1 :], norm, scale, Q)


@inner_function
def _basis(size: int, u: Floats, norm: float, scale: float, Q: Floats) -> None:
    """Q = ((1, h) / sqrt 2, (1, -h) / sqrt 2, ...), whose other columns are those of the reflector of h = u / norm."""
    first = u[0] * scale if norm > 0.0 else 1.0
    sign = math.copysign(1.0, first)
    divisor = 1.0 + abs(first)
    Q[0], Q[1] = ROOT_HALF, ROOT_HALF
    for j in range(2, size):
        Q[j] = 0.0
    for i in range(size - 1):
        row = (i + 1) * size
        h = u[i] * scale if norm > 0.0 else (1.0 if i == 0 else 0.0)
        reflected = (h + sign if i == 0 else h) / divisor
        Q[row], Q[row + 1] = ROOT_HALF * h, -ROOT_HALF * h
        for j in range(1, size - 1):
            other = u[j] * scale if norm > 0.0 else 0.0
            Q[row + 1 + j] = (1.0 if i == j else 0.0) - reflected * other


@inner_function
def margin(block: Block, w: Floats, y: Floats, saved: Floats) -> float:
    """Distance to the boundaries of K and -K."""
    distance = abs(abs(w[block.start]) - saved[block.saved])
    return distance if block.size == 1 else distance * ROOT_HALF
