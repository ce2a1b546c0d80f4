"""daqp (Arnstrom, Bemporad and Axehill, doi:10.1109/TAC.2022.3176430): a dual active-set method for dense QPs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from convexlayer.errors import SolverError
from convexlayer.program import Array, ConeProgram, Structure
from convexlayer.runtime import kernel_cache
from convexlayer.runtime.buffers import contiguous
from convexlayer.runtime.threads import map_ranges
from convexlayer.solution import Solution
from convexlayer.solvers.base import AbstractSolver
from convexlayer.solvers.dense_form import Dense, DenseLayout
from convexlayer.solvers.options import Options
from convexlayer.status import Status

__all__ = ["DaqpSolver"]

OPTIMAL = 1
"""daqp's exit flag of a solved problem."""

STATUS = {
    OPTIMAL: Status.OPTIMAL,
    -1: Status.INFEASIBLE,
    -3: Status.UNBOUNDED,
    -4: Status.ITERATION_LIMIT,
    -6: Status.INFEASIBLE,
    -7: Status.TIME_LIMIT,
}
"""Status by daqp's exit flag (-6: inconsistent equalities); all others are numerical errors."""

SETTINGS = (
    *("primal_tol", "dual_tol", "zero_tol", "pivot_tol", "progress_tol", "cycle_tol", "iter_limit", "fval_bound"),
    *("eps_prox", "eta_prox", "sing_tol", "refactor_tol", "time_limit", "eq_reduction"),
)
"""Raw options: daqp's settings."""

RECHECKED_FLAGS = (-1, -2, -6)
"""Exit flags after which the solve is repeated with a proximal term: infeasible, cycling, inconsistent equalities. In
the metric of an ill-conditioned P, rows that intersect in one point can look inconsistent."""

RECHECK_EPS_PROX = 1e-2
"""Weight of the proximal term (eps_prox) of such a repeated solve; P is scaled to a largest diagonal entry of 1."""

EPS_PROX = -1e-4
"""Weight of the proximal term (eps_prox) if daqp finds P singular (negative: only then). Smaller weights leave violated
rows, larger ones exceed daqp's iteration limit for unbounded programs."""

_Record = tuple[int, int, float]
"""Exit flag, iterations and seconds of an element."""

EQUALITY = 5
"""daqp's ``sense`` of an equality: a row that is active and immutable."""

TOL_SHARE = 0.1
"""Share of the tolerance passed to daqp, for violations and for proximal steps; the rest is left to the certification,
whose residuals are relative to other sizes than daqp's."""

MIN_TOL = 1e-11
"""Smallest tolerance passed to daqp, also relative to the equalities' b: redundant equalities differ by rounding."""

BLOCK_ENTRIES = 2**17
"""Dense entries of P and A converted at once: 1 MiB, which fits in the cache."""

INLINE_WORK = 60_000
"""Work n^2 (n + m) of a solve, about 30 microseconds, below which a batch is solved without the thread pool, whose
overhead would be larger."""


@dataclass(frozen=True, eq=False)
class _State:
    """A structure in daqp's format: bounds of the first variables, then general rows.

    Attributes:
        layout: index arrays of the conversion to the dense form.
        sense: daqp's sense of the bounds and of the general rows.
        stats: solver name and version, for every solution.
    """

    layout: DenseLayout
    sense: NDArray[np.intc]
    stats: dict[str, Any]


@final
class DaqpSolver(AbstractSolver):
    """One call of daqp per element, on the thread pool if solves take long enough (daqp releases the GIL).

    For strictly convex QPs, which it solves to machine precision; if P is singular, daqp uses proximal-point
    iterations, which converge to a solution of the same accuracy. Inequalities on one variable are passed as bounds,
    which cost daqp half as much.
    """

    name = "daqp"
    package = "daqp"
    cones = frozenset({"zero", "nonnegative"})
    quadratic = True
    fallback = "clarabel"
    supports_time_limit = False

    def installed(self) -> bool:
        """Whether daqp is installed."""
        return find_spec("daqp") is not None

    def init(self, structure: Structure) -> _State:
        """Divide the rows into bounds and general rows."""
        layout = DenseLayout.of(structure)
        bounded, inequalities = len(layout.bound_starts) - 1, len(layout.rows) - layout.zero
        sense = np.repeat([0, EQUALITY, 0], [bounded, layout.zero, inequalities]).astype(np.intc)
        return _State(layout, sense, {"solver": self.name, "version": version("daqp")})

    def solve(
        self, state: _State, program: ConeProgram, options: Options, warm_start: Solution | None = None
    ) -> Solution:
        """Solve every element; warm starts are ignored (a perfect one would save a quarter of the time at most)."""
        settings = _settings(options)
        batch, n, m = program.batch, program.structure.n, program.structure.m
        data = contiguous((program.P, program.q, program.A, program.b))
        point = np.empty((batch, n)), np.empty((batch, m)), np.empty((batch, m))
        size = max(1, BLOCK_ENTRIES // (n * (n + m)))

        def some(elements: range) -> list[_Record]:
            blocks = (range(i, min(i + size, elements.stop)) for i in elements[::size])
            return [record for block in blocks for record in _solve_block(state, data, block, settings, point)]

        records = some(range(batch)) if n * n * (n + m) < INLINE_WORK else map_ranges(some, batch)
        flags, iterations, seconds = zip(*records, strict=True)
        status = tuple(STATUS.get(flag, Status.NUMERICAL_ERROR) for flag in flags)
        return Solution(*point, status, np.array(iterations, dtype=np.int64), np.array(seconds), dict(state.stats))


def _solve_block(
    state: _State, data: tuple[Array, ...], block: range, settings: dict[str, Any], point: tuple[Array, ...]
) -> list[_Record]:
    """Solve a block of elements, with data (P, q, A, b), and write their rows of point = (x, y, s).

    daqp's tolerances are absolute, and it ignores rows that are small in the metric of P. So the objective is scaled by
    the largest diagonal entry of P, and each row by its norm.
    """
    import daqp

    layout, sense, first = state.layout, state.sense, block.start
    dense = Dense.empty(layout, len(block))
    _kernel("to_dense")(layout, *data, first, dense)
    answers = []
    try:
        for *element, largest in zip(dense.P, dense.q, dense.A, dense.upper, dense.lower, dense.largest, strict=True):
            chosen, min_tol = settings, MIN_TOL * float(largest)
            if settings["primal_tol"] < min_tol:
                chosen = settings | {"primal_tol": min_tol}
            answer = daqp.solve(*element, sense, **chosen)
            if answer[2] in RECHECKED_FLAGS:
                answer = daqp.solve(*element, sense, **chosen | {"eps_prox": RECHECK_EPS_PROX})
            answers.append(answer)
    except (TypeError, ValueError, OverflowError) as error:
        raise SolverError(f"daqp rejected its settings: {error}") from error

    found = np.array([answer[0] for answer in answers])
    multipliers = np.array([answer[3]["lam"] for answer in answers])
    solved = np.array([answer[2] == OPTIMAL for answer in answers])
    _kernel("from_dense")(layout, dense, data[2], data[3], found, multipliers, solved, first, *point)
    return [(flag, info["iterations"], info["setup_time"] + info["solve_time"]) for _, _, flag, info in answers]


def _kernel(name: str) -> Any:
    """A kernel, or its slow Python function if kernels are not compiled."""
    kernel = getattr(_kernels(), name)
    return kernel if kernel_cache.ready() else getattr(kernel, "py_func", kernel)


@cache
def _kernels() -> Any:
    """The kernel module, imported on demand because importing Numba takes half a second."""
    return import_module("convexlayer.solvers.kernels")


def _settings(options: Options) -> dict[str, Any]:
    if options.time_limit_s is not None:
        raise SolverError("solver 'daqp' has no time_limit_s here: omit it, or set daqp's time_limit in solver_options")
    settings: dict[str, Any] = {
        "primal_tol": max(TOL_SHARE * options.tol, MIN_TOL),
        "eta_prox": max(TOL_SHARE * options.tol, MIN_TOL),
        "eps_prox": EPS_PROX,
    }
    if options.max_iter is not None:
        settings["iter_limit"] = options.max_iter
    return settings | options.raw("daqp", SETTINGS)
