"""Least-squares solutions of minimum norm, for singular symmetric systems."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.sparse.linalg import lsmr

from convexlayer.program import Array

__all__ = ["minimum_norm"]

DENSE_LIMIT = 2000
"""Up to this size an eigendecomposition is affordable."""

CUTOFF = 1e-11
"""Eigenvalues below this share of the largest count as zero."""


def minimum_norm(upper: sp.csc_matrix, rhs: Array) -> Array:
    """argmin norm(z) over the minimisers of norm(K z - rhs), K symmetric with the given upper triangle.

    By eigendecomposition up to DENSE_LIMIT, by LSMR (Fong and Saunders 2011) above.
    """
    full = upper + sp.triu(upper, 1).T
    if full.shape[0] > DENSE_LIMIT:
        solved: Array = lsmr(full.tocsr(), rhs, atol=1e-14, btol=1e-14, conlim=0.0, maxiter=4 * full.shape[0])[0]
        return solved
    eigenvalues, vectors = scipy.linalg.eigh(full.toarray())
    kept = np.abs(eigenvalues) > CUTOFF * np.max(np.abs(eigenvalues), initial=0.0)
    basis = vectors[:, kept]
    result: Array = basis @ ((basis.T @ rhs) / eigenvalues[kept])
    return result
