"""Presolve for solvers that fail on rows of zeros: removes blocks of rows that are zero in A at these parameters.

Such constraints do not depend on x: they are satisfied or violated. ECOS aborts the process if all conic rows are zero,
and CVXOPT fails if one equality is; so these rows are checked and removed before the solve.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np
import scipy.sparse as sp

from convexlayer.cones import product_cone
from convexlayer.program import Array, ConeProgram, Cones, IndexArray
from convexlayer.rays import block_of_rows
from convexlayer.solvers.base import ElementResult
from convexlayer.status import Status

__all__ = ["Presolved"]

ROUNDING = 1e-9
"""Largest violation of a constant constraint that counts as rounding, relative to max(1, norm(b)) (maximum norm)."""


@final
@dataclass(frozen=True, eq=False)
class Presolved:
    """One element without the blocks of rows that are zero in A.

    Attributes:
        P: (n, n).
        q: (n,).
        A: remaining rows of A, (rows, n).
        b: remaining entries of b, (rows,).
        cones: cones of the remaining rows.
        rows: indices of the remaining rows.
        constant: b of the whole program, (m,).
        result: result of the element if presolve determines it, else None.
    """

    P: sp.csc_matrix
    q: Array
    A: sp.csr_matrix
    b: Array
    cones: Cones
    rows: IndexArray
    constant: Array
    result: ElementResult | None

    @staticmethod
    def of(program: ConeProgram, i: int) -> Presolved:
        """Presolve element i."""
        structure, q, b = program.structure, program.q[i], program.b[i]
        P, A = structure.P.csc(program.P[i]), structure.A.csc(program.A[i]).tocsr()
        blocks = block_of_rows(structure.cones)
        filled = np.zeros(int(blocks[-1]) + 1 if len(blocks) else 0, dtype=bool)
        filled[blocks[np.unique(structure.A.rows[program.A[i] != 0.0])]] = True
        kept = filled[blocks]
        rows = np.flatnonzero(kept)
        presolved = Presolved(P, q, A[rows], b[rows], structure.cones.of_blocks(filled), rows, b, None)
        # A constant block requires b in K. Its violation is norm(Pi_{K*}(-b)), and the projection is a certificate.
        outside = product_cone(structure.cones).project_dual(np.where(kept, 0.0, -b)[None])[0]
        if np.abs(outside).max(initial=0.0) > ROUNDING * max(1.0, np.abs(b).max(initial=0.0)):
            return replace(presolved, result=presolved._result(Status.INFEASIBLE, np.full(len(q), np.nan), outside))
        if not len(rows) and not np.any(program.P[i]):
            x = -q / max(float(q @ q), np.finfo(float).tiny)
            status = Status.UNBOUNDED if np.any(q) else Status.OPTIMAL
            return replace(presolved, result=presolved._result(status, x, np.zeros(len(b))))
        return presolved

    def postsolve(self, result: ElementResult) -> ElementResult:
        """Postsolve: the result of the whole element, with multiplier 0 in the removed rows."""
        y, s = np.zeros(len(self.constant)), self.constant.copy()
        y[self.rows], s[self.rows] = result.y, result.s
        return replace(result, y=y, s=s)

    def _result(self, status: Status, x: Array, y: Array) -> ElementResult:
        return ElementResult(x, y, self.constant, status, 0, 0.0)
