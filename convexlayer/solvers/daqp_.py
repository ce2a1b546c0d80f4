"""daqp (Arnstrom, Bemporad and Axehill, doi:10.1109/TAC.2022.3176430): a dual active-set method for dense QPs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from convexlayer.errors import SolverError
from convexlayer.pool import map_ranges
from convexlayer.program import Array, ConeProgram, IndexArray, Pattern, Structure, max_norm
from convexlayer.solution import Solution, Status
from convexlayer.solvers.base import AbstractSolver
from convexlayer.solvers.options import Options

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

EQUALITY = 5
"""daqp's sense of a row that is active and stays so."""

FINEST = 1e-11
"""The finest tolerance asked of daqp: relative to the equalities' b, redundant ones are off by rounding."""

BLOCK_ENTRIES = 2**17
"""Entries of P and A that are made dense at once: a megabyte stays in the cache."""

INLINE_WORK = 60_000
"""n^2 (n + m), a measure of one solve, below which threads cost more than they save (30 microseconds)."""


@dataclass(frozen=True, eq=False)
class _Dense:
    """Where the stored entries of a pattern go in dense matrices, row by row."""

    shape: tuple[int, int]
    stored: IndexArray
    places: IndexArray

    @staticmethod
    def of(pattern: Pattern, rows: IndexArray, cols: IndexArray) -> _Dense:
        """The submatrix of these rows and columns, in this order."""
        row_place, col_place = np.full(pattern.shape[0], -1), np.full(pattern.shape[1], -1)
        row_place[rows], col_place[cols] = np.arange(len(rows)), np.arange(len(cols))
        places = np.where(row_place >= 0, row_place * len(cols), -len(cols))[pattern.rows] + col_place[pattern.cols]
        stored = np.argsort(places, kind="stable")
        stored = stored[np.searchsorted(places[stored], 0) :]
        return _Dense((len(rows), len(cols)), stored, places[stored])

    def __call__(self, values: Array) -> Array:
        """Values (B, nnz) -> (B, rows, columns)."""
        size = self.shape[0] * self.shape[1]
        dense = values.take(self.stored, axis=1)
        if len(self.places) < size:
            entries, dense = dense, np.zeros((values.shape[0], size))
            dense[:, self.places] = entries
        return dense.reshape(values.shape[0], *self.shape)


@dataclass(frozen=True, eq=False)
class _Bounds:
    """Inequalities with one stored entry: a x_j <= b bounds x_j from above, or from below where a < 0.

    Attributes:
        rows: the rows, ordered by variable, (k,).
        entries: their entries among the values of A, (k,).
        starts: where the rows of each bounded variable start.
        variable: for each row, which of the bounded variables it bounds, (k,).
    """

    rows: IndexArray
    entries: IndexArray
    starts: IndexArray
    variable: IndexArray

    def limits(self, a: Array, b: Array) -> tuple[Array, Array]:
        """What each row leaves to its variable: lower and upper limits (B, k); nothing where 0 <= b is false."""
        if not len(self.rows):
            return b, b
        with np.errstate(divide="ignore", invalid="ignore"):
            limit = b / a
        upper = np.where(a > 0, limit, np.where((a == 0) & (b < 0), -np.inf, np.inf))
        return np.where(a < 0, limit, -np.inf), upper

    def duals(self, a: Array, lower: Array, upper: Array, multipliers: Array) -> Array:
        """The duals of the rows, of the multipliers of their variables' bounds (negative at lower ones).

        Rows that bind at the same point share the multiplier evenly.
        """
        if not len(self.rows):
            return multipliers
        multiplier = multipliers[:, self.variable]
        least, most = (limits[:, self.variable] for limits in self.tightest(lower, upper))
        binding = np.where(multiplier > 0, upper == most, lower == least) & (multiplier * a > 0)
        count = np.add.reduceat(binding, self.starts, axis=1, dtype=np.int64)[:, self.variable]
        return np.divide(multiplier, a * count, out=np.zeros_like(a), where=binding)

    def tightest(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """The bounds of each bounded variable, of the limits that its rows set."""
        return np.maximum.reduceat(lower, self.starts, axis=1), np.minimum.reduceat(upper, self.starts, axis=1)


@dataclass(frozen=True, eq=False)
class _State:
    """daqp's view of a structure: bounds of the first variables, then the rows that are no bounds.

    Attributes:
        bounds: the rows that are bounds.
        variables: the order of the variables: bounded ones first.
        variables_back: the way back.
        rows: the other rows.
        rows_back: the way back from the bounds' rows and then the others.
        sense: of the bounded variables and the other rows.
        diagonal: the diagonal's entries among the values of P.
        P: in that order.
        A: the other rows.
        version: daqp's.
    """

    bounds: _Bounds
    variables: IndexArray
    variables_back: IndexArray
    rows: IndexArray
    rows_back: IndexArray
    sense: NDArray[np.intc]
    diagonal: IndexArray
    P: _Dense
    A: _Dense
    version: str


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
    deputy = "clarabel"
    timed = False

    def installed(self) -> bool:
        """Whether the package is there."""
        return find_spec("daqp") is not None

    def init(self, structure: Structure) -> _State:
        """Divide the rows into bounds and others."""
        A, zero = structure.A, structure.cones.zero
        single = np.bincount(A.rows, minlength=structure.m) == 1
        single[:zero] = False
        entries = np.flatnonzero(single[A.rows])
        bounded, starts, variable = np.unique(A.cols[entries], return_index=True, return_inverse=True)
        variables = np.concatenate([bounded, np.setdiff1d(np.arange(structure.n), bounded)])
        rows = np.flatnonzero(~single)
        return _State(
            bounds=_Bounds(A.rows[entries], entries, starts, variable),
            variables=variables,
            variables_back=np.argsort(variables),
            rows=rows,
            rows_back=np.argsort(np.concatenate([A.rows[entries], rows])),
            sense=np.repeat([0, EQUALITY, 0], [len(bounded), zero, len(rows) - zero]).astype(np.intc),
            diagonal=np.flatnonzero(structure.P.rows == structure.P.cols),
            P=_Dense.of(structure.P, variables, variables),
            A=_Dense.of(A, rows, variables),
            version=version("daqp"),
        )

    def solve(
        self, state: _State, program: ConeProgram, options: Options, warm_start: Solution | None = None
    ) -> Solution:
        """Solve every element; warm starts are not used (a perfect one saves a quarter at most)."""
        settings = _settings(options)
        n, m = program.structure.n, program.structure.m
        size = max(1, BLOCK_ENTRIES // (n * (n + m)))

        def some(elements: range) -> list[Solution]:
            starts = range(elements.start, elements.stop, size)
            blocks = (program.select(slice(i, min(i + size, elements.stop))) for i in starts)
            return [_solved(state, block, settings) for block in blocks]

        if n * n * (n + m) < INLINE_WORK:
            return _joined(some(range(program.batch)))
        return _joined(map_ranges(some, program.batch))


def _solved(state: _State, program: ConeProgram, settings: dict[str, Any]) -> Solution:
    """Solve a block of elements.

    daqp's tolerances are absolute, and it ignores rows that are small in the metric of P. So the objective is divided
    by the largest diagonal entry of P, and the rows by their norms.
    """
    import daqp

    zero, bounds = program.structure.cones.zero, state.bounds
    k = len(bounds.starts)

    curvature = np.max(program.P.take(state.diagonal, axis=1), axis=1, initial=0.0)
    weight = np.where(curvature > 0, curvature, 1.0)[:, None]
    P, A = state.P(program.P / weight), state.A(program.A)
    norms = np.sqrt(np.einsum("bij,bij->bi", A, A))
    norms[norms == 0] = 1.0
    A /= norms[:, :, None]
    q = program.q.take(state.variables, axis=1) / weight
    b = program.b.take(state.rows, axis=1) / norms
    a, bound = program.A.take(bounds.entries, axis=1), program.b.take(bounds.rows, axis=1)
    limits = bounds.limits(a, bound)
    lower, upper = (np.concatenate([tightest, b], axis=1) for tightest in bounds.tightest(*limits))
    lower[:, k + zero :] = -np.inf
    finest = (FINEST * max_norm(b[:, :zero])).tolist()
    answers = []
    try:
        for *element, least in zip(P, q, A, upper, lower, finest, strict=True):
            chosen = settings | {"primal_tol": max(settings["primal_tol"], least)}
            answer = daqp.solve(*element, state.sense, **chosen)
            if answer[2] in DOUBTFUL:
                answer = daqp.solve(*element, state.sense, **chosen | {"eps_prox": REGULARISED})
            answers.append(answer)
    except (TypeError, ValueError, OverflowError) as error:
        raise SolverError(f"daqp refused its settings: {error}") from error

    flags = [answer[2] for answer in answers]
    failed = [i for i, flag in enumerate(flags) if flag != OPTIMAL]
    found = np.array([answer[0] for answer in answers])
    multipliers = np.array([answer[3]["lam"] for answer in answers])
    found[failed] = multipliers[failed] = 0.0  # daqp returns memory that it did not write
    multipliers *= weight
    duals = (bounds.duals(a, *limits, multipliers[:, :k]), multipliers[:, k:] / norms)
    slacks = (bound - a * found[:, bounds.variable], (b - np.einsum("bij,bj->bi", A, found)) * norms)
    x = found.take(state.variables_back, axis=1)
    y, s = (np.concatenate(parts, axis=1).take(state.rows_back, axis=1) for parts in (duals, slacks))
    np.maximum(y[:, zero:], 0.0, out=y[:, zero:])
    s[:, :zero] = 0.0
    s[:, zero:] = np.where(y[:, zero:] > 0, 0.0, np.maximum(s[:, zero:], 0.0))
    x[failed] = y[failed] = s[failed] = np.nan
    return Solution(
        x=x,
        y=y,
        s=s,
        status=tuple(STATUS.get(flag, Status.NUMERICAL_ERROR) for flag in flags),
        iterations=np.array([answer[3]["iterations"] for answer in answers], dtype=np.int64),
        seconds=np.array([answer[3]["setup_time"] + answer[3]["solve_time"] for answer in answers]),
        stats={"solver": DaqpSolver.name, "version": state.version},
    )


def _joined(blocks: list[Solution]) -> Solution:
    """The solutions of consecutive blocks as one."""
    if len(blocks) == 1:
        return blocks[0]
    parts = {
        name: np.concatenate([getattr(block, name) for block in blocks])
        for name in ("x", "y", "s", "iterations", "seconds")
    }
    return Solution(**parts, status=sum((block.status for block in blocks), ()), stats=blocks[0].stats)


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
