"""Runs the families with closed forms, singly and in sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.scales.family import Family, sum_of
from benchmarks.scales.outcome import Truth, assess
from benchmarks.scales.plan import Plan
from benchmarks.scales.polyhedral import NORMS
from benchmarks.scales.smooth import SMOOTH
from benchmarks.scales.table import Count, table
from convexlayer.errors import SolverError
from convexlayer.layers.solution_map import SolutionMap
from convexlayer.program import Array

__all__ = ["FAMILIES", "RANGES", "SOLVERS", "case", "families", "measure", "table"]

RANGES = (1.0, 2.0, 4.0, 6.0)
"""Default values of k; parameters lie in 10^-k..10^k."""

SOLVERS = ("auto", "clarabel")
"""Default solvers."""

SUMS = 12
"""Number of sums of two or three families."""


def families() -> list[Family]:
    """All families, then sums of two or three of them, the same in every run."""
    single = [make() for make in FAMILIES]
    rng = np.random.default_rng(0)
    sums = [sum_of([FAMILIES[i]() for i in rng.permutation(len(FAMILIES))[: 2 + s % 2]]) for s in range(SUMS)]
    return single + sums


def measure(plan: Plan) -> Iterator[Count]:
    """One count per family, range and solver that supports the family."""
    chosen = [family for family in families() if plan.wants(family.name)]
    ranges = plan.ranges or RANGES
    draws = math.ceil(plan.draws / max(len(chosen) * len(ranges), 1))
    for family in chosen:
        program = family.program(self_check=False, presolve=plan.presolve)
        for solver in plan.solvers or SOLVERS:
            try:
                solution_map = SolutionMap(program, solver=solver, options=plan.options)
            except SolverError:
                continue
            for k in ranges:
                yield _counted(family, solution_map, Count("separable", family.name, k, solver), plan, draws)


def case(name: str, k: float, draw: int, *, seed: int = 0) -> tuple[Family, list[Array], Truth]:
    """One draw of a family: the family, its parameters as a batch of one, and the truth."""
    family = next(family for family in families() if family.name == name)
    theta = [value[draw:] for value in family.theta(draw + 1, k, seed=seed)]
    return family, theta, family.truth(theta)


def _counted(family: Family, solution_map: SolutionMap, count: Count, plan: Plan, draws: int) -> Count:
    theta = family.theta(draws, count.k, seed=plan.seed)
    for start in range(0, draws, plan.batch):
        part = [value[start : start + plan.batch] for value in theta]
        outcome = assess(solution_map, part, family.truth(part), queries=family.differentiated, seed=plan.seed + start)
        count.add(outcome, show=plan.show)
    return count


FAMILIES: list[Callable[[], Family]] = [*SMOOTH, *NORMS]
"""Constructors of all families with a closed form."""
