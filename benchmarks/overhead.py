"""Profile of Convexlayer's time: solver, derivative, and overhead."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.ours import layer
from benchmarks.problem import Problem
from benchmarks.timing import Plan

__all__ = ["CORE", "overhead"]

CORE = ("solve", "derivative")
"""The parts of ``Report.seconds`` that are not overhead."""


def overhead(problem: Problem, batch: int, plan: Plan) -> dict[str, Any]:
    """Measure median times over the plan's rounds, in seconds.

    Returns:
        ``parts``: times in the report; ``forward_s``, ``total_s``: wall time of the calls; ``solver_s``: time reported
        by the solver, summed over the elements; ``forward_over_solver``: forward_s / solver_s, meaningful for a single
        element only; ``overhead``: fraction of the total time outside CORE.
    """
    solve = layer(problem)
    draws = [problem.theta(batch, seed=seed) for seed in range(4)]
    cotangents = problem.cotangents(batch)
    rows: list[dict[str, float]] = []
    began = time.perf_counter()
    for number in range(plan.rounds + 1):
        theta = draws[number % len(draws)]
        start = time.perf_counter()
        outputs, report = solve.solve(*theta)
        solved = time.perf_counter()
        torch.autograd.grad(outputs, theta, cotangents)
        done = time.perf_counter()
        solver = float(np.sum(report.solution.seconds))
        rows.append({"forward_s": solved - start, "total_s": done - start, "solver_s": solver, **report.seconds})
        if number and done - began > plan.budget_s:
            break
    middle = {key: float(np.median([row[key] for row in rows[1:]])) for key in rows[-1]}
    outside = ("forward_s", "total_s", "solver_s")
    return {
        "problem": problem.name,
        "batch": batch,
        "solver": report.solver,
        "parts": {key: value for key, value in middle.items() if key not in outside},
        **{key: middle[key] for key in outside},
        "forward_over_solver": middle["forward_s"] / middle["solver_s"] if middle["solver_s"] else None,
        "overhead": 1.0 - sum(middle.get(part, 0.0) for part in CORE) / middle["total_s"],
    }
