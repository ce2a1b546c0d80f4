"""MINRES (Paige and Saunders 1975) for symmetric indefinite systems given by matrix-vector products.

The Lanczos process computes E V_k = V_{k+1} T_k with V_k orthonormal and T_k (k + 1, k) tridiagonal; the iterate is the
point of the Krylov space with the smallest residual. Besides a solution it yields:

- for an inconsistent singular system, the residual r of a least-squares solution, with E r = 0: a null direction;
- starting from zero, with a right-hand side in the range of E, the solution of minimum norm;
- estimates of the extreme singular values of E: those of T_k, of which the smallest decreases to that of E.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import numpy as np
import scipy.linalg

from convexlayer.program import Array

__all__ = ["LEAST_SQUARES", "Minres", "minres"]

LEAST_SQUARES = 3e-8
"""Stopping tolerance on norm(E r) / (norm(E) norm(r)): below it, r is the residual of a least-squares solution and a
null direction. About twice the square root of the machine epsilon."""


@final
@dataclass(frozen=True, eq=False)
class Minres:
    """Result of MINRES.

    Attributes:
        z: the solution, (N,).
        residual: norm(rhs - E z) / norm(rhs), in the 2-norm.
        least_squares: whether rhs - E z is a null direction of E, to LEAST_SQUARES.
        converged: whether the residual is at most tol, or that of a least-squares solution.
    """

    z: Array
    residual: float
    least_squares: bool
    converged: bool
    _diagonal: list[float] = field(repr=False)
    _beside: list[float] = field(repr=False)

    @property
    def iterations(self) -> int:
        """Number of products with E."""
        return len(self._diagonal)

    def extreme_singular_values(self) -> tuple[float, float]:
        """The largest and the smallest singular value of T_k, which lie between those of E, to 1e-8 norm(E)."""
        if not self._diagonal:
            return 0.0, 0.0
        a, b = np.array(self._diagonal), np.array([0.0, *self._beside])
        gram = np.zeros((3, len(a)))  # T_k'T_k: its diagonal, and the two above it
        gram[2] = a * a + b[:-1] ** 2 + b[1:] ** 2
        gram[1, 1:] = (a[:-1] + a[1:]) * b[1:-1]
        gram[0, 2:] = b[1:-2] * b[2:-1]
        gram = gram[3 - min(3, len(a)) :]
        ends = [
            scipy.linalg.eigvals_banded(gram, select="i", select_range=(i, i), check_finite=False)[0]
            for i in (len(a) - 1, 0)
        ]
        largest, smallest = np.sqrt(np.maximum(ends, 0.0)).tolist()
        return largest, smallest


def minres(multiply: Callable[[Array], Array], rhs: Array, *, tol: float, limit: int, norm: float = 1.0) -> Minres:
    """Solve E z = rhs, starting from zero.

    Args:
        multiply: v -> E v, (N,).
        rhs: (N,), finite.
        tol: tolerance on the relative residual, in the 2-norm.
        limit: maximum number of products with E.
        norm: a lower bound of norm(E); 1 suits an equilibrated matrix.
    """
    z = np.zeros_like(rhs)
    start = _norm(rhs)
    diagonal: list[float] = []
    beside: list[float] = []
    if start == 0.0:
        return Minres(z, 0.0, least_squares=False, converged=True, _diagonal=diagonal, _beside=beside)
    v, before, beta = rhs / start, np.zeros_like(rhs), 0.0
    w = earlier = np.zeros_like(rhs)
    cosine, sine, delta_bar, epsilon, residual = -1.0, 0.0, 0.0, 0.0, 1.0
    least_squares = converged = False
    for _ in range(limit):
        Ev = multiply(v)
        alpha = _dot(v, Ev)
        Ev = Ev - alpha * v - beta * before
        following = _norm(Ev)
        diagonal.append(alpha)
        beside.append(following)
        norm = max(norm, math.hypot(alpha, beta, following))
        # Apply the previous rotations to the new column of T; a new rotation then makes T upper triangular.
        above, delta, gamma_bar = epsilon, cosine * delta_bar + sine * alpha, sine * delta_bar - cosine * alpha
        epsilon, delta_bar = sine * following, -cosine * following
        image = residual * math.hypot(gamma_bar, delta_bar)  # norm(E r) / norm(rhs), r before this step
        if image <= LEAST_SQUARES * norm * residual:
            least_squares = converged = True
            break
        gamma = math.hypot(gamma_bar, following)
        cosine, sine = gamma_bar / gamma, following / gamma
        w, earlier = (v - above * earlier - delta * w) / gamma, w
        z += start * residual * cosine * w
        residual *= sine
        if residual <= tol or not math.isfinite(residual):
            converged = residual <= tol
            break
        before, v, beta = v, Ev / following, following
    return Minres(z, residual, least_squares, converged, diagonal, beside)


def _dot(u: Array, v: Array) -> float:
    """u'v, without BLAS: it would run even this on several threads, and synchronise them thousands of times."""
    return float(np.einsum("i,i->", u, v))


def _norm(v: Array) -> float:
    """The 2-norm."""
    return math.sqrt(_dot(v, v))
