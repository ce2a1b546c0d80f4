"""Rays: certificates of infeasibility and unboundedness, and their verification.

    infeasible   y in K*,  A'y = 0,  b'y < 0:      a feasible x would give 0 <= y's = b'y - x'A'y = b'y < 0
    unbounded    -Ax in K,  Px = 0,  q'x < 0:      from a feasible point, the objective decreases along x without bound

A solver's ray satisfies the equations up to a tolerance only. With e = A'y, a feasible x must satisfy
sum(abs(e) abs(x)) >= -b'y, so an inexact ray proves that there is no feasible x of moderate size. The size is measured
entry by entry, not by a norm:

    remainder = max_j abs(e)_j / (abs(A)' abs(y))_j,    margin = -b'y / abs(b)' abs(y),

and a ray is a certificate if its remainder is at most ``CERTIFICATE_TOL`` times its margin. Unbounded rays are measured
likewise: Px by rows, -Ax by rows and blocks of K, q'x by its own terms.

A ray that fails is refined before it is rejected: a least-squares step, relative to the size of each block, removes
the remainder, and the ray is projected onto its cone. Small entries are also tried at zero, because an entry that is
alone in a column cannot be cancelled by others. Rays of infeasible or unbounded programs converge to rounding errors;
others do not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import final

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.sparse.linalg import lsmr

from convexlayer.cones import product_cone
from convexlayer.program import Array, ConeProgram, Cones, IndexArray, max_norm

__all__ = ["BoolArray", "block_of_rows", "has_ray", "infeasibility_ray", "refuted_claims", "unboundedness_ray"]

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

CERTIFICATE_TOL = 1e-7
"""Largest remainder of a certificate relative to its margin. Measured: rays of infeasible programs have 1e-12 to 1e-6
as returned by solvers and 1e-15 after refinement; false rays of feasible programs have 1e-3 and more."""

LEAST_MARGIN = 1e-10
"""Smallest margin of a certificate; smaller ones are rounding errors of linearly dependent rows."""

ZEROING_WEIGHTS = (0.0, 1e-6, 1e-3)
"""Weights, relative to the largest, up to which blocks of a ray are set to zero, one value per attempt."""

REFINEMENT_ROUNDS = 3
"""Maximum number of refinement rounds (least squares and projection) per attempt."""

RANK_TOL = 1e-13
"""Singular values below this share of the largest count as 0 in dense least squares: the rows are scaled to terms of
size 1, so that rounding leaves about 1e-16 of dependent rows."""

LSMR_TOL = 1e-15
"""Tolerance of LSMR for the residual and for its gradient: near rounding, as remainders are compared at 1e-15."""

MAX_DENSE_ENTRIES = 250_000
"""Number of matrix entries up to which least squares use a dense factorisation; beyond, LSMR."""


def infeasibility_ray(program: ConeProgram, y: Array) -> Array | None:
    """Compute a certificate of infeasibility near y (m,) for a batch of one program; None if there is none."""
    return _refined(_Infeasible(program), y)


def unboundedness_ray(program: ConeProgram, x: Array) -> Array | None:
    """Compute a certificate of dual infeasibility near x (n,) for a batch of one program; None if there is none."""
    return _refined(_Unbounded(program), x)


def refuted_claims(program: ConeProgram, x: Array, y: Array, infeasible: BoolArray, unbounded: BoolArray) -> BoolArray:
    """Mask (B,) of the elements whose claimed ray is not a certificate, even after refinement.

    Args:
        program: the programs.
        x: (B, n), rays of the elements claimed unbounded; nonfinite or 0 without a ray.
        y: (B, m), rays of the elements claimed infeasible; nonfinite or 0 without a ray.
        infeasible: mask (B,) of the elements claimed infeasible.
        unbounded: mask (B,) of the elements claimed unbounded.
    """
    wrong = np.zeros(program.batch, dtype=bool)
    for claimed, rays, kind in ((infeasible, y, _Infeasible), (unbounded, x, _Unbounded)):
        index = np.flatnonzero(claimed & has_ray(rays))
        if not len(index):
            continue
        proved = kind(program.select(index)).proves(rays[index])
        for i in index[~proved].tolist():
            wrong[i] = _refined(kind(program.select([i])), rays[i]) is None
    return wrong


def has_ray(rays: Array) -> BoolArray:
    """Mask (B,) of the rows (B, entries) that are finite and not 0."""
    given: BoolArray = np.isfinite(rays).all(axis=1) & (max_norm(rays) > 0)
    return given


@lru_cache(maxsize=256)
def block_of_rows(cones: Cones) -> IndexArray:
    """Block index of each row, (m,); each row of the zero and nonnegative cones is a block."""
    rows = cones.block_rows
    return np.repeat(np.arange(len(rows)), rows)


class _Claim(ABC):
    """The conditions that a ray of each program of a batch must satisfy.

    Attributes:
        program: the programs.
        blocks: block index of each entry of a ray; entries of a block share one scale.
    """

    program: ConeProgram
    blocks: IndexArray

    @abstractmethod
    def project(self, rays: Array) -> Array:
        """Project rays (B, entries) onto their cone."""

    @abstractmethod
    def residual(self, rays: Array) -> tuple[Array, Array]:
        """Residuals (B, rows) of the equations, and the sums of the magnitudes of their terms."""

    @abstractmethod
    def value(self, rays: Array) -> tuple[Array, Array]:
        """Inner products (B,) that must be negative, and the sums of the magnitudes of their terms."""

    @abstractmethod
    def matrix(self) -> sp.csr_matrix:
        """Matrix (rows, entries) of the equations, for a batch of one program."""

    @abstractmethod
    def slope(self) -> Array:
        """Coefficients (entries,) of the inner product, for a batch of one program."""

    def proves(self, rays: Array) -> BoolArray:
        """Mask (B,) of the rays (B, entries) that are certificates."""
        rays = self.project(rays)
        residual, terms = self.residual(rays)
        remainder = np.max(
            np.divide(np.abs(residual), terms, out=np.zeros_like(residual), where=terms > 0), axis=1, initial=0
        )
        value, size = self.value(rays)
        margin = np.divide(-value, size, out=np.zeros_like(value), where=size > 0)
        proved: BoolArray = (margin > LEAST_MARGIN) & (remainder <= CERTIFICATE_TOL * margin)
        return proved


@final
class _Infeasible(_Claim):
    """Infeasibility: y in K*, A'y = 0, b'y < 0."""

    def __init__(self, program: ConeProgram) -> None:
        self.program = program
        self.blocks = block_of_rows(program.structure.cones)

    def project(self, rays: Array) -> Array:
        return product_cone(self.program.structure.cones).project_dual(rays)

    def residual(self, rays: Array) -> tuple[Array, Array]:
        A, values = self.program.structure.A, self.program.A
        return A.rmatvec(values, rays), A.rmatvec(np.abs(values), np.abs(rays))

    def value(self, rays: Array) -> tuple[Array, Array]:
        terms = self.program.b * rays
        return terms.sum(axis=1), np.abs(terms).sum(axis=1)

    def matrix(self) -> sp.csr_matrix:
        return self.program.structure.A.csc(self.program.A[0]).T.tocsr()

    def slope(self) -> Array:
        return self.program.b[0]


@final
class _Unbounded(_Claim):
    """Unboundedness: -Ax in K, Px = 0, q'x < 0."""

    def __init__(self, program: ConeProgram) -> None:
        self.program = program
        self.blocks = np.arange(program.structure.n)
        self._rows = block_of_rows(program.structure.cones)

    def project(self, rays: Array) -> Array:
        return rays

    def residual(self, rays: Array) -> tuple[Array, Array]:
        program, (P, A) = self.program, (self.program.structure.P, self.program.structure.A)
        Ax = A.matvec(program.A, rays)
        outside = product_cone(program.structure.cones).project_dual(Ax)  # Ax + Pi_K(-Ax), by Moreau
        terms = A.matvec(np.abs(program.A), np.abs(rays))
        if len(self._rows):
            largest = np.zeros((len(rays), self._rows[-1] + 1))
            np.maximum.at(largest.T, self._rows, terms.T)
            terms = largest[:, self._rows]
        residual = np.concatenate([P.matvec(program.P, rays), outside], axis=1)
        return residual, np.concatenate([P.matvec(np.abs(program.P), np.abs(rays)), terms], axis=1)

    def value(self, rays: Array) -> tuple[Array, Array]:
        terms = self.program.q * rays
        return terms.sum(axis=1), np.abs(terms).sum(axis=1)

    def matrix(self) -> sp.csr_matrix:
        structure = self.program.structure
        parts = structure.P.csc(self.program.P[0]), structure.A.csc(self.program.A[0])
        return sp.vstack(parts, format="csr")

    def slope(self) -> Array:
        return self.program.q[0]


def _refined(claim: _Claim, ray: Array) -> Array | None:
    """Refine a ray of a batch of one program to a certificate; None if that fails."""
    if not has_ray(ray[None])[0]:
        return None
    matrix, slope = claim.matrix(), claim.slope()
    ray = claim.project(ray[None])[0] / max_norm(ray[None])
    weights = _weights(claim, matrix, slope, ray)
    for cut in ZEROING_WEIGHTS:
        here = np.where(weights > cut, ray, 0.0)
        for _ in range(REFINEMENT_ROUNDS):
            if claim.proves(here[None])[0]:
                return here
            here = claim.project((here + _step(claim, matrix, slope, here))[None])[0]
            if not has_ray(here[None])[0]:
                break
    return None


def _weights(claim: _Claim, matrix: sp.csr_matrix, slope: Array, ray: Array) -> Array:
    """Contribution of each entry's block to the equations or the inner product, relative to the largest, (entries,)."""
    largest = np.zeros(claim.blocks[-1] + 1)
    for terms in (np.abs(ray) * abs(matrix).max(axis=0).toarray().ravel(), np.abs(ray * slope)):
        np.maximum.at(largest, claim.blocks, terms / (terms.max() or 1.0))
    weights: Array = largest[claim.blocks]
    return weights


def _step(claim: _Claim, matrix: sp.csr_matrix, slope: Array, ray: Array) -> Array:
    """Least-squares step of minimum norm, relative to the block sizes, to zero residuals at an unchanged value."""
    (residual,), (terms,) = claim.residual(ray[None])
    size = np.zeros(claim.blocks[-1] + 1)
    np.maximum.at(size, claim.blocks, np.abs(ray))
    size = size[claim.blocks]
    # Satisfied rows are left out: they may change within their cones.
    rows = np.flatnonzero((residual != 0.0) & (terms > 0.0))
    value_size = float(np.abs(slope) @ np.abs(ray)) or 1.0
    weighted = sp.diags(1.0 / terms[rows]) @ matrix[rows] @ sp.diags(size)
    system = sp.vstack([weighted, sp.csr_matrix(slope * size / value_size)], format="csr")
    target = np.append(-residual[rows] / terms[rows], 0.0)
    if system.shape[0] * system.shape[1] <= MAX_DENSE_ENTRIES:
        found = scipy.linalg.lstsq(system.toarray(), target, cond=RANK_TOL, lapack_driver="gelsy", check_finite=False)[
            0
        ]
    else:
        found = lsmr(system, target, atol=LSMR_TOL, btol=LSMR_TOL, conlim=0.0, maxiter=2 * sum(system.shape))[0]
    return np.asarray(size * found)
