"""Parametric presolve: reduces the program once, at construction, for all values of the parameters.

With constant sparse T, B and C >= 0, the reduced program has the data

    P: T'PT,   q: T'(q + P B b),   r: r + (B b)'(q + P B b / 2),   A: C A T,   b: C (b - A B b)

and a solution (z, v) of the reduced program gives a solution of the original one:

    x = T z + B b,      y = C'v - B'(P x + q + A'C'v)

B is the inverse of the eliminated equality rows restricted to the eliminated columns: the first formula satisfies
A x + s = b in those rows, the second one stationarity in those columns. The reduced data are affine in the features
except for r, which may contain products of two features; the solution does not depend on r, so the products are kept
beside the affine map. The duals of eliminated rows depend directly on the features, through P, q and A: this is the
``DirectTerm`` of the recovery.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from convexlayer.canon.affine_map import AffineMap, AffineProduct
from convexlayer.canon.affine_matrix import AffineMatrix, affine_map, affine_vector
from convexlayer.canon.elimination import Pivot, TrackedNumber, select_pivots
from convexlayer.canon.parametric import ParametricProgram, PresolveRecord
from convexlayer.canon.recovery import DirectTerm, Recovery
from convexlayer.canon.rows import drop_bound_variables, drop_redundant_rows
from convexlayer.canon.tracked_matrix import (
    TrackedMatrix,
    add,
    columns_of_identity,
    identity,
    multiply,
    nothing,
    stacked,
    subtract,
    tracked,
)
from convexlayer.program import Cones, Pattern, Structure
from convexlayer.solution import BoolArray

__all__ = ["presolved"]


def presolved(program: ParametricProgram) -> ParametricProgram:
    """Reduce a program; parameters and outputs stay the same. Returns ``program`` itself if nothing can be reduced."""
    if program.presolve is not None:
        return program
    given = _Stage.of(program)
    m, n = given.A.shape
    recovery = program.recovery
    distinct = given.then(
        C=tracked(drop_redundant_rows(given.A, given.b, given.cones, _observed_rows(recovery, given, given)))
    )
    pivots = select_pivots(distinct.P, distinct.A, distinct.q, distinct.b, distinct.cones)
    solved = distinct.eliminate(pivots)
    observed = multiply(tracked(recovery.matrix[:, :n]), solved.T).used_columns
    C, columns = drop_bound_variables(solved.A, ~(observed | solved.in_objective), solved.cones)
    bounded = solved.then(C=tracked(C), T=columns_of_identity(solved.A.shape[1], columns))
    again = drop_redundant_rows(bounded.A, bounded.b, bounded.cones, _observed_rows(recovery, given, bounded))
    last = bounded.then(C=tracked(again))
    if last.A.shape == (m, n):
        return program
    offset = multiply(last.B, given.b)
    r, products = _constant(given, offset)
    structure, data = last.with_constant(r)
    record = PresolveRecord(
        source=program,
        eliminated_variables=len(pivots),
        bound_variables=solved.A.shape[1] - len(columns),
        redundant_rows=m - distinct.A.shape[0] + bounded.A.shape[0] - last.A.shape[0],
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
    """A partially reduced program, with the T, B and C that reduce the original program to it.

    ``q``, ``r`` and ``b`` are [slopes, constant], (n, features + 1), (1, features + 1) and (m, features + 1); ``r`` is
    that of the original program in all stages.
    """

    P: AffineMatrix
    q: TrackedMatrix
    r: TrackedMatrix
    A: AffineMatrix
    b: TrackedMatrix
    cones: Cones
    T: TrackedMatrix
    B: TrackedMatrix
    C: TrackedMatrix

    @staticmethod
    def of(program: ParametricProgram) -> _Stage:
        """The stage without reductions: T and C are identities, B is zero."""
        structure, data = program.structure, program.data
        whole = affine_vector(data)
        P, q, r, A, b = (whole.of_rows(np.arange(part.start, part.stop)) for part in program.parts)
        n, m = structure.n, structure.m
        return _Stage(
            P=AffineMatrix.of(structure.P, P),
            q=q,
            r=r,
            A=AffineMatrix.of(structure.A, A),
            b=b,
            cones=structure.cones,
            T=identity(n),
            B=nothing((n, m)),
            C=identity(m),
        )

    @property
    def in_objective(self) -> BoolArray:
        """Mask (n,) of the variables on which the objective depends."""
        return self.q.used_rows | (np.diff(self.P.support.indptr) > 0)

    def then(self, *, C: TrackedMatrix, T: TrackedMatrix | None = None, B: TrackedMatrix | None = None) -> _Stage:
        """Apply a further reduction (T, B, C) to this stage; at most one reduction of a sequence may have a B."""
        m, n = self.A.shape
        T = identity(n) if T is None else T
        if C.shape[0] == m and T.shape[1] == n:
            return self
        B = nothing((n, m)) if B is None else B
        offset = multiply(B, self.b)
        # The last old row that enters each new row decides the cone of the new row.
        last = np.maximum.reduceat(C.indices, C.indptr[:-1]) if C.shape[0] else C.indices
        zero = int(np.sum(last < self.cones.zero))
        nonnegative = int(np.sum(last < self.cones.zero + self.cones.nonnegative)) - zero
        return _Stage(
            P=self.P.times(T).transposed.times(T),
            q=multiply(T.transposed, add(self.q, self.P.matvec(offset))),
            r=self.r,
            A=self.A.times(T).transposed.times(C.transposed).transposed,
            b=multiply(C, subtract(self.b, self.A.matvec(offset))),
            cones=replace(self.cones, zero=zero, nonnegative=nonnegative),
            T=multiply(self.T, T),
            B=add(self.B, multiply(multiply(self.T, B), self.C)),
            C=multiply(C, self.C),
        )

    def eliminate(self, pivots: list[Pivot]) -> _Stage:
        """Solve the rows of the pivots for their columns and substitute.

        The pivots factor these rows of A as E = L U: L holds the multipliers, U the rows after elimination. With the
        eliminated columns V and the others Z, x_V = U_V^-1 (L^-1 b_E - U_Z z).
        """
        if not pivots:
            return self
        m, n = self.A.shape
        rows, V = (np.array([getattr(pivot, part) for pivot in pivots], dtype=np.int64) for part in ("row", "column"))
        Z = np.delete(np.arange(n), V)
        others = np.delete(np.arange(m), rows)
        L = _gathered([pivot.multipliers for pivot in pivots], len(pivots))
        U = _gathered([pivot.values for pivot in pivots], n)
        inverse_diagonal = _scaling([1.0 / pivot.values[pivot.column][0] for pivot in pivots])
        U_V, U_Z = (multiply(inverse_diagonal, multiply(U, columns_of_identity(n, part))) for part in (V, Z))
        nilpotent = subtract(U_V, identity(len(pivots)))
        right = multiply(inverse_diagonal, _unit_inverse(L, identity(len(pivots))))
        into_V = columns_of_identity(n, V)
        T = subtract(columns_of_identity(n, Z), multiply(into_V, _unit_inverse(nilpotent, U_Z)))
        B = multiply(multiply(into_V, _unit_inverse(nilpotent, right)), columns_of_identity(m, rows).transposed)
        return self.then(C=columns_of_identity(m, others).transposed, T=T, B=B)

    def with_constant(self, r: TrackedMatrix) -> tuple[Structure, AffineMap]:
        """The structure, and the affine map from features to (P, q, r, A, b)."""
        P_pattern, P = _symmetric(*self.P.entries())
        A_pattern, A = self.A.entries()
        return Structure(P_pattern, A_pattern, self.cones), affine_map(stacked([P, self.q, r, A, self.b]))


def _gathered(rows: list[dict[int, TrackedNumber]], width: int) -> TrackedMatrix:
    """Build a matrix from rows given as {column: number}."""
    indices = np.array([j for row in rows for j in row], dtype=np.int64)
    counts = [len(row) for row in rows]
    order = np.lexsort((indices, np.repeat(np.arange(len(rows)), counts)))
    data, bounds = (np.array([number[k] for row in rows for number in row.values()], dtype=float) for k in (0, 1))
    return TrackedMatrix((len(rows), width), np.cumsum([0, *counts]), indices[order], data[order], bounds[order])


def _scaling(diagonal: list[float]) -> TrackedMatrix:
    one = identity(len(diagonal))
    return replace(one, data=np.array(diagonal), bounds=np.abs(diagonal))


def _unit_inverse(nilpotent: TrackedMatrix, right: TrackedMatrix) -> TrackedMatrix:
    """Compute (I + N)^-1 R for nilpotent N by X <- R - N X, exact after k steps if N^k = 0."""
    solution = right
    while True:
        improved = subtract(right, multiply(nilpotent, solution))
        if improved.equals(solution):
            return improved
        solution = improved


def _symmetric(pattern: Pattern, entries: TrackedMatrix) -> tuple[Pattern, TrackedMatrix]:
    """Symmetrise to (P + P') / 2, because rounding errors differ on the two sides of the diagonal."""
    size = max(pattern.shape[0], 1)
    here, there = pattern.cols * size + pattern.rows, pattern.rows * size + pattern.cols
    keys, place = np.unique(np.concatenate([here, there]), return_inverse=True)
    source = np.tile(np.arange(pattern.nnz), 2)
    mean = sp.csr_matrix((np.full(len(place), 0.5), (place, source)), shape=(len(keys), pattern.nnz))
    return Pattern(pattern.shape, keys % size, keys // size), tracked((mean @ entries.values).tocsr())


def _constant(given: _Stage, offset: TrackedMatrix) -> tuple[TrackedMatrix, AffineProduct | None]:
    """r + offset'(q + P offset / 2), split into its affine part and the products of two feature-dependent factors."""
    if not len(offset.data):
        return given.r, None
    slope = (given.q.values + 0.5 * given.P.matvec(offset).values).tocsr()
    left, right = offset.varying_entries > 0, np.diff(slope[:, :-1].tocsr().indptr) > 0
    both = np.flatnonzero(left & right)
    at_constant = np.where(left, 0.0, offset.column(offset.shape[1] - 1)[0])
    of_constant = np.where(left & ~right, slope[:, [-1]].toarray()[:, 0], 0.0)
    affine = given.r.values + sp.csr_matrix(at_constant) @ slope + sp.csr_matrix(of_constant) @ offset.values
    products = AffineProduct(affine_map(offset.of_rows(both)), affine_map(tracked(slope[both]))) if len(both) else None
    return tracked(affine.tocsr()), products


def _observed_rows(recovery: Recovery, given: _Stage, stage: _Stage) -> BoolArray:
    """Mask of the rows of a stage on whose duals some output depends, directly or through recovered duals."""
    R_y, Ct = tracked(recovery.matrix[:, recovery.n :].tocsr()), stage.C.transposed
    W = multiply(R_y, stage.B.transposed)
    through = subtract(multiply(R_y, Ct), multiply(W, multiply(given.A.constant.transposed, Ct)))
    varying = given.A.rows[W.used_columns[given.A.cols]]
    observed: BoolArray = through.used_columns | Ct.of_rows(varying).used_columns
    return observed


def _recovery(recovery: Recovery, given: _Stage, last: _Stage, offset: TrackedMatrix) -> Recovery:
    """Express the outputs R_x x + R_y y of the original program by (z, v) and the features.

    With W = R_y B', the outputs are R_x x + R_y C'v - W (P x + q + A'C'v); only the rows of P and the columns of A
    that belong to nonzero columns of W are kept.
    """
    T, n = last.T.values, recovery.n
    P_0, A_0 = given.P.constant.values, given.A.constant.values
    R_x, R_y = recovery.matrix[:, :n].tocsr(), recovery.matrix[:, n:].tocsr()
    W = multiply(tracked(R_y), last.B.transposed).values
    Ct = last.C.transposed.values
    if not (W.nnz or len(offset.data)):  # nothing depends on the features beside (z, v)
        matrix = sp.hstack([R_x @ T, R_y @ Ct], "csr")
        matrix.sort_indices()
        return Recovery(recovery.outputs, matrix, T.shape[1])
    of_z = R_x @ T - W @ (P_0 @ T)
    of_v = R_y @ Ct - W @ (A_0.T @ Ct)
    affine = (R_x @ offset.values - W @ (given.q.values + given.P.matvec(offset).values)).tocsr()
    used = np.diff(W.tocsc().indptr) > 0
    P, A = np.flatnonzero(used[given.P.rows]), np.flatnonzero(used[given.A.cols])
    factor = sp.vstack([given.P.slopes.values[P], given.A.slopes.values[A]], "csr")
    point = sp.block_diag([T[given.P.cols[P]], Ct[given.A.rows[A]]], "csr")
    weight = -W.tocsc()[:, np.concatenate([given.P.rows[P], given.A.cols[A]])].tocsr()
    matrix = sp.hstack([of_z, of_v], "csr")
    for part in (matrix, affine):
        part.eliminate_zeros()
    direct = DirectTerm(affine_map(tracked(affine)), weight, factor, point) if affine.nnz or factor.nnz else None
    return Recovery(recovery.outputs, matrix, T.shape[1], direct)
