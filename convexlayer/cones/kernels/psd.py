"""Semidefinite blocks, with the formulas of ``cones.psd``; eigenvalues (order) and eigenvectors by rows are saved."""

from __future__ import annotations

import math

import numpy as np

from convexlayer.cones.kernels.block import Block, BlocksDerivative, Floats
from convexlayer.runtime.inner_function import inner_function

__all__ = ["derive", "margin", "project", "saved_size"]

ROOT_TWO = math.sqrt(2.0)


def saved_size(size: int, order: int) -> int:
    """The eigenvalues and the eigenvectors."""
    return order + order * order


@inner_function
def project(block: Block, w: Floats, y: Floats, saved: Floats) -> None:
    """V diag(max(l, 0)) V'; NaN if w is not finite."""
    order, start = block.order, block.start
    values, vectors = _eigensystem(block, saved)
    matrix, finite, p = np.empty((order, order)), True, start
    for j in range(order):
        for i in range(j, order):
            number = w[p]
            finite = finite and math.isfinite(number)
            matrix[i, j] = matrix[j, i] = number if i == j else number / ROOT_TWO
            p += 1
    if not finite:
        values[:], vectors[:] = math.nan, 0.0
        y[start : start + block.size] = math.nan
        return
    found, basis = np.linalg.eigh(matrix)
    for i in range(order):
        values[i] = found[i]
        for a in range(order):
            vectors[i * order + a] = basis[i, a]
    p = start
    for j in range(order):
        for i in range(j, order):
            total = 0.0
            for a in range(order):
                if found[a] > 0.0:
                    total += basis[i, a] * found[a] * basis[j, a]
            y[p] = total if i == j else total * ROOT_TWO
            p += 1


@inner_function
def derive(block: Block, w: Floats, y: Floats, saved: Floats, derivative: BlocksDerivative) -> None:
    """Q with columns svec((v_a v_b' + v_b v_a') / sqrt 2), a > b, and svec(v_a v_a')."""
    order, size = block.order, block.size
    values, V = _eigensystem(block, saved)
    Q, pair = derivative.basis[block.basis :], 0
    for b in range(order):
        for a in range(b, order):
            positive = max(values[a], 0.0) + max(values[b], 0.0)
            negative = max(-values[a], 0.0) + max(-values[b], 0.0)
            total = positive + negative
            derivative.d[block.start + pair] = positive / total if total != 0.0 else 0.0
            derivative.complement[block.start + pair] = negative / total if total != 0.0 else 1.0
            weight = 0.5 if a == b else 0.5 * ROOT_TWO
            row = 0
            for j in range(order):
                for i in range(j, order):
                    product = V[i * order + a] * V[j * order + b] + V[i * order + b] * V[j * order + a]
                    Q[row * size + pair] = product * weight * (1.0 if i == j else ROOT_TWO)
                    row += 1
            pair += 1


@inner_function
def margin(block: Block, w: Floats, y: Floats, saved: Floats) -> float:
    """The smallest magnitude of an eigenvalue."""
    least = math.inf
    for value in _eigensystem(block, saved)[0]:
        least = value if math.isnan(value) else min(least, abs(value))
    return least


@inner_function
def _eigensystem(block: Block, saved: Floats) -> tuple[Floats, Floats]:
    start, order = block.saved, block.order
    return saved[start : start + order], saved[start + order : start + order + order * order]
