"""SCS (O'Donoghue et al.): first-order splitting, every cone, quadratic objectives, large problems."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, final

import numpy as np

from convexlayer.program import ConeProgram, IndexArray, Pattern, Structure
from convexlayer.solution import Solution, Status
from convexlayer.solvers.base import AbstractSolver, ElementResult, batch_solution
from convexlayer.solvers.options import Options
from convexlayer.solvers.pool import map_elements

__all__ = ["ScsSolver"]

STATUS = {
    1: Status.OPTIMAL,
    2: Status.OPTIMAL_INACCURATE,
    -1: Status.UNBOUNDED,
    -2: Status.INFEASIBLE,
    -6: Status.UNBOUNDED,
    -7: Status.INFEASIBLE,
}
"""By SCS's exit flag; what is missing is a numerical error."""

SETTINGS = (
    "use_indirect",
    "normalize",
    "scale",
    "adaptive_scale",
    "rho_x",
    "max_iters",
    "eps_abs",
    "eps_rel",
    "eps_infeas",
    "alpha",
    "time_limit_secs",
    "acceleration_lookback",
    "acceleration_interval",
)

MAX_ITER = 20_000
"""Iterations unless told otherwise; SCS's own default is too few for 1e-8."""


@dataclass(frozen=True, eq=False)
class _State:
    """SCS's view of a structure: its cone dictionary, and P as its upper triangle."""

    structure: Structure
    cone: dict[str, Any]
    P_pattern: Pattern
    P_upper: IndexArray


@final
class ScsSolver(AbstractSolver):
    """One workspace an element, elements on the thread pool (SCS releases the GIL); takes warm starts."""

    name = "scs"
    package = "scs"
    cones = frozenset({"zero", "nonnegative", "second_order", "psd", "exponential", "power"})
    quadratic = True

    def installed(self) -> bool:
        """Whether the package is there."""
        return find_spec("scs") is not None

    def init(self, structure: Structure) -> _State:
        """Describe the cones; rows are in SCS's own order already."""
        cones, P = structure.cones, structure.P
        sizes = {
            "z": cones.zero,
            "l": cones.nonnegative,
            "q": list(cones.second_order),
            "s": list(cones.psd),
            "ep": cones.exponential,
            "p": list(cones.power),
        }
        upper = np.flatnonzero(P.rows <= P.cols)
        present = {name: size for name, size in sizes.items() if size}
        return _State(structure, present, Pattern(P.shape, P.rows[upper], P.cols[upper]), upper)

    def solve(
        self, state: _State, program: ConeProgram, options: Options, warm_start: Solution | None = None
    ) -> Solution:
        """Solve every element, from the warm start if there is one."""
        import scs

        settings = _settings(options)

        def one(i: int) -> ElementResult:
            data = {"A": state.structure.A.csc(program.A[i]), "b": program.b[i], "c": program.q[i]}
            if state.P_pattern.nnz:
                data["P"] = state.P_pattern.csc(program.P[i, state.P_upper])
            solver = scs.SCS(data, state.cone, **settings)
            if warm_start is None:
                answer = solver.solve(warm_start=False)
            else:
                answer = solver.solve(warm_start=True, x=warm_start.x[i], y=warm_start.y[i], s=warm_start.s[i])
            info = answer["info"]
            status = STATUS.get(info["status_val"], Status.NUMERICAL_ERROR)
            if status is Status.OPTIMAL_INACCURATE:
                status = Status.TIME_LIMIT if "time" in info["status"] else Status.ITERATION_LIMIT
            return ElementResult(
                x=answer["x"],
                y=answer["y"],
                s=answer["s"],
                status=status,
                iterations=info["iter"],
                seconds=(info["setup_time"] + info["solve_time"]) / 1000.0,
            )

        stats = {"solver": "scs", "version": scs.__version__}
        return batch_solution(map_elements(one, range(program.batch)), stats)


def _settings(options: Options) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "verbose": False,
        "eps_abs": options.tol,
        "eps_rel": options.tol,
        "max_iters": options.max_iter or MAX_ITER,
    }
    if options.time_limit_s is not None:
        settings["time_limit_secs"] = options.time_limit_s
    return settings | options.raw("scs", dict.fromkeys(SETTINGS))
