"""Whether the objective is convex, where only the caller has promised it: ``psd_wrap`` and ``assume_PSD``."""

from __future__ import annotations

import numpy as np

from convexlayer.canon import ParametricProgram
from convexlayer.program import Array, ConeProgram

__all__ = ["is_promise", "not_convex"]

DECLARED = frozenset({"PSD", "NSD", "nonneg", "nonpos", "pos", "neg"})
"""Attributes with which CVXPY has seen to it that P is positive semidefinite, and by which values are checked."""

ROUNDING = 1e-9
"""A negative eigenvalue counts as zero up to this share of the largest entry of P."""

LARGEST = 1000
"""Up to this order P is looked at."""

AT_ONCE = 2**20
"""Entries of P that are made dense at once."""


def is_promise(program: ParametricProgram) -> bool:
    """Whether P depends on a parameter that is declared neither definite nor of one sign."""
    block = program.data.matrix[program.parts[0]].tocsc()
    used = np.diff(block.indptr) > 0
    for i, spec in enumerate(program.parameters):
        own = program.features.of([j == i for j in range(len(program.parameters))])
        if not spec.attributes & DECLARED and np.any(used[own]):
            return True
    return False


def not_convex(program: ConeProgram) -> dict[int, str]:
    """What is to be said of elements whose P is finite, but not positive semidefinite, by position."""
    n, P = program.structure.n, program.structure.P
    found: dict[int, str] = {}
    if not P.nnz or n > LARGEST:
        return found
    many = max(1, AT_ONCE // (n * n))
    for start in range(0, program.batch, many):
        dense = P.dense(program.P[start : start + many])
        largest = np.abs(dense).max(axis=(1, 2))
        try:
            np.linalg.cholesky(dense + (ROUNDING * largest + np.finfo(float).tiny)[:, None, None] * np.eye(n))
        except np.linalg.LinAlgError:
            for i, matrix in enumerate(dense):
                said = _said(matrix) if np.isfinite(matrix).all() else None
                if said is not None:
                    found[start + i] = said
    return found


def _said(P: Array) -> str | None:
    eigenvalues = np.linalg.eigvalsh(P)
    size = np.abs(eigenvalues).max()
    if eigenvalues[0] >= -ROUNDING * size:
        return None
    return f"its objective is not convex: P has an eigenvalue of {eigenvalues[0] / size:.2g} times the largest"
