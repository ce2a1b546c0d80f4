"""Parametric presolve: a smaller program of the same family, made once, before anything is solved.

With constant sparse T, B and C >= 0, a solution (z, v) of

    T'PT,   T'(q + P B b),   r + (B b)'(q + P B b / 2),   C A T,   C (b - A B b)      in place of P, q, r, A, b

gives a solution of the program:

    x = T z + B b,      y = C'v - B'(P x + q + A'C'v)

B is the inverse of the eliminated equality rows in the eliminated columns, so that A x + s = b holds in those rows, and
the second formula is stationarity in those columns. All new data are affine in the features but r, which may hold
products of two; no solution depends on r, so these stand beside the affine map. The duals of eliminated rows depend on
the features themselves, through P, q and A: that is a ``DirectTerm`` of the recovery.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from convexlayer.canon.affine_map import AffineMap, AffineProduct
from convexlayer.canon.affine_matrix import AffineMatrix, affine_map, affine_vector, difference, product
from convexlayer.canon.elimination import pivots
from convexlayer.canon.parametric import ParametricProgram, PresolveRecord
from convexlayer.canon.recovery import DirectTerm, Recovery
from convexlayer.canon.rows import without_bound_variables, without_needless_rows
from convexlayer.program import Cones, IndexArray, Pattern, Structure
from convexlayer.solution import BoolArray

__all__ = ["presolved"]

NOISE = 1e-14
"""Entries of T and B this small relative to the largest are rounding errors."""


def presolved(program: ParametricProgram) -> ParametricProgram:
    """The reduced program, with the same parameters and outputs; the program itself where nothing is gained."""
    if program.presolve is not None:
        return program
    given = _Stage.of(program)
    m, n = given.A.shape
    recovery = program.recovery
    distinct = given.then(C=without_needless_rows(given.A, given.b, given.cones, _shown_rows(recovery, given, given)))
    chosen = pivots(distinct.P, distinct.A, distinct.q, distinct.b, distinct.cones)
    solved = distinct.solved_for(chosen)
    shown = product(recovery.matrix[:, :n], solved.T).getnnz(axis=0) > 0
    C, columns = without_bound_variables(solved.A, ~(shown | solved.costly), solved.cones)
    bounded = solved.then(C=C, T=_columns_of_identity(solved.A.shape[1], columns))
    again = without_needless_rows(bounded.A, bounded.b, bounded.cones, _shown_rows(recovery, given, bounded))
    last = bounded.then(C=again)
    if last.A.shape == (m, n):
        return program
    offset = product(last.B, given.b)
    r, products = _constant(given, affine_vector(program.data, program.parts[2]), offset)
    structure, data = last.stacked(r)
    record = PresolveRecord(
        source=program,
        solved_for=len(chosen),
        bound_variables=solved.A.shape[1] - len(columns),
        needless_rows=m - distinct.A.shape[0] + bounded.A.shape[0] - last.A.shape[0],
    )
    return replace(
        program,
        structure=structure,
        data=data,
        products=products,
        recovery=_recovery(recovery, given, last, offset),
        presolve=record,
    )


@dataclass(frozen=True, eq=False)
class _Stage:
    """A program on the way: its data, and T, B and C that lead to it from the first.

    ``q`` and ``b`` are [slopes, constant], (n, features + 1) and (m, features + 1).
    """

    P: AffineMatrix
    q: sp.csr_matrix
    A: AffineMatrix
    b: sp.csr_matrix
    cones: Cones
    T: sp.csr_matrix
    B: sp.csr_matrix
    C: sp.csr_matrix

    @staticmethod
    def of(program: ParametricProgram) -> _Stage:
        """The program itself."""
        structure, data = program.structure, program.data
        P, q, _, A, b = (affine_vector(data, part) for part in program.parts)
        n, m = structure.n, structure.m
        return _Stage(
            P=AffineMatrix.of(structure.P, P),
            q=q,
            A=AffineMatrix.of(structure.A, A),
            b=b,
            cones=structure.cones,
            T=sp.identity(n, format="csr"),
            B=sp.csr_matrix((n, m)),
            C=sp.identity(m, format="csr"),
        )

    @property
    def costly(self) -> BoolArray:
        """Which variables the objective depends on, (n,)."""
        return (np.diff(self.q.indptr) > 0) | (np.diff(self.P.support.indptr) > 0)

    def then(self, *, C: sp.csr_matrix, T: sp.csr_matrix | None = None, B: sp.csr_matrix | None = None) -> _Stage:
        """The next stage, whose T, B and C lead there from this one; B once only."""
        m, n = self.A.shape
        T = sp.identity(n, format="csr") if T is None else T
        if C.shape[0] == m and T.shape[1] == n:
            return self
        B = sp.csr_matrix((n, m)) if B is None else B
        offset = product(B, self.b)
        first = C.indices[C.indptr[:-1]]
        zero = int(np.sum(first < self.cones.zero))
        nonnegative = int(np.sum(first < self.cones.zero + self.cones.nonnegative)) - zero
        return _Stage(
            P=self.P.times(T).transposed.times(T),
            q=product(T.T.tocsr(), self.q + self.P.at(offset)),
            A=self.A.times(T).transposed.times(C.T.tocsr()).transposed,
            b=product(C, difference(self.b, self.A.at(offset))),
            cones=replace(self.cones, zero=zero, nonnegative=nonnegative),
            T=self.T @ T,
            B=self.B + self.T @ B @ self.C,
            C=C @ self.C,
        )

    def solved_for(self, chosen: list[tuple[int, int]]) -> _Stage:
        """With the pivots' rows solved for their columns: x_V = E_V^-1 (b_E - E_Z z), the rows being E = [E_V E_Z]."""
        if not chosen:
            return self
        m, n = self.A.shape
        rows, V = (np.array(part, dtype=np.int64) for part in zip(*chosen, strict=True))
        Z = np.delete(np.arange(n), V)
        others = np.delete(np.arange(m), rows)
        E = self.A.constant[rows]
        inverse = _inverse(E[:, V])
        into_V = _columns_of_identity(n, V)
        T = _columns_of_identity(n, Z) - into_V @ _without_noise(product(inverse, E[:, Z]))
        B = into_V @ inverse @ _columns_of_identity(m, rows).T
        return self.then(C=_columns_of_identity(m, others).T.tocsr(), T=T.tocsr(), B=B.tocsr())

    def stacked(self, r: sp.csr_matrix) -> tuple[Structure, AffineMap]:
        """The structure, and the map from features to (P, q, r, A, b)."""
        P_pattern, P = _symmetric(*self.P.entries())
        A_pattern, A = self.A.entries()
        return Structure(P_pattern, A_pattern, self.cones), affine_map(sp.vstack([P, self.q, r, A, self.b], "csr"))


def _columns_of_identity(size: int, columns: IndexArray) -> sp.csr_matrix:
    ones = np.ones(len(columns))
    return sp.csr_matrix((ones, (columns, np.arange(len(columns)))), shape=(size, len(columns)))


def _inverse(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """The inverse of a sparse matrix whose pivots are on the diagonal, in their order.

    Its LU factors are I + N and D (I + M) with N and M nilpotent; chains of definitions are short, so is the iteration.
    """
    factor = splu(matrix.tocsc(), permc_spec="NATURAL", diag_pivot_thresh=0.0)
    size = matrix.shape[0]
    identity = sp.identity(size, format="csr")
    into, out = (sp.csr_matrix((np.ones(size), (perm, np.arange(size)))) for perm in (factor.perm_r, factor.perm_c))
    diagonal = sp.diags(1.0 / factor.U.diagonal(), format="csr")
    lower = _unit_inverse((factor.L - identity).tocsr(), into)
    return _without_noise((out.T @ _unit_inverse((diagonal @ factor.U - identity).tocsr(), diagonal @ lower)).tocsr())


def _unit_inverse(nilpotent: sp.csr_matrix, right: sp.csr_matrix) -> sp.csr_matrix:
    """(I + N)^-1 R by X = R - N X, which is exact after as many steps as the longest chain in N."""
    nilpotent.eliminate_zeros()
    solution = right
    while True:
        improved = (right - nilpotent @ solution).tocsr()
        if (improved != solution).nnz == 0:
            return improved
        solution = improved


def _without_noise(matrix: sp.csr_matrix) -> sp.csr_matrix:
    largest = float(abs(matrix).max()) if matrix.nnz else 0.0
    matrix.data[np.abs(matrix.data) <= NOISE * largest] = 0.0
    matrix.eliminate_zeros()
    return matrix


def _symmetric(pattern: Pattern, entries: sp.csr_matrix) -> tuple[Pattern, sp.csr_matrix]:
    """The mean with the transpose: rounding errors differ on the two sides of the diagonal."""
    size = max(pattern.shape[0], 1)
    here, there = pattern.cols * size + pattern.rows, pattern.rows * size + pattern.cols
    keys, place = np.unique(np.concatenate([here, there]), return_inverse=True)
    source = np.tile(np.arange(pattern.nnz), 2)
    mean = sp.csr_matrix((np.full(len(place), 0.5), (place, source)), shape=(len(keys), pattern.nnz))
    return Pattern(pattern.shape, keys % size, keys // size), (mean @ entries).tocsr()


def _constant(given: _Stage, r: sp.csr_matrix, offset: sp.csr_matrix) -> tuple[sp.csr_matrix, AffineProduct | None]:
    """r + offset'(q + P offset / 2): what of it is affine, and the products of factors that both depend on features."""
    slope = (given.q + 0.5 * given.P.at(offset)).tocsr()
    left, right = (np.diff(vector[:, :-1].tocsr().indptr) > 0 for vector in (offset, slope))
    both = np.flatnonzero(left & right)
    at_constant = np.where(left, 0.0, offset[:, [-1]].toarray()[:, 0])
    of_constant = np.where(left & ~right, slope[:, [-1]].toarray()[:, 0], 0.0)
    affine = r + sp.csr_matrix(at_constant) @ slope + sp.csr_matrix(of_constant) @ offset
    products = AffineProduct(affine_map(offset[both]), affine_map(slope[both])) if len(both) else None
    return affine.tocsr(), products


def _shown_rows(recovery: Recovery, given: _Stage, stage: _Stage) -> BoolArray:
    """Rows of a stage whose duals some output depends on, those through which duals are recovered included."""
    R_y, Ct = recovery.matrix[:, recovery.n :].tocsr(), stage.C.T.tocsr()
    W = product(R_y, stage.B.T)
    through = difference(product(R_y, Ct), product(W, product(given.A.constant.T, Ct)))
    varying = given.A.rows[np.diff(W.tocsc().indptr)[given.A.cols] > 0]
    shown: BoolArray = (through.getnnz(axis=0) > 0) | (Ct[varying].getnnz(axis=0) > 0)
    return shown


def _recovery(recovery: Recovery, given: _Stage, last: _Stage, offset: sp.csr_matrix) -> Recovery:
    """The outputs R_x x + R_y y of the given program as functions of (z, v) and the features.

    With W = R_y B', they are R_x x + R_y C'v - W (P x + q + A'C'v), of which only the rows of P and the columns of A
    that W asks for are kept.
    """
    T, C, n = last.T, last.C, recovery.n
    R_x, R_y = recovery.matrix[:, :n].tocsr(), recovery.matrix[:, n:].tocsr()
    W = product(R_y, last.B.T)
    Ct = C.T.tocsr()
    of_z = R_x @ T - W @ (given.P.constant @ T)
    of_v = R_y @ Ct - W @ (given.A.constant.T @ Ct)
    affine = (R_x @ offset - W @ (given.q + given.P.at(offset))).tocsr()
    asked = np.diff(W.tocsc().indptr) > 0
    P, A = np.flatnonzero(asked[given.P.rows]), np.flatnonzero(asked[given.A.cols])
    factor = sp.vstack([given.P.slopes[P], given.A.slopes[A]], "csr")
    point = sp.block_diag([T[given.P.cols[P]], Ct[given.A.rows[A]]], "csr")
    weight = -W.tocsc()[:, np.concatenate([given.P.rows[P], given.A.cols[A]])].tocsr()
    matrix = sp.hstack([of_z, of_v], "csr")
    for part in (matrix, affine):
        part.eliminate_zeros()
    direct = DirectTerm(affine_map(affine), weight, factor, point) if affine.nnz or factor.nnz else None
    return Recovery(recovery.outputs, matrix, T.shape[1], direct)
