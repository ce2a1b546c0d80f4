"""Proof of unboundedness without a ray (weak dual infeasibility), such as minimise -log x, by facial reduction.

For a direction d with

    Pd = 0,  -Ad in K,  q'd = 0     every dual feasible y has y'(-Ad) = q'd = 0,

so y lies in the face F of K* orthogonal to -Ad (facial reduction; Borwein and Wolkowicz 1981). A ray of the program in
which the larger cone F* replaces K then proves that the dual is infeasible; if there is none, the reduction is
repeated. A strictly feasible program whose dual is infeasible is unbounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from convexlayer.cones import product_cone, symmetric_vectors
from convexlayer.program import ROWS_OF_BLOCK, Array, ConeProgram, Cones, IndexArray, Pattern, Structure
from convexlayer.rays import unboundedness_ray
from convexlayer.solvers.certificate_search import reducing_candidate, unboundedness_candidates
from convexlayer.solvers.options import Options
from convexlayer.solvers.registry import solver_for

__all__ = ["is_unbounded_without_ray"]

MAX_REDUCTIONS = 3
"""Maximum number of facial reduction steps."""

NONZERO_TOL = 1e-6
"""Entries of -Ad (and eigenvalues) above this, relative to the terms of their sum, count as nonzero."""

DIRECTION_TOL = 1e-9
"""Largest residual of the equations of a direction d, relative to the terms, after the least-squares correction."""

SLATER_TOL = 1e-6
"""A point counts as strictly feasible if its distance to the boundary, relative to the entries of b, exceeds this."""

EQUALITY_TOL = 1e-7
"""Largest violation of an equality, relative to its terms, at a strictly feasible point; ten times Clarabel's
tolerance."""

FACES = ("nonnegative", "second_order", "psd", "exponential", "power")
"""Cones whose faces are known here; blocks of others stay as they are."""

MAX_EXPONENT = 300.0
"""Largest abs(x / y) of a point of the exponential cone whose face is computed: exp(x / y) beyond is too large or too
small to tell whether the point is on the boundary."""

LARGEST = 2000
"""Variables plus rows up to which the proof is tried: its least-squares problem is dense."""


def is_unbounded_without_ray(program: ConeProgram, time_limit_s: float | None = None) -> bool:
    """Whether facial reduction proves that the only element of a batch, which has no ray, is unbounded."""
    if program.structure.n + program.structure.m > LARGEST:
        return False
    reduced = program
    for _ in range(MAX_REDUCTIONS):
        found = _reduced(reduced, time_limit_s)
        if found is None:
            return False
        reduced = found
        if unboundedness_ray(reduced, unboundedness_candidates(reduced, time_limit_s)[0]) is not None:
            return _is_strictly_feasible(program, time_limit_s)
    return False


def _reduced(program: ConeProgram, time_limit_s: float | None) -> ConeProgram | None:
    """The program with K replaced by F*; None if no reducing direction was found."""
    structure, cones = program.structure, program.structure.cones
    if cones.m == cones.zero:
        return None
    d = reducing_candidate(program, _central(cones, dual=True), time_limit_s)[0]
    if not np.isfinite(d).all() or not d.any():
        return None
    P, A = structure.P.csc(program.P[0]), structure.A.csc(program.A[0]).tocsr()
    terms = product_cone(cones).largest_of_blocks((abs(A) @ np.abs(d))[None])[0]
    pieces = _pieces(-(A @ d), terms, cones)
    # Correct d by least squares so that its equations hold to rounding; otherwise it is not a reducing direction.
    equations = sp.vstack(
        [P, sp.csr_matrix(program.q), A[: cones.zero], *(piece.zeros @ A for piece in pieces)]
    ).toarray()
    sizes = np.abs(equations) @ np.abs(d)
    equations, sizes = equations[sizes > 0], sizes[sizes > 0]
    d = d - np.abs(d) * scipy.linalg.lstsq(equations * np.abs(d) / sizes[:, None], equations @ d / sizes)[0]
    s = -(A @ d)
    outside = product_cone(cones).project_dual(-s[None])[0]
    if np.any(np.abs(equations @ d) > DIRECTION_TOL * sizes) or np.any(np.abs(outside) > DIRECTION_TOL * terms):
        return None
    pieces = _pieces(s, terms, cones)
    if all(piece.unchanged for piece in pieces):
        return None
    return _with_cones(program, A, pieces)


@final
@dataclass(frozen=True, eq=False)
class _Piece:
    """The block of F* that replaces one block of K.

    Attributes:
        kind: its cone, a field of ``Cones``.
        size: size of a second-order or semidefinite block, exponent of a power block, else 1.
        rows: its rows as combinations of the rows of A, sparse, (rows, m).
        zeros: combinations of the rows of A that must vanish along the direction for this to be the face, (zeros, m).
        unchanged: whether the block is unchanged.
    """

    kind: str
    size: float
    rows: sp.csr_matrix
    zeros: sp.csr_matrix
    unchanged: bool = False


def _pieces(s: Array, terms: Array, cones: Cones) -> list[_Piece]:
    """The pieces of F* at s = -Ad for all blocks but the zero cone's; terms are the magnitudes of the terms of s."""
    present = np.where(np.abs(s) > NONZERO_TOL * terms, s, 0.0)
    start, pieces = cones.zero, list[_Piece]()
    for kind, size, length in _blocks(cones):
        rows = np.arange(start, start + length)
        pieces += _replacing(kind, size, rows, present[rows], cones.m)
        start += length
    return pieces


def _replacing(kind: str, size: float, rows: IndexArray, s: Array, m: int) -> list[_Piece]:
    """The pieces of F* of one block at s = -Ad."""

    def combined(matrix: Array, at: IndexArray = rows) -> sp.csr_matrix:
        """A matrix that combines the rows with these indices, as a sparse matrix on all m rows."""
        height, width = matrix.shape
        places = np.tile(at, height), np.repeat(np.arange(height), width)
        return sp.csr_matrix((matrix.ravel(), places[::-1]), shape=(height, m))

    def picked(at: IndexArray) -> sp.csr_matrix:
        return combined(np.eye(len(at)), at)

    none = picked(rows[:0])
    if not s.any():
        return [_Piece(kind, size, picked(rows), picked(rows), unchanged=True)]
    if kind == "psd":
        svec = symmetric_vectors(int(size))
        eigenvalues, vectors = np.linalg.eigh(svec.matrix(s))
        null = vectors[:, eigenvalues <= NONZERO_TOL * eigenvalues[-1]]
        if not null.shape[1]:
            return []
        smaller = symmetric_vectors(null.shape[1])
        onto = combined(smaller.vector(null.T @ svec.matrix(np.eye(len(s))) @ null).T)
        return [_Piece("psd", null.shape[1], onto, onto)]
    if kind == "exponential" and s[1] <= 0.0:
        # (x, 0, z) with x <= 0 <= z leaves u = 0, v >= 0 and w >= 0 of K*, and w = 0 where z > 0.
        left = rows[1:2] if s[2] > 0.0 else rows[1:]
        return [_Piece("nonnegative", 1, picked(left[i : i + 1]), picked(rows[s == 0.0])) for i in range(len(left))]
    if kind == "power" and min(s[0], s[1]) <= 0.0:
        # (x, 0, 0) leaves v >= 0 of K*, and (0, y, 0) leaves u >= 0.
        other = rows[1:2] if s[0] > 0.0 else rows[:1]
        return [_Piece("nonnegative", 1, picked(other), picked(rows[s == 0.0]))]
    if kind not in FACES or (kind == "exponential" and abs(s[0]) > s[1] * MAX_EXPONENT):
        # F* cannot be computed here; K is contained in it.
        return [_Piece(kind, size, picked(rows), none, unchanged=True)]
    normal = None if kind == "nonnegative" else _normal(kind, size, s)
    return [] if normal is None else [_Piece("nonnegative", 1, combined(normal[None]), none)]


def _normal(kind: str, size: float, block: Array) -> Array | None:
    """The extreme ray of K* orthogonal to a block on the curved boundary of K; None for an interior point."""
    if kind == "second_order":
        t, u = block[0], block[1:]
        return np.append(t, -u) if t - np.linalg.norm(u) <= NONZERO_TOL * t else None
    x, y, z = block
    if kind == "exponential":
        ratio = x / y
        return np.array([-1.0, ratio - 1.0, math.exp(-ratio)]) if z - y * math.exp(ratio) <= NONZERO_TOL * z else None
    product = x**size * y ** (1.0 - size)
    gradient = np.array([size * product / x, (1.0 - size) * product / y, -math.copysign(1.0, z)])
    return gradient if product - abs(z) <= NONZERO_TOL * product else None


def _with_cones(program: ConeProgram, A: sp.csr_matrix, pieces: list[_Piece]) -> ConeProgram:
    """The program with these pieces in place of its cone blocks."""
    cones = program.structure.cones
    by_kind = {kind: [piece for piece in pieces if piece.kind == kind] for kind in cones.as_dict()}
    ordered = [piece for kind in cones.as_dict() for piece in by_kind[kind]]
    rows = sp.vstack([sp.eye(cones.zero, cones.m, format="csr"), *(piece.rows for piece in ordered)], format="csr")
    reduced = (rows @ A).tocsc()
    reduced.sort_indices()
    columns = np.repeat(np.arange(A.shape[1]), np.diff(reduced.indptr))
    sizes: dict[str, Any] = {
        kind: len(by_kind[kind]) if isinstance(given, int) else tuple(piece.size for piece in by_kind[kind])
        for kind, given in cones.as_dict().items()
    }
    smaller = Cones(**sizes | {"zero": cones.zero})
    pattern = Pattern(reduced.shape, reduced.indices.astype(np.int64), columns)
    structure = Structure(program.structure.P, pattern, smaller)
    return replace(program, structure=structure, A=reduced.data[None], b=(rows @ program.b[0])[None])


def _is_strictly_feasible(program: ConeProgram, time_limit_s: float | None) -> bool:
    """Slater's condition: whether Ax + s = b for an interior s of K; maximises t with s - t e in K, e interior."""
    structure, cones = program.structure, program.structure.cones
    A, b, centre = structure.A.csc(program.A[0]), program.b[0], _central(cones, dual=False)
    n, first = structure.n, cones.zero
    depth = sp.csc_matrix(np.append(centre, 0.0)[:, None])
    limit = sp.csc_matrix(([1.0], ([0], [n])), shape=(1, n + 1))
    rows = sp.hstack([A, depth[:-1]], format="csr")
    whole = sp.vstack([rows[:first], limit, rows[first:]], format="csc")
    whole.sort_indices()
    scale = max(1.0, float(np.abs(b).max(initial=0.0)))
    columns = np.repeat(np.arange(n + 1), np.diff(whole.indptr))
    none = np.zeros(0, dtype=np.int64)
    posed = Structure(
        Pattern((n + 1, n + 1), none, none),
        Pattern(whole.shape, whole.indices.astype(np.int64), columns),
        replace(cones, nonnegative=cones.nonnegative + 1),
    )
    q, limited = np.append(np.zeros(n), -1.0)[None], np.concatenate([b[:first], [scale], b[first:]])[None]
    least = ConeProgram(posed, np.zeros((1, 0)), q, np.zeros(1), whole.data[None], limited)
    solver = solver_for("clarabel", posed)[0]
    found = solver.solve(solver.init(posed), least, Options(time_limit_s=time_limit_s))
    x, t = found.x[0, :-1], found.x[0, -1]
    if not np.isfinite(found.x).all() or t <= SLATER_TOL * scale:
        return False
    s = b - A @ x
    terms = np.abs(b) + abs(A) @ np.abs(x)
    inner = s - np.where(np.arange(cones.m) < first, 0.0, 0.5 * t * centre)
    outside = product_cone(cones).project_dual(-inner[None])[0]
    return bool(np.all(np.abs(s[:first]) <= EQUALITY_TOL * terms[:first]) and not np.any(np.abs(outside[first:]) > 0.0))


def _central(cones: Cones, *, dual: bool) -> Array:
    """An interior point of K* or K, 0 in the rows of the zero cone, (m,)."""
    parts = [np.zeros(cones.zero)]
    for kind, size, length in _blocks(cones):
        if kind == "psd":
            parts.append(symmetric_vectors(int(size)).vector(np.eye(int(size))))
        elif kind == "exponential":
            parts.append(np.array([-1.0, 1.0, 1.0]))  # interior of both
        elif kind == "power":
            parts.append(np.array([size, 1.0 - size, 0.0]) if dual else np.array([1.0, 1.0, 0.0]))
        else:
            parts.append(np.eye(1, length)[0])
    return np.concatenate(parts)


def _blocks(cones: Cones) -> Iterator[tuple[str, float, int]]:
    """Kind, size and number of rows of each block but those of the zero cone."""
    for kind, sizes in replace(cones, zero=0).as_dict().items():
        for size in [1] * sizes if isinstance(sizes, int) else sizes:
            yield kind, size, ROWS_OF_BLOCK[kind](size)
