"""Final status of elements that no solver settled: certificates of infeasibility or unboundedness, invalid data.

A claim of infeasibility or unboundedness needs a ray as its certificate (``rays``). If the solver returned no valid
ray, the fallback solver is used, and then a search for rays (``solvers/certificate_search.py``). This costs time
only for elements without a solution.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from convexlayer.layers.convexity import nonconvex_elements
from convexlayer.program import ConeProgram, IndexArray
from convexlayer.rays import BoolArray, has_ray, infeasibility_ray, unboundedness_ray
from convexlayer.solution import Solution
from convexlayer.solvers import Options
from convexlayer.solvers.certificate_search import infeasibility_candidates, unboundedness_candidates
from convexlayer.solvers.facial_reduction import is_unbounded_without_ray
from convexlayer.status import Status

__all__ = ["unproved_claims", "unsettled", "with_certificates"]

CLAIMS = (Status.INFEASIBLE, Status.UNBOUNDED)
"""Statuses that a solver may claim, and that need a ray as their certificate."""


def unproved_claims(solution: Solution, raw: Solution) -> IndexArray:
    """Positions of the elements that the solver called infeasible or unbounded without a valid ray.

    Args:
        solution: the certified solution.
        raw: the solution as returned by the solver.
    """
    if raw.all_solved:
        return _positions(np.zeros(0, dtype=bool))
    return _positions(_among(raw, *CLAIMS) & ~solution.solved & ~_proved(solution))


def unsettled(solution: Solution, raw: Solution, *, stalled: bool = False) -> IndexArray:
    """Positions of the elements for the fallback solver: numerical errors, inaccurate solutions, unproved claims.

    Args:
        solution: the certified solution.
        raw: the solution as returned by the solver.
        stalled: whether elements at the iteration limit are included: if the caller set no limit, they have stalled.
    """
    if solution.all_optimal:
        return _positions(np.zeros(0, dtype=bool))
    doubtful = _among(solution, Status.NUMERICAL_ERROR, Status.OPTIMAL_INACCURATE)
    if stalled:
        doubtful |= _among(solution, Status.ITERATION_LIMIT)
    return np.union1d(_positions(doubtful), unproved_claims(solution, raw))


def with_certificates(
    program: ConeProgram, solution: Solution, raw: Solution, options: Options
) -> tuple[Solution, dict[int, str]]:
    """Search for rays of elements with a numerical error or an unproved claim, and set their final status.

    Args:
        program: the programs.
        solution: their certified solutions.
        raw: the solutions as returned by the solver.
        options: options of the call.

    Returns:
        The solution, with found rays in place of x or y, and messages by position of the element.
    """
    if solution.all_solved:
        return solution, {}
    index = _positions(_among(solution, Status.NUMERICAL_ERROR, *CLAIMS) & ~_proved(solution))
    faults = {i: message for i in index.tolist() if (message := _invalid_reason(program.select([i]))) is not None}
    index = np.setdiff1d(index, list(faults))
    status, x, y, messages = list(solution.status), solution.x.copy(), solution.y.copy(), raw.stats.get("messages", {})
    details: dict[int, str] = dict(faults)
    for i in faults:
        status[i] = Status.INVALID
    for word, point, candidates, ray_near in (
        (Status.INFEASIBLE, y, infeasibility_candidates, infeasibility_ray),
        (Status.UNBOUNDED, x, unboundedness_candidates, unboundedness_ray),
    ):
        if len(index):
            near = candidates(program.select(index), options.time_limit_s)
            found = {i: ray_near(program.select([i]), ray) for i, ray in zip(index.tolist(), near, strict=True)}
            for i, ray in found.items():
                if ray is not None:
                    status[i], point[i] = word, ray
            index = index[[found[i] is None for i in index.tolist()]]
    for i in index.tolist():
        status[i] = Status.NUMERICAL_ERROR
        if is_unbounded_without_ray(program.select([i]), options.time_limit_s):
            status[i], details[i] = Status.UNBOUNDED, "the objective is unbounded below, but along no ray"
        elif raw.status[i] in CLAIMS:
            details[i] = f"the solver reports {raw.status[i]}, but no certificate was found"
        elif i in messages:
            details[i] = messages[i]
    return replace(solution, x=x, y=y, status=tuple(status)), details


def _among(solution: Solution, *words: Status) -> BoolArray:
    return np.array([status in words for status in solution.status], dtype=bool)


def _proved(solution: Solution) -> BoolArray:
    """Mask of the infeasible or unbounded elements of a certified solution that have a ray."""
    proved: BoolArray = (_among(solution, Status.INFEASIBLE) & has_ray(solution.y)) | (
        _among(solution, Status.UNBOUNDED) & has_ray(solution.x)
    )
    return proved


def _positions(mask: BoolArray) -> IndexArray:
    return np.flatnonzero(mask).astype(np.int64)


def _invalid_reason(program: ConeProgram) -> str | None:
    """The reason why a single program is invalid (nonfinite data, nonconvex objective), or None."""
    for name, values in (("P", program.P), ("q", program.q), ("A", program.A), ("b", program.b)):
        if not np.isfinite(values).all():
            return f"{name} of its cone program is not finite: the parameters' values are too large"
    return nonconvex_elements(program).get(0)
