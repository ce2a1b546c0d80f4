"""Parametric presolve: a smaller program of the same family, once, before anything is solved.

With constant sparse T, B and C >= 0,

    x = T z + B b,      y = C'v - B'(P x + q + A'C'v)

recover a solution (x, y) of the program from a solution (z, v) of

    P -> T'PT,   q -> T'(q + P B b),   r -> r + (B b)'(q + P B b / 2),   A -> C A T,   b -> C (b - A B b).

B is the inverse of the eliminated equality rows in the eliminated columns, so that A x + s = b holds there, and the
second formula is stationarity in those columns. All new data are affine in the features but r, which may hold products
of two (no solution depends on r, so its products stand beside the affine map). The duals of eliminated rows depend on
the features themselves, through P, q and A: see ``DirectTerm``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from convexlayer.canon.affine_map import AffineMap, AffineProduct
from convexlayer.canon.affine_matrix import AffineMatrix, affine_map, affine_vector, difference, product
from convexlayer.canon.elimination import pivots
from convexlayer.canon.parametric import ParametricProgram, PresolveRecord, Sizes
from convexlayer.canon.recovery import DirectTerm, Recovery
from convexlayer.canon.rows import without_bound_variables, without_needless_rows
from convexlayer.program import Array, Cones, IndexArray, Pattern, Structure

__all__ = ["presolved"]

NOISE = 1e-14
"""Entries of T and B this small relative to their row's largest are rounding errors."""


def presolved(program: ParametricProgram) -> ParametricProgram:
    """The reduced program, with the same parameters and outputs; the program itself where nothing is gained."""
    if program.source is not None:
        return program
    given = _Data.of(program)
    n, m = given.A.shape

    distinct = without_needless_rows(given.A, given.b, program.structure.cones)
    data = given.with_rows(distinct, given.A, given.b)
    chosen = pivots(data.P, data.A, data.q, data.b, data.cones)
    T, B, other_rows = _solved_for(data.A, chosen)
    B = (B @ distinct).tocsr()
    data = data.substituted(T, (B @ given.b).tocsr(), other_rows)
    shown = product(program.recovery.matrix[:, :n], T)
    bounds, columns = without_bound_variables(data.A, data.free & (shown.getnnz(axis=0) == 0), data.cones)
    z = sp.identity(data.A.shape[1], format="csr")[:, columns]
    data = data.with_rows(bounds, data.A.times(z), data.b)
    distinct_again = without_needless_rows(data.A, data.b, data.cones)
    data = data.with_rows(distinct_again, data.A, data.b)
    data = replace(data, P=data.P.times(z).transposed.times(z), q=data.q[columns])

    if data.A.shape == (n, m):
        return program
    C = (distinct_again @ bounds @ other_rows @ distinct).tocsr()
    reduced = _Reduction((T @ z).tocsr(), B, C)
    record = PresolveRecord(
        before=Sizes.of(program.structure),
        after=Sizes.of(structure := Structure(*data.patterns, data.cones)),
        solved_for=len(chosen),
        bound_variables=other_rows.shape[1] - len(chosen),
        needless_rows=0,
    )
    return replace(program, structure=structure, data=data.stacked())
