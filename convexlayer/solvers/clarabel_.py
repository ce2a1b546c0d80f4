"""Clarabel (Goulart and Chen 2024): interior-point method for every cone and quadratic objectives."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, final

import numpy as np

from convexlayer.errors import SolverError
from convexlayer.program import ConeProgram, Cones, IndexArray, Pattern, Structure
from convexlayer.runtime.threads import map_ranges
from convexlayer.solution import Solution
from convexlayer.solvers.base import (
    AbstractSolver,
    ElementResult,
    batch_solution,
    failed_element,
    not_started,
    smallest_program,
    upper_triangles,
)
from convexlayer.solvers.options import Clock, Options
from convexlayer.status import Status

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
"""Status by Clarabel's status; all others are numerical errors."""


@dataclass(frozen=True, eq=False)
class _State:
    """A structure in Clarabel's format: PSD rows permuted to upper triangles, P as its upper triangle."""

    cones: list[Any]
    rows: IndexArray
    back: IndexArray
    A_pattern: Pattern
    A_order: IndexArray
    P_pattern: Pattern
    P_upper: IndexArray


@final
class ClarabelSolver(AbstractSolver):
    """One Clarabel solver per element, elements on the thread pool, one thread each (Clarabel releases the GIL).

    Updating one solver object from element to element would save its set-up, a quarter of the time of a small program,
    but would make the result of an element depend on the previous ones.
    """

    name = "clarabel"
    package = "clarabel"
    cones = frozenset({"zero", "nonnegative", "second_order", "psd", "exponential", "power"})
    quadratic = True
    fallback = "batched"
    fallback_for_unproved = True

    def installed(self) -> bool:
        """Whether Clarabel is installed."""
        return find_spec("clarabel") is not None

    def init(self, structure: Structure) -> _State:
        """Permute the patterns and describe the cones."""
        rows = upper_triangles(structure.cones)
        back = np.argsort(rows)
        A, P = structure.A, structure.P
        moved = back[A.rows]
        order = np.lexsort((moved, A.cols))
        upper = np.flatnonzero(P.rows <= P.cols)
        return _State(
            cones=_described(structure.cones),
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
        """Solve every element; warm starts are ignored, as Clarabel does not support them."""
        import clarabel

        clock, settings = Clock(options.time_limit_s), _settings(options)
        P, A, b = program.P[:, state.P_upper], program.A[:, state.A_order], program.b[:, state.rows]

        def some(elements: range) -> list[ElementResult]:
            # Clarabel copies its arguments, so that one pair of matrices can be reused for all elements.
            P_matrix, A_matrix = state.P_pattern.csc(P[elements[0]]), state.A_pattern.csc(A[elements[0]])
            results = []
            for i in elements:
                if clock.expired:
                    results.append(not_started(program.structure))
                    continue
                P_matrix.data, A_matrix.data = P[i], A[i]
                left = settings if clock.remaining_s is None else _settings(clock.applied(options))
                try:
                    solver = clarabel.DefaultSolver(P_matrix, program.q[i], A_matrix, b[i], state.cones, left)
                    answer = solver.solve()
                except Exception as error:
                    _check_accepted(settings)
                    results.append(failed_element(program.structure, f"Clarabel: {error}"))
                    continue
                results.append(
                    ElementResult(
                        x=np.asarray(answer.x),
                        y=np.asarray(answer.z)[state.back],
                        s=np.asarray(answer.s)[state.back],
                        status=STATUS.get(str(answer.status), Status.NUMERICAL_ERROR),
                        iterations=answer.iterations,
                        seconds=answer.solve_time,
                    )
                )
            return results

        stats = {"solver": self.name, "version": clarabel.__version__}
        return batch_solution(map_ranges(some, program.batch), stats)


def _check_accepted(settings: Any) -> None:
    """Raise a SolverError if Clarabel rejects these settings for every program."""
    import clarabel

    least = smallest_program()
    P, A = least.structure.P.csc(least.P[0]), least.structure.A.csc(least.A[0])
    try:
        clarabel.DefaultSolver(P, least.q[0], A, least.b[0], _described(least.structure.cones), settings)
    except Exception as error:
        raise SolverError(f"Clarabel rejected its settings: {error}") from error


def _settings(options: Options) -> Any:
    import clarabel

    settings = clarabel.DefaultSettings()
    known = [name for name in dir(settings) if not name.startswith("_") and not callable(getattr(settings, name))]
    chosen: dict[str, Any] = {"verbose": False, "max_threads": 1}
    chosen |= dict.fromkeys(("tol_feas", "tol_gap_abs", "tol_gap_rel"), options.tol)
    if options.max_iter is not None:
        chosen["max_iter"] = options.max_iter
    if options.time_limit_s is not None:
        chosen["time_limit"] = options.time_limit_s
    for name, value in (chosen | options.raw("clarabel", known)).items():
        try:
            setattr(settings, name, value)
        except (TypeError, ValueError, OverflowError) as error:
            raise SolverError(f"Clarabel rejected {name} = {value!r}: {error}") from error
    return settings


def _described(cones: Cones) -> list[Any]:
    import clarabel

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
