"""SCS (O'Donoghue et al. 2016): first-order operator splitting for every cone, quadratic objectives, large programs."""

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
)
from convexlayer.solvers.options import Clock, Options
from convexlayer.status import Status

__all__ = ["ScsSolver"]

STATUS = {1: Status.OPTIMAL, -1: Status.UNBOUNDED, -2: Status.INFEASIBLE}
"""Status by SCS's exit flag; all others but LIMITED are numerical errors."""

LIMITED = (2, -6, -7)
"""Exit flags of inaccurate results (solved, unbounded, infeasible) at the iteration or time limit."""

SETTINGS = (
    "linear_solver",
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
"""Default iteration limit; SCS's own is 100 000."""


@dataclass(frozen=True, eq=False)
class _State:
    """A structure in SCS's format: its cone dictionary, and P as its upper triangle."""

    cone: dict[str, Any]
    A_pattern: Pattern
    P_pattern: Pattern
    P_upper: IndexArray


@final
class ScsSolver(AbstractSolver):
    """One SCS workspace per element, elements on the thread pool (SCS releases the GIL); supports warm starts."""

    name = "scs"
    package = "scs"
    cones = frozenset({"zero", "nonnegative", "second_order", "psd", "exponential", "power"})
    quadratic = True
    supports_warm_start = True

    def installed(self) -> bool:
        """Whether SCS is installed."""
        return find_spec("scs") is not None

    def init(self, structure: Structure) -> _State:
        """Describe the cones; the row order is that of SCS. Programs without rows get the constraint 0 <= 1."""
        P, A = structure.P, structure.A
        upper = np.flatnonzero(P.rows <= P.cols)
        return _State(
            cone=_described(structure.cones) or {"l": 1},
            A_pattern=A if structure.m else Pattern((1, structure.n), A.rows, A.cols),
            P_pattern=Pattern(P.shape, P.rows[upper], P.cols[upper]),
            P_upper=upper,
        )

    def solve(
        self, state: _State, program: ConeProgram, options: Options, warm_start: Solution | None = None
    ) -> Solution:
        """Solve every element, starting from its warm start if that has a point."""
        import scs

        clock, settings = Clock(options.time_limit_s), _settings(options)
        m = program.structure.m
        b = program.b if m else np.ones((program.batch, 1))

        def one(i: int) -> ElementResult:
            if clock.expired:
                return not_started(program.structure)
            left = settings if clock.remaining_s is None else _settings(clock.applied(options))
            data = {"A": state.A_pattern.csc(program.A[i]), "b": b[i], "c": program.q[i]}
            if state.P_pattern.nnz:
                data["P"] = state.P_pattern.csc(program.P[i, state.P_upper])
            try:
                solver = scs.SCS(data, state.cone, **left)
                point = _start(warm_start, i) if m else {}
                answer = solver.solve(warm_start=bool(point), **point)
            except Exception as error:  # such as a P that is not positive semidefinite
                _check_accepted(settings)
                return failed_element(program.structure, f"SCS: {error}")
            info = answer["info"]
            status = STATUS.get(info["status_val"], Status.NUMERICAL_ERROR)
            if info["status_val"] in LIMITED:
                status = Status.TIME_LIMIT if "time" in info["status"] else Status.ITERATION_LIMIT
            return ElementResult(
                x=answer["x"],
                y=answer["y"][:m],
                s=answer["s"][:m],
                status=status,
                iterations=info["iter"],
                seconds=(info["setup_time"] + info["solve_time"]) / 1000.0,
            )

        stats = {"solver": self.name, "version": scs.__version__}
        return batch_solution(map_ranges(lambda part: [one(i) for i in part], program.batch), stats)


def _check_accepted(settings: dict[str, Any]) -> None:
    """Raise a SolverError if SCS rejects these settings for every program."""
    import scs

    least = smallest_program()
    data = {"A": least.structure.A.csc(least.A[0]), "b": least.b[0], "c": least.q[0]}
    try:
        scs.SCS(data, _described(least.structure.cones), **settings)
    except Exception as error:
        raise SolverError(f"SCS rejected its settings: {error}") from error


def _start(warm_start: Solution | None, i: int) -> dict[str, Any]:
    """The warm start of element i; empty if it has none (certificates and failures are not starting points)."""
    if warm_start is None or warm_start.status[i] in (Status.INFEASIBLE, Status.UNBOUNDED):
        return {}
    point = {"x": warm_start.x[i], "y": warm_start.y[i], "s": warm_start.s[i]}
    return point if all(np.all(np.isfinite(value)) for value in point.values()) else {}


def _settings(options: Options) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "verbose": False,
        "eps_abs": options.tol,
        "eps_rel": options.tol,
        "max_iters": options.max_iter or MAX_ITER,
    }
    if options.time_limit_s is not None:
        settings["time_limit_secs"] = options.time_limit_s
    return settings | options.raw("scs", SETTINGS)


def _described(cones: Cones) -> dict[str, Any]:
    sizes = {
        "z": cones.zero,
        "l": cones.nonnegative,
        "q": list(cones.second_order),
        "s": list(cones.psd),
        "ep": cones.exponential,
        "p": list(cones.power),
    }
    return {name: size for name, size in sizes.items() if size}
