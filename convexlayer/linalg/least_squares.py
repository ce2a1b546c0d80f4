"""Least-squares solutions of minimum norm, for singular symmetric systems."""

from __future__ import annotations

from typing import final

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.sparse.linalg import lsmr

from convexlayer.program import Array

__all__ = ["PseudoInverse"]

DENSE_LIMIT = 1000
"""Up to this size an eigendecomposition is affordable."""

CUTOFF = 1e-11
"""Eigenvalues below this share of the largest count as zero."""


@final
class PseudoInverse:
    """The pseudo-inverse of K = S^-1 E S^-1, S = diag(scale): argmin norm(z) over the minimisers of norm(K z - rhs).

    What counts as zero is decided on the equilibrated E, by eigendecomposition, and the norms are those of K. Above
    DENSE_LIMIT the work is done by LSMR (Fong and Saunders 2011), and the norms are those of E.
    """

    def __init__(self, upper: sp.csc_matrix, scale: Array) -> None:
        """Decompose E (N, N), given by its upper triangle; scale (N,) is positive."""
        self._E = (upper + sp.triu(upper, 1).T).tocsr()
        self._scale = scale
        if len(scale) > DENSE_LIMIT:
            return
        eigenvalues, vectors = scipy.linalg.eigh(self._E.toarray())
        kept = np.abs(eigenvalues) > CUTOFF * np.max(np.abs(eigenvalues), initial=0.0)
        self._eigenvalues, self._range = eigenvalues[kept], vectors[:, kept]
        self._null = np.linalg.qr(scale[:, None] * vectors[:, ~kept])[0]

    def solve(self, rhs: Array) -> Array:
        """Z (N,) of rhs (N,)."""
        if len(rhs) > DENSE_LIMIT:
            limit = 4 * len(rhs)
            solved = lsmr(self._E, self._scale * rhs, atol=1e-14, btol=1e-14, conlim=0.0, maxiter=limit)[0]
            return np.asarray(self._scale * solved)
        target = self._scale * self._without_null(rhs)
        return self._without_null(self._scale * (self._range @ ((self._range.T @ target) / self._eigenvalues)))

    def _without_null(self, v: Array) -> Array:
        """The part of v orthogonal to the null space of K."""
        part: Array = v - self._null @ (self._null.T @ v)
        return part
