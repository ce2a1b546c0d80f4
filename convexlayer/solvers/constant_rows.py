"""Rows that are zero at these parameters: constants, which some solvers do not survive.

They hold or they do not, whatever x is. ECOS ends the process on a program whose conic rows are all zero, and CVXOPT
fails where one equality is; so they are taken out before, and what is left is a program of its own.
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

__all__ = ["Rest"]

ROUNDING = 1e-9
"""By so much, relative to the largest entry of b (or to 1), a constant may miss its cone."""


@final
@dataclass(frozen=True, eq=False)
class Rest:
    """One element without the blocks of rows that are zero in A.

    Attributes:
        P: (n, n).
        q: (n,).
        A: of the rows that are left, (rows, n).
        b: theirs, (rows,).
        cones: theirs.
        rows: their positions.
        constant: b of the whole program, (m,).
        answer: that of the element, where nothing is left to be solved; else None.
    """

    P: sp.csc_matrix
    q: Array
    A: sp.csr_matrix
    b: Array
    cones: Cones
    rows: IndexArray
    constant: Array
    answer: ElementResult | None

    @staticmethod
    def of(program: ConeProgram, i: int) -> Rest:
        """What is left of element i."""
        structure, q, b = program.structure, program.q[i], program.b[i]
        P, A = structure.P.csc(program.P[i]), structure.A.csc(program.A[i]).tocsr()
        blocks = block_of_rows(structure.cones)
        filled = np.zeros(int(blocks[-1]) + 1 if len(blocks) else 0, dtype=bool)
        filled[blocks[np.unique(structure.A.rows[program.A[i] != 0.0])]] = True
        kept = filled[blocks]
        rows = np.flatnonzero(kept)
        rest = Rest(P, q, A[rows], b[rows], structure.cones.of_blocks(filled), rows, b, None)
        # Of a constant block b in K the distance from the cone is norm(Pi_{K*}(-b)), which is a ray if it is not 0.
        outside = product_cone(structure.cones).project_dual(np.where(kept, 0.0, -b)[None])[0]
        if np.abs(outside).max(initial=0.0) > ROUNDING * max(1.0, np.abs(b).max(initial=0.0)):
            return replace(rest, answer=rest._answer(Status.INFEASIBLE, np.full(len(q), np.nan), outside))
        if not len(rows) and not np.any(program.P[i]):
            x = -q / max(float(q @ q), np.finfo(float).tiny)
            word = Status.UNBOUNDED if np.any(q) else Status.OPTIMAL
            return replace(rest, answer=rest._answer(word, x, np.zeros(len(b))))
        return rest

    def completed(self, result: ElementResult) -> ElementResult:
        """The result of the whole element, from that of the rest: constants have no multiplier."""
        y, s = np.zeros(len(self.constant)), self.constant.copy()
        y[self.rows], s[self.rows] = result.y, result.s
        return replace(result, y=y, s=s)

    def _answer(self, word: Status, x: Array, y: Array) -> ElementResult:
        return ElementResult(x, y, self.constant, word, 0, 0.0)
