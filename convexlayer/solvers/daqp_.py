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
from convexlayer.runtime.buffers import as_contiguous_float64
from convexlayer.runtime.threads import map_ranges
from convexlayer.solution import Solution
from convexlayer.solvers.base import AbstractSolver
from convexlayer.solvers.dense_form import Dense, Places
from convexlayer.solvers.options import Options
from convexlayer.status import Status

__all__ = ["DaqpSolver"]

OPTIMAL = 1

STATUS = {
    OPTIMAL: Status.OPTIMAL,
    -1: Status.INFEASIBLE,
    -3: Status.UNBOUNDED,
    -4: Status.ITERATION_LIMIT,
    -6: Status.INFEASIBLE,
    -7: Status.TIME_LIMIT,
}
"""By daqp's exit flags (-6: the equalities contradict each other); what is missing is a numerical error."""

SETTINGS = (
    *("primal_tol", "dual_tol", "zero_tol", "pivot_tol", "progress_tol", "cycle_tol", "iter_limit", "fval_bound"),
    *("eps_prox", "eta_prox", "sing_tol", "refactor_tol", "time_limit", "eq_reduction"),
)

DOUBTFUL = (-1, -2, -6)
"""Flags that are not taken at their word: infeasible, cycling, contradicting equalities. In the metric of an
ill-conditioned P, rows that meet in one point look as if they contradicted each other."""

REGULARISED = 1e-2
"""Weight of the proximal term where a solve is repeated because of that; the largest diagonal entry of P is 1."""

SINGULAR = -1e-4
"""Weight of the proximal term where daqp finds P singular (negative: only there). Smaller ones leave violated rows
behind, larger ones need more steps than daqp allows where the program is unbounded."""

_Told = tuple[int, int, float]
"""Exit flag, iterations and seconds of an element."""

EQUALITY = 5
"""daqp's sense of a row that is active and stays so."""

FINEST = 1e-11
"""The finest tolerance asked of daqp: relative to the equalities' b, redundant ones are off by rounding."""

BLOCK_ENTRIES = 2**17
"""Entries of P and A that are made dense at once: a megabyte stays in the cache."""

INLINE_WORK = 60_000
"""n^2 (n + m), a measure of one solve, below which threads cost more than they save (30 microseconds)."""


@dataclass(frozen=True, eq=False)
class _State:
    """daqp's view of a structure: bounds of the first variables, then the rows that are no bounds.

    Attributes:
        places: where everything stands in the dense form.
        sense: of the bounded variables and the other rows.
        stats: what every solution says of the solver.
    """

    places: Places
    sense: NDArray[np.intc]
    stats: dict[str, Any]


@final
class DaqpSolver(AbstractSolver):
    """One call of daqp an element; on the thread pool where that takes long enough (daqp releases the GIL).

    Meant for strictly convex programs, which it solves to machine precision; where P is singular daqp adds proximal
    steps, which end in a solution that is as exact. Inequalities on one variable become bounds, which cost daqp half.
    """

    name = "daqp"
    package = "daqp"
    cones = frozenset({"zero", "nonnegative"})
    quadratic = True
    fallback = "clarabel"
    supports_time_limit = False

    def installed(self) -> bool:
        """Whether the package is there."""
        return find_spec("daqp") is not None

    def init(self, structure: Structure) -> _State:
        """Divide the rows into bounds and others."""
        places = Places.of(structure)
        bounded, inequalities = len(places.bound_starts) - 1, len(places.rows) - places.zero
        sense = np.repeat([0, EQUALITY, 0], [bounded, places.zero, inequalities]).astype(np.intc)
        return _State(places, sense, {"solver": self.name, "version": version("daqp")})

    def solve(
        self, state: _State, program: ConeProgram, options: Options, warm_start: Solution | None = None
    ) -> Solution:
        """Solve every element; warm starts are not used (a perfect one saves a quarter at most)."""
        settings = _settings(options)
        batch, n, m = program.batch, program.structure.n, program.structure.m
        data = tuple(map(as_contiguous_float64, (program.P, program.q, program.A, program.b)))
        point = np.empty((batch, n)), np.empty((batch, m)), np.empty((batch, m))
        size = max(1, BLOCK_ENTRIES // (n * (n + m)))

        def some(elements: range) -> list[_Told]:
            blocks = (range(i, min(i + size, elements.stop)) for i in elements[::size])
            return [told for block in blocks for told in _solve_block(state, data, block, settings, point)]

        told = some(range(batch)) if n * n * (n + m) < INLINE_WORK else map_ranges(some, batch)
        flags, iterations, seconds = zip(*told, strict=True)
        status = tuple(STATUS.get(flag, Status.NUMERICAL_ERROR) for flag in flags)
        return Solution(*point, status, np.array(iterations, dtype=np.int64), np.array(seconds), dict(state.stats))


def _solve_block(
    state: _State, data: tuple[Array, ...], block: range, settings: dict[str, Any], point: tuple[Array, ...]
) -> list[_Told]:
    """Solve a block of elements, of data P, q, A and b, into their rows of x, y and s.

    daqp's tolerances are absolute, and it ignores rows that are small in the metric of P. So the objective is divided
    by the largest diagonal entry of P, and the rows by their norms.
    """
    import daqp

    places, sense, first = state.places, state.sense, block.start
    dense = Dense.empty(places, len(block))
    _kernel("to_dense")(places, *data, first, dense)
    answers = []
    try:
        for *element, largest in zip(dense.P, dense.q, dense.A, dense.upper, dense.lower, dense.largest, strict=True):
            chosen, finest = settings, FINEST * float(largest)
            if settings["primal_tol"] < finest:
                chosen = settings | {"primal_tol": finest}
            answer = daqp.solve(*element, sense, **chosen)
            if answer[2] in DOUBTFUL:
                answer = daqp.solve(*element, sense, **chosen | {"eps_prox": REGULARISED})
            answers.append(answer)
    except (TypeError, ValueError, OverflowError) as error:
        raise SolverError(f"daqp refused its settings: {error}") from error

    found = np.array([answer[0] for answer in answers])
    multipliers = np.array([answer[3]["lam"] for answer in answers])
    solved = np.array([answer[2] == OPTIMAL for answer in answers])
    _kernel("from_dense")(places, dense, data[2], data[3], found, multipliers, solved, first, *point)
    return [(flag, info["iterations"], info["setup_time"] + info["solve_time"]) for _, _, flag, info in answers]


def _kernel(name: str) -> Any:
    """A compiled kernel; where kernels are not compiled, the same lines in Python, which are slow."""
    kernel = getattr(_kernels(), name)
    return kernel if kernel_cache.ready() else getattr(kernel, "py_func", kernel)


@cache
def _kernels() -> Any:
    """Imported when it is needed: numba takes half a second."""
    return import_module("convexlayer.solvers.kernels")


def _settings(options: Options) -> dict[str, Any]:
    if options.time_limit_s is not None:
        raise SolverError("solver 'daqp' has no time_limit_s here: leave it out, or give its own in solver_options")
    settings: dict[str, Any] = {
        "primal_tol": max(0.1 * options.tol, FINEST),
        "eta_prox": max(0.1 * options.tol, FINEST),
        "eps_prox": SINGULAR,
    }
    if options.max_iter is not None:
        settings["iter_limit"] = options.max_iter
    return settings | options.raw("daqp", SETTINGS)
