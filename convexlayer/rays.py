"""Rays: what proves that a cone program has no solution, and how far such a proof goes.

    infeasible   y in K*,  A'y = 0,  b'y < 0:           any feasible x would make 0 <= y's = b'y - x'A'y = b'y
    unbounded    -Ax in K,  Px = 0,  q'x < 0:           from a feasible point on, the objective falls along x for ever

A solver's ray cancels up to its tolerance only. With e = A'y, a feasible x must satisfy sum(abs(e) abs(x)) >= -b'y, so
what is proved is that there is none of moderate size. Moderate is what the entries themselves say, not a norm over all
of them:

    remainder = max_j abs(e)_j / (abs(A)' abs(y))_j,    margin = -b'y / abs(b)' abs(y),

and a proof has a remainder of at most ``PROOF`` times its margin. A ray of unboundedness is measured alike: Px by rows,
-Ax by rows and blocks of K, q'x by its own terms.

Before a ray is refused it is mended: its remainder is taken out by least squares, in steps relative to each block's own
size, and it is projected on its cone again; entries that are small beside the others are tried at zero, for where they
alone stand in a column nothing can cancel them. True rays end at rounding, those of feasible programs do not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import final

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from convexlayer.cones import product_cone
from convexlayer.program import Array, ConeProgram, Cones, IndexArray, is_finite, max_norm

__all__ = ["BoolArray", "block_of_rows", "has_ray", "infeasibility_ray", "refuted", "unboundedness_ray"]

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

PROOF = 1e-7
"""Largest remainder of a proof, relative to its margin. On random programs over all cones, in units of 1e-3 to 1e3, the
solvers leave true rays at 1e-15 to 1e-6 (rarely 5e-5) and mending takes them to 1e-12 or below; points of feasible
programs that were mended as if they were rays stay above 0.3."""

LEAST_MARGIN = 1e-10
"""A margin below this is rounding: rows that follow from each other do not always do so to the last bit."""

CUTS = (0.0, 1e-6, 1e-3)
"""Shares of the largest weight below which a block of a ray is tried at zero."""

ROUNDS = 3
"""Of least squares and projection, and of refining sparse least squares."""

REGULARISATION = 1e-10
"""Of sparse least squares, whose rows and columns are of size one: rows may depend on each other."""

DENSE = 250_000
"""Entries up to which least squares are solved densely."""


def infeasibility_ray(program: ConeProgram, y: Array) -> Array | None:
    """A ray near y (m,) that proves that the one program of a batch is infeasible, or None where none was found."""
    return _mended(_Infeasible(program), y)


def unboundedness_ray(program: ConeProgram, x: Array) -> Array | None:
    """A ray near x (n,) that proves that the one program of a batch has no dual solution, or None."""
    return _mended(_Unbounded(program), x)


def refuted(program: ConeProgram, x: Array, y: Array, infeasible: BoolArray, unbounded: BoolArray) -> BoolArray:
    """Which claims come with a ray that proves nothing, nor does any near it, (B,).

    Args:
        program: the programs.
        x: (B, n), rays of the elements that are called unbounded; without one they are not finite, or 0.
        y: (B, m), rays of those that are called infeasible, likewise.
        infeasible: which elements are called infeasible, (B,).
        unbounded: which elements are called unbounded, (B,).
    """
    wrong = np.zeros(program.batch, dtype=bool)
    for claimed, rays, kind in ((infeasible, y, _Infeasible), (unbounded, x, _Unbounded)):
        index = np.flatnonzero(claimed & has_ray(rays))
        if not len(index):
            continue
        proved = kind(program.select(index)).proves(rays[index])
        for i in index[~proved].tolist():
            wrong[i] = _mended(kind(program.select([i])), rays[i]) is None
    return wrong


def has_ray(rays: Array) -> BoolArray:
    """Which rows (B, entries) are rays at all: finite, and not 0."""
    given: BoolArray = np.isfinite(rays).all(axis=1) & (max_norm(rays) > 0)
    return given


@lru_cache(maxsize=256)
def block_of_rows(cones: Cones) -> IndexArray:
    """The number of the block that each row belongs to, (m,); rows of the zero and nonnegative cones are their own."""
    sizes = [1] * (cones.zero + cones.nonnegative) + list(cones.second_order)
    sizes += [k * (k + 1) // 2 for k in cones.psd] + [3] * (cones.exponential + len(cones.power))
    return np.repeat(np.arange(len(sizes)), sizes)


class _Claim(ABC):
    """What a ray of each program of a batch would have to be.

    Attributes:
        program: the programs.
        blocks: which entries of a ray are of one size.
    """

    program: ConeProgram
    blocks: IndexArray

    @abstractmethod
    def inside(self, rays: Array) -> Array:
        """The nearest rays (B, entries) in their cone."""

    @abstractmethod
    def left(self, rays: Array) -> tuple[Array, Array]:
        """What does not cancel (B, rows), and the sums of the sizes of its terms."""

    @abstractmethod
    def value(self, rays: Array) -> tuple[Array, Array]:
        """What must be negative (B,), and the sums of the sizes of its terms."""

    @abstractmethod
    def matrix(self) -> sp.csr_matrix:
        """Of the one program: what ``left`` adds up, (rows, entries)."""

    @abstractmethod
    def slope(self) -> Array:
        """Of the one program: what ``value`` adds up, (entries,)."""

    def proves(self, rays: Array) -> BoolArray:
        """Which of the rays (B, entries) are proofs."""
        rays = self.inside(rays)
        left, terms = self.left(rays)
        remainder = np.max(np.divide(np.abs(left), terms, out=np.zeros_like(left), where=terms > 0), axis=1, initial=0)
        value, size = self.value(rays)
        margin = np.divide(-value, size, out=np.zeros_like(value), where=size > 0)
        proved: BoolArray = (margin > LEAST_MARGIN) & (remainder <= PROOF * margin)
        return proved


@final
class _Infeasible(_Claim):
    """Y in K*, A'y = 0, b'y < 0."""

    def __init__(self, program: ConeProgram) -> None:
        self.program = program
        self.blocks = block_of_rows(program.structure.cones)

    def inside(self, rays: Array) -> Array:
        return product_cone(self.program.structure.cones).project_dual(rays)

    def left(self, rays: Array) -> tuple[Array, Array]:
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
    """-Ax in K, Px = 0, q'x < 0."""

    def __init__(self, program: ConeProgram) -> None:
        self.program = program
        self.blocks = np.arange(program.structure.n)
        self._rows = block_of_rows(program.structure.cones)

    def inside(self, rays: Array) -> Array:
        return rays

    def left(self, rays: Array) -> tuple[Array, Array]:
        program, (P, A) = self.program, (self.program.structure.P, self.program.structure.A)
        Ax = A.matvec(program.A, rays)
        outside = product_cone(program.structure.cones).project_dual(Ax)  # Ax + Pi_K(-Ax), by Moreau
        terms = A.matvec(np.abs(program.A), np.abs(rays))
        if len(self._rows):
            largest = np.zeros((len(rays), self._rows[-1] + 1))
            np.maximum.at(largest.T, self._rows, terms.T)
            terms = largest[:, self._rows]
        left = np.concatenate([P.matvec(program.P, rays), outside], axis=1)
        return left, np.concatenate([P.matvec(np.abs(program.P), np.abs(rays)), terms], axis=1)

    def value(self, rays: Array) -> tuple[Array, Array]:
        terms = self.program.q * rays
        return terms.sum(axis=1), np.abs(terms).sum(axis=1)

    def matrix(self) -> sp.csr_matrix:
        structure = self.program.structure
        parts = structure.P.csc(self.program.P[0]), structure.A.csc(self.program.A[0])
        return sp.vstack(parts, format="csr")

    def slope(self) -> Array:
        return self.program.q[0]


def _mended(claim: _Claim, ray: Array) -> Array | None:
    """A proof near a ray of the one program, or None."""
    if not has_ray(ray[None])[0]:
        return None
    matrix, slope = claim.matrix(), claim.slope()
    if not (is_finite(matrix.data) and is_finite(slope)):
        return None
    ray = claim.inside(ray[None])[0] / max_norm(ray[None])
    weights = _weights(claim, matrix, slope, ray)
    left_out = -1
    for cut in CUTS:
        small = weights <= cut
        if int(np.count_nonzero(small)) == left_out:
            continue
        left_out, here = int(np.count_nonzero(small)), np.where(small, 0.0, ray)
        for _ in range(1 + ROUNDS):
            if claim.proves(here[None])[0]:
                return here
            here = claim.inside((here + _step(claim, matrix, slope, here))[None])[0]
            if not has_ray(here[None])[0]:
                break
    return None


def _weights(claim: _Claim, matrix: sp.csr_matrix, slope: Array, ray: Array) -> Array:
    """How much of what cancels, or of the value, each entry's block makes up, relative to the largest, (entries,)."""
    largest = np.zeros(claim.blocks[-1] + 1)
    for terms in (np.abs(ray) * abs(matrix).max(axis=0).toarray().ravel(), np.abs(ray * slope)):
        np.maximum.at(largest, claim.blocks, terms / (terms.max() or 1.0))
    weights: Array = largest[claim.blocks]
    return weights


def _step(claim: _Claim, matrix: sp.csr_matrix, slope: Array, ray: Array) -> Array:
    """The step, least relative to the sizes of the ray's blocks, after which everything cancels but the value."""
    (left,), (terms,) = claim.left(ray[None])
    size = np.zeros(claim.blocks[-1] + 1)
    np.maximum.at(size, claim.blocks, np.abs(ray))
    size = size[claim.blocks]
    # Rows that hold already may move within their cones.
    rows = np.flatnonzero((left != 0.0) & (terms > 0.0))
    value_size = float(np.abs(slope) @ np.abs(ray)) or 1.0
    weighted = sp.diags(1.0 / terms[rows]) @ matrix[rows] @ sp.diags(size)
    system = sp.vstack([weighted, sp.csr_matrix(slope * size / value_size)], format="csr")
    target = np.append(-left[rows] / terms[rows], 0.0)
    if system.shape[0] * system.shape[1] <= DENSE:
        found = scipy.linalg.lstsq(system.toarray(), target, cond=1e-13, lapack_driver="gelsy", check_finite=False)[0]
    else:
        found = _least(system, target)
    return np.asarray(size * found)


def _least(system: sp.csr_matrix, target: Array) -> Array:
    """The least u with system @ u = target, about: by a sparse factorisation, regularised and refined."""
    height, width = system.shape
    saddle = sp.bmat([[sp.eye(width), system.T], [system, -REGULARISATION * sp.eye(height)]], format="csc")
    factor, found = splu(saddle), np.zeros(width)
    for _ in range(ROUNDS):
        found = found + factor.solve(np.append(np.zeros(width), target - system @ found))[:width]
    return found
