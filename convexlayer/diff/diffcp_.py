"""The derivative of diffcp (Agrawal et al. 2019), the reference implementation for tests of the exact derivative.

diffcp supports neither quadratic objectives in its exact modes nor power cones. A quadratic objective is lifted to one
second-order cone: with P = F'F, minimise t + q'x subject to (t + 1, t - 1, sqrt(2) F x) in the cone. The derivatives
with respect to P and A follow from those with respect to q and b (``ProgramCotangent``). Programs with power cones
raise a DerivativeError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np
import scipy.sparse as sp

from convexlayer.certificate import ComplementaryPoint
from convexlayer.diff.base import (
    AbstractDifferentiator,
    SolutionCotangent,
    SolutionTangent,
    whole_point,
)
from convexlayer.diff.exact import RelativeChange
from convexlayer.diff.kkt_system import KKTFactor, KKTSystem
from convexlayer.diff.report import DerivativeReport
from convexlayer.errors import DerivativeError
from convexlayer.program import Array, ConeProgram, ProgramCotangent, Structure
from convexlayer.solution import Solution

__all__ = ["DiffcpDifferentiator"]

WARM_START_EPS = 1e-9
"""Tolerance of diffcp's solver, loose enough that it accepts our solution as its starting point without a step."""


@final
class DiffcpDifferentiator(AbstractDifferentiator):
    """diffcp's dense-mode derivative, one element at a time; diffcp is warm-started at our solution."""

    def __init__(
        self,
        system: KKTSystem,
        program: ConeProgram,
        solution: Solution,
        *,
        factor: KKTFactor | None = None,
        point: ComplementaryPoint | None = None,
        relative: RelativeChange | None = None,
    ) -> None:
        """Check that diffcp is installed and supports the cones.

        ``system``, ``factor`` and ``relative`` are not used. diffcp does not report whether its answer is unique.

        Raises:
            DerivativeError: diffcp is not installed, or the program has power cones.
        """
        if program.structure.cones.power:
            raise DerivativeError('diffcp does not support power cones: use derivative="exact"')
        try:
            import diffcp
        except ImportError as error:
            raise DerivativeError("derivative='diffcp' needs the package diffcp: pip install diffcp") from error
        self._diffcp = diffcp
        self._program = program
        self._solution = solution
        self._point = point or solution.complementary(program)
        self._maps: dict[int, tuple[Any, Any]] = {}

    def vjp(
        self,
        cotangent: SolutionCotangent,
        *,
        observe: Callable[[ProgramCotangent], Array] | None = None,
    ) -> tuple[ProgramCotangent, DerivativeReport]:
        """Compute the program cotangent by diffcp's adjoint derivative."""
        program = self._program
        before, extra = _lifted_rows(program.structure)
        x, y = self._solution.x, self._solution.y
        gradient = ProgramCotangent(x, y, np.zeros_like(x), np.zeros_like(y))
        at_s = np.zeros_like(cotangent.y) if cotangent.s is None else cotangent.s
        for i in range(program.batch):
            dy, ds = (np.insert(v[i], before, np.zeros(extra)) if extra else v[i] for v in (cotangent.y, at_s))
            dx = np.append(cotangent.x[i], np.zeros(1 if extra else 0))
            size = _size(dx, dy, ds)
            _, db, dc = (size * part for part in self._at(i)[1](dx / size, dy / size, ds / size))
            gradient.l[i] = -dc[: program.structure.n]
            gradient.v[i] = np.delete(db, slice(before, before + extra))
        return gradient, self._report()

    def jvp(
        self, tangent: ConeProgram, *, observe: Callable[[SolutionTangent], Array] = whole_point
    ) -> tuple[SolutionTangent, DerivativeReport]:
        """Compute the solution tangent by diffcp's derivative; dP acts like the change dP x of q."""
        program = self._program
        before, extra = _lifted_rows(program.structure)
        dq = tangent.q + program.structure.P.matvec(tangent.P, self._solution.x)
        x, y, s = (np.zeros_like(v) for v in (self._solution.x, self._solution.y, self._solution.s))
        for i in range(program.batch):
            dA = program.structure.A.csc(tangent.A[i])
            db, dc = tangent.b[i], dq[i]
            if extra:
                rows = sp.csc_matrix((extra, program.structure.n))
                dA = sp.vstack([dA[:before], rows, dA[before:]])
                dA = sp.hstack([dA, sp.csc_matrix((dA.shape[0], 1))]).tocsc()
                db, dc = np.insert(db, before, np.zeros(extra)), np.append(dc, 0.0)
            size = _size(dA.data, db, dc)
            dx, dy, ds = (size * part for part in self._at(i)[0](dA / size, db / size, dc / size))
            kept = np.delete(np.arange(len(dy)), slice(before, before + extra))
            x[i], y[i], s[i] = dx[: program.structure.n], dy[kept], ds[kept]
        return SolutionTangent(x, y, s), self._report()

    def objective_report(self, *, observe: Callable[[SolutionTangent], Array]) -> DerivativeReport:
        """Report the accuracy of the solution only."""
        return self._report()

    def _at(self, i: int) -> tuple[Any, Any]:
        """diffcp's derivative and adjoint at element i, cached."""
        if i not in self._maps:
            A, b, c, cones, point = _lift(self._program, self._solution, i)
            try:
                *_, derivative, adjoint = self._diffcp.solve_and_derivative(
                    A, b, c, cones, warm_start=point, mode="dense", solve_method="SCS", eps=WARM_START_EPS, max_iters=20
                )
            except self._diffcp.SolverError as error:
                raise DerivativeError(
                    f"diffcp did not accept the solution of element {i}: {error}; use derivative='exact'"
                ) from error
            self._maps[i] = derivative, adjoint
        return self._maps[i]

    def _report(self) -> DerivativeReport:
        """Build the report from the margin and backward error; diffcp does not report on its linear systems."""
        unknown = np.zeros(self._program.batch)
        certain = np.zeros(len(unknown), dtype=bool)
        return DerivativeReport.from_measures(unknown, self._point.margin, unknown, certain, self._point.backward)


def _size(*vectors: Array) -> float:
    """The largest magnitude, or 1 if all entries are zero; scales inputs because diffcp drops entries below 1e-8."""
    return max(float(np.max(np.abs(vector), initial=0.0)) for vector in vectors) or 1.0


def _lifted_rows(structure: Structure) -> tuple[int, int]:
    """First row and number of rows of the lifted quadratic objective."""
    before = structure.cones.zero + structure.cones.nonnegative
    return before, structure.n + 2 if structure.P.nnz else 0


def _lift(
    program: ConeProgram, solution: Solution, i: int
) -> tuple[sp.csc_matrix, Array, Array, dict[str, Any], tuple[Array, Array, Array]]:
    """Convert one element to diffcp's form (A, b, c, cones), with the warm start (x, y, s)."""
    structure, cones = program.structure, program.structure.cones
    A, b, c = structure.A.csc(program.A[i].copy()), program.b[i], program.q[i]  # diffcp drops zeros from A in place
    x, y, s = solution.x[i], solution.y[i], solution.s[i]
    second_order = list(cones.second_order)
    before, extra = _lifted_rows(structure)
    if extra:
        eigenvalues, vectors = np.linalg.eigh(structure.P.dense(program.P[i : i + 1])[0])
        F = np.sqrt(2.0 * np.maximum(eigenvalues, 0.0))[:, None] * vectors.T
        t = 0.25 * float(np.sum((F @ x) ** 2))
        slack = np.concatenate([[t + 1.0, t - 1.0], F @ x])
        dual = 0.5 * np.concatenate([[t + 1.0, 1.0 - t], -(F @ x)])
        rows = sp.vstack([sp.csc_matrix((2, structure.n)), sp.csc_matrix(-F)])
        column = np.zeros((structure.m + extra, 1))
        column[before : before + 2] = -1.0
        A = sp.hstack([sp.vstack([A[:before], rows, A[before:]]), sp.csc_matrix(column)]).tocsc()
        b = np.insert(b, before, np.concatenate([[1.0, -1.0], np.zeros(structure.n)]))
        c = np.append(c, 1.0)
        x, y, s = np.append(x, t), np.insert(y, before, dual), np.insert(s, before, slack)
        second_order.insert(0, extra)
    dims = {"z": cones.zero, "l": cones.nonnegative, "q": second_order, "s": list(cones.psd), "ep": cones.exponential}
    return A, b, c, {name: size for name, size in dims.items() if size}, (x, y, s)
