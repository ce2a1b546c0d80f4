"""Clarabel (Goulart and Chen): interior point, every cone, quadratic objectives."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, final

import numpy as np

from convexlayer.program import ConeProgram, IndexArray, Pattern, Structure
from convexlayer.solution import Solution, Status
from convexlayer.solvers.base import AbstractSolver, ElementResult, batch_solution, svec_permutation
from convexlayer.solvers.options import Options
from convexlayer.solvers.pool import map_elements

__all__ = ["ClarabelSolver"]

STATUS = {
    "Solved": Status.OPTIMAL,
    "AlmostSolved": Status.OPTIMAL_INACCURATE,
    "PrimalInfeasible": Status.INFEASIBLE,
    "AlmostPrimalInfeasible": Status.INFEASIBLE,
    "DualInfeasible": Status.UNBOUNDED,
    "AlmostDualInfeasible": Status.UNBOUNDED,
    "MaxIterations": Status.ITERATION_LIMIT,
    "MaxTime": Status.TIME_LIMIT,
}


@dataclass(frozen=True, eq=False)
class _State:
    """Clarabel's view of a structure: PSD rows permuted to upper triangles, P as its upper triangle."""

    structure: Structure
    cones: list[Any]
    rows: IndexArray
    back: IndexArray
    A_pattern: Pattern
    A_order: IndexArray
    P_pattern: Pattern
    P_upper: IndexArray


@final
class ClarabelSolver(AbstractSolver):
    """One solver object an element, elements on the thread pool, one thread each (Clarabel releases the GIL)."""

    name = "clarabel"
    package = "clarabel"
    cones = frozenset({"zero", "nonnegative", "second_order", "psd", "exponential", "power"})
    quadratic = True

    def installed(self) -> bool:
        """Whether the package is there."""
        return find_spec("clarabel") is not None

    def init(self, structure: Structure) -> _State:
        """Permute the patterns and describe the cones."""
        rows = svec_permutation(structure.cones)
        back = np.argsort(rows)
        A, P = structure.A, structure.P
        moved = back[A.rows]
        order = np.lexsort((moved, A.cols))
        upper = np.flatnonzero(P.rows <= P.cols)
        return _State(
            structure=structure,
            cones=_cones(structure),
            rows=rows,
            back=back,
            A_pattern=Pattern(A.shape, moved[order], A.cols[order]),
            A_order=order,
            P_pattern=Pattern(P.shape, P.rows[upper], P.cols[upper]),
            P_upper=upper,
        )

    def solve(
        self, state: _State, program: ConeProgram, options: Options, warm_start: Solution | None = None
    ) -> Solution:
        """Solve every element; Clarabel cannot be warm-started."""
        import clarabel

        settings = _settings(options)
        P, A, b = program.P[:, state.P_upper], program.A[:, state.A_order], program.b[:, state.rows]

        def one(i: int) -> ElementResult:
            solver = clarabel.DefaultSolver(
                state.P_pattern.csc(P[i]), program.q[i], state.A_pattern.csc(A[i]), b[i], state.cones, settings
            )
            answer = solver.solve()
            back = state.back
            return ElementResult(
                x=np.asarray(answer.x),
                y=np.asarray(answer.z)[back],
                s=np.asarray(answer.s)[back],
                status=STATUS.get(str(answer.status), Status.NUMERICAL_ERROR),
                iterations=answer.iterations,
                seconds=answer.solve_time,
            )

        stats = {"solver": "clarabel", "version": clarabel.__version__}
        return batch_solution(map_elements(one, range(program.batch)), stats)


def _settings(options: Options) -> Any:
    import clarabel

    settings = clarabel.DefaultSettings()
    known = [name for name in dir(settings) if not name.startswith("_")]
    settings.verbose = False
    settings.max_threads = 1
    for name in ("tol_feas", "tol_gap_abs", "tol_gap_rel"):
        setattr(settings, name, options.tol)
    if options.max_iter is not None:
        settings.max_iter = options.max_iter
    if options.time_limit_s is not None:
        settings.time_limit = options.time_limit_s
    for name, value in options.raw("clarabel", dict.fromkeys(known)).items():
        setattr(settings, name, value)
    return settings


def _cones(structure: Structure) -> list[Any]:
    import clarabel

    cones = structure.cones
    described: list[Any] = []
    if cones.zero:
        described.append(clarabel.ZeroConeT(cones.zero))
    if cones.nonnegative:
        described.append(clarabel.NonnegativeConeT(cones.nonnegative))
    described += [clarabel.SecondOrderConeT(size) for size in cones.second_order]
    described += [clarabel.PSDTriangleConeT(side) for side in cones.psd]
    described += [clarabel.ExponentialConeT() for _ in range(cones.exponential)]
    described += [clarabel.PowerConeT(alpha) for alpha in cones.power]
    return described
