"""Convexity check of objectives whose P is only declared positive semidefinite (``psd_wrap``, ``assume_PSD``)."""

from __future__ import annotations

import numpy as np

from convexlayer.canon import ParametricProgram
from convexlayer.program import Array, ConeProgram

__all__ = ["convexity_is_unproven", "nonconvex_elements"]

DECLARED = frozenset({"PSD", "NSD", "nonneg", "nonpos", "pos", "neg"})
"""Parameter attributes from which CVXPY proves that P is positive semidefinite; values are checked against them."""

ROUNDING = 1e-9
"""Negative eigenvalues up to this factor times the largest entry of P count as rounding errors of zero."""

MAX_ORDER = 1000
"""Largest order of P that is checked; of a larger one, the dense Cholesky factorisation costs too much."""

MAX_DENSE_ENTRIES = 2**20
"""Entries of the dense matrices P that are checked at a time: 8 MiB."""


def convexity_is_unproven(program: ParametricProgram) -> bool:
    """Whether P depends on a parameter declared neither definite nor of one sign, so that convexity is unproven."""
    block = program.data.matrix[program.parts[0]].tocsc()
    used = np.diff(block.indptr) > 0
    for i, spec in enumerate(program.parameters):
        own = program.features.mask_of([j == i for j in range(len(program.parameters))])
        if not spec.attributes & DECLARED and np.any(used[own]):
            return True
    return False


def nonconvex_elements(program: ConeProgram) -> dict[int, str]:
    """Return error messages, by position, of the elements whose P is finite but not positive semidefinite.

    Nothing is checked if P is larger than ``MAX_ORDER``.
    """
    n, P = program.structure.n, program.structure.P
    found: dict[int, str] = {}
    if not P.nnz or n > MAX_ORDER:
        return found
    many = max(1, MAX_DENSE_ENTRIES // (n * n))
    for start in range(0, program.batch, many):
        dense = P.dense(program.P[start : start + many])
        largest = np.abs(dense).max(axis=(1, 2))
        try:
            np.linalg.cholesky(dense + (ROUNDING * largest + np.finfo(float).tiny)[:, None, None] * np.eye(n))
        except np.linalg.LinAlgError:
            for i, matrix in enumerate(dense):
                message = _message(matrix) if np.isfinite(matrix).all() else None
                if message is not None:
                    found[start + i] = message
    return found


def _message(P: Array) -> str | None:
    """Return the error message for a symmetric matrix with a negative eigenvalue; None if it has none."""
    eigenvalues = np.linalg.eigvalsh(P)
    size = np.abs(eigenvalues).max()
    if eigenvalues[0] >= -ROUNDING * size:
        return None
    return f"its objective is not convex: P has an eigenvalue of {eigenvalues[0] / size:.2g} times the largest"
