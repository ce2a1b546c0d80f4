"""Scaled degenerate programs: a derivative reported ok must be right, and none may be if it does not exist."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.scales.degenerate_families import FAMILIES, Degenerate
from benchmarks.scales.plan import Plan
from benchmarks.scales.programs import (
    DATA,
    Programs,
    assembled,
    derivative,
    newton,
    parametric,
    pull,
    stacked,
    value_gradient,
)
from benchmarks.scales.queries import AbstractQuery, Forward, Reverse, Value, answer
from benchmarks.scales.table import Count, table
from benchmarks.scales.units import units
from convexlayer.errors import SolverError
from convexlayer.layers.solution_map import SolutionMap
from convexlayer.program import Array
from convexlayer.solution import BoolArray
from convexlayer.solvers.registry import available

__all__ = ["FAMILIES", "RANGES", "derivatives", "draw", "measure", "queries", "table", "unique", "visible_outputs"]

RANGES = (0.0, 2.0, 4.0, 6.0)
"""Default values of k; units lie in 10^-k..10^k."""

LIMITS = {"highs": {"time_limit_s": 5.0}}
"""Options of solvers that may not terminate: the active-set method of HiGHS cycles on a few of these programs."""

NEAR = 1e-9
"""Standard deviation of the random perturbations of w that sample D on the sides of a discontinuity."""

SINGULAR = 1e-7
"""Relative tolerance for zero singular values and null-space components; exact zeros are at rounding error."""


SAME = 1e-5
"""Largest difference of gradients that agree, whose sampled points are NEAR each other; entries are near 1."""


def measure(plan: Plan) -> Iterator[Count]:
    """One count per family, range and solver; by default for all installed solvers that support the family."""
    chosen = [family for family in FAMILIES if plan.wants(family.name)]
    ranges = plan.ranges or RANGES
    draws = math.ceil(plan.draws / max(len(chosen) * len(ranges), 1))
    solvers = plan.solvers or ("auto", *(info.name for info in available() if info.installed))
    for family in chosen:
        programs = draw(family, draws, seed=plan.seed)
        compiled = parametric(programs, visible_outputs(family, programs), duals=family.duals)
        all_queries = queries(family, programs, seed=plan.seed)
        for solver in solvers:
            try:
                options = {**LIMITS.get(solver, {}), **plan.options}
                solution_map = SolutionMap(compiled, solver=solver, options=options)
            except SolverError:
                continue
            for k in ranges:
                yield _counted(
                    Count("degenerate", family.name, k, solver), solution_map, family, programs, all_queries, plan
                )


def _counted(
    count: Count,
    solution_map: SolutionMap,
    family: Degenerate,
    programs: Programs,
    all_queries: Sequence[AbstractQuery],
    plan: Plan,
) -> Count:
    scales = units(programs, count.k, seed=plan.seed)
    for start in range(0, programs.batch, plan.batch):
        index = slice(start, start + plan.batch)
        outcome = answer(
            solution_map,
            programs.select(index),
            scales.select(index),
            [query.select(index) for query in all_queries],
            visible=visible_outputs(family, programs),
            duals=family.duals,
            ambiguous=family.ambiguous,
        )
        count.add(outcome, show=plan.show)
    return count


def visible_outputs(family: Degenerate, programs: Programs) -> tuple[int, ...]:
    """Indices of the variables that are outputs."""
    return family.visible or tuple(range(programs.x.shape[1]))


def draw(family: Degenerate, batch: int, *, seed: int) -> Programs:
    """Draw programs of a family."""
    rng = np.random.default_rng([seed, *family.name.encode()])
    made = [tuple(part[None] for part in family.make(rng)) for _ in range(batch)]
    return stacked([assembled(P, A, x, w, family.cones) for P, A, x, w in made])


def queries(family: Degenerate, programs: Programs, *, seed: int) -> list[AbstractQuery]:
    """The queries of the family, with the true derivatives where they exist."""
    rng = np.random.default_rng([seed, 3, *family.name.encode()])
    size = len(visible_outputs(family, programs)) + (programs.w.shape[1] if family.duals else 0)
    units_of_x = np.broadcast_to(np.eye(size)[:, None], (size, programs.batch, size))
    found = list[AbstractQuery]()
    for query in family.derivatives:
        at = DATA.index(query.wrt)
        weights = [rng.normal(size=(programs.batch, size))] if query.of is None else [units_of_x[i] for i in query.of]
        for weight in weights:
            gradient = derivatives(family, programs, weight, query.wrt)[0]
            found.append(Reverse((query.wrt,), weight, gradient, query.exists))
        if query.of is None:
            tangent = rng.normal(size=programs.theta()[at].shape)
            rows = [derivatives(family, programs, weight, query.wrt)[0] for weight in units_of_x]
            moved = np.stack([np.sum(row * tangent, axis=1) for row in rows], axis=1)
            found.append(Forward([tangent if i == at else None for i in range(len(DATA))], moved, query.exists))
    values = dict(zip(DATA, value_gradient(programs), strict=True))
    return [*found, *(Value((wrt,), values[wrt], wrt in family.value) for wrt in ("q", "b"))]


def derivatives(
    family: Degenerate, programs: Programs, weight: Array, wrt: str, *, samples: int = 1, seed: int = 0
) -> tuple[Array, Array]:
    """Gradients (B, M) by minimum-norm solutions at points near w, and whether they are the derivative, (B,).

    They are if, for all sampled D near w, N'v = c has a solution, all directions of the parameters are in the range of
    N, and the gradients agree.
    """
    rng, (batch, n) = np.random.default_rng(seed), programs.x.shape
    visible = list(visible_outputs(family, programs))
    exists, gradients = np.ones(batch, dtype=bool), list[Array]()
    for _ in range(samples):
        D = derivative(programs.cones, programs.w + NEAR * rng.normal(size=programs.w.shape))
        c = np.zeros((batch, n + programs.w.shape[1]))
        c[:, visible] = weight[:, : len(visible)]
        if family.duals:
            c[:, n:] = np.einsum("bij,bj->bi", D, weight[:, len(visible) :])
        U, sizes, Vt = np.linalg.svd(newton(programs, D))  # N = U S V', so v = U S^-1 V'c
        zero = sizes <= SINGULAR * sizes[:, :1]
        coordinates = np.einsum("bij,bj->bi", Vt, c)
        exists &= np.max(np.abs(np.where(zero, coordinates, 0.0)), axis=1) < SINGULAR
        v = np.einsum("bij,bj->bi", U, np.where(zero, 0.0, coordinates / np.where(zero, 1.0, sizes)))
        gradients.append(pull(programs, v)[DATA.index(wrt)])
        for column in range(U.shape[2]):
            left = pull(programs, U[:, :, column])[DATA.index(wrt)]
            exists &= ~zero[:, column] | (np.max(np.abs(left), axis=1, initial=0.0) < SINGULAR)
    spread = np.max(np.ptp(np.array(gradients), axis=0), axis=1, initial=0.0)
    return gradients[0], exists & (spread < SAME)


def unique(programs: Programs) -> tuple[BoolArray, BoolArray]:
    """Whether x and y are unique, (B,) each: whether no null vector of N moves them."""
    n = programs.x.shape[1]
    D = derivative(programs.cones, programs.w + NEAR * np.random.default_rng(0).normal(size=programs.w.shape))
    _, sizes, Vt = np.linalg.svd(newton(programs, D))
    null = Vt * (sizes <= SINGULAR * sizes[:, :1])[..., None]
    moved_y = np.einsum("bij,bkj->bki", D, null[:, :, n:])
    return (np.max(np.abs(null[:, :, :n]), axis=(1, 2)) < SINGULAR), (np.max(np.abs(moved_y), axis=(1, 2)) < SINGULAR)
