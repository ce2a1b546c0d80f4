"""The last word on elements that no solver settled: what proves that they have no solution, or what is wrong with them.

A claim of infeasibility or unboundedness stands with a ray only (``rays``). Where the solver gave none, or one that
proves nothing, a second solver is asked; then rays are sought (``solvers/search.py``). Only elements without a solution
come here, so that the others pay nothing for it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from convexlayer.layers.convexity import not_convex
from convexlayer.program import ConeProgram, IndexArray
from convexlayer.rays import BoolArray, has_ray, infeasibility_ray, unboundedness_ray
from convexlayer.solution import Solution
from convexlayer.solvers import Options
from convexlayer.solvers.search import infeasibility_candidates, unboundedness_candidates
from convexlayer.solvers.weak import is_unbounded_without_ray
from convexlayer.status import Status

__all__ = ["unproved", "unsettled", "with_verdicts"]

CLAIMS = (Status.INFEASIBLE, Status.UNBOUNDED)


def unproved(solution: Solution, raw: Solution) -> IndexArray:
    """Positions of the elements that the solver called infeasible or unbounded, without proof.

    Args:
        solution: certified.
        raw: what the solver said itself.
    """
    if raw.all_solved:
        return _positions(np.zeros(0, dtype=bool))
    return _positions(_among(raw, *CLAIMS) & ~solution.solved & ~_proved(solution))


def unsettled(solution: Solution, raw: Solution, *, stalled: bool = False) -> IndexArray:
    """Positions of the elements that a fallback is asked about; limits are the caller's wish.

    Args:
        solution: certified.
        raw: what the solver said itself.
        stalled: whether nobody set a limit of iterations, so that whoever is at one has stalled.
    """
    if solution.all_optimal:
        return _positions(np.zeros(0, dtype=bool))
    doubtful = _among(solution, Status.NUMERICAL_ERROR, Status.OPTIMAL_INACCURATE)
    if stalled:
        doubtful |= _among(solution, Status.ITERATION_LIMIT)
    return np.union1d(_positions(doubtful), unproved(solution, raw))


def with_verdicts(
    program: ConeProgram, solution: Solution, raw: Solution, options: Options
) -> tuple[Solution, dict[int, str]]:
    """The solution in which numerical errors and claims without a ray have the status that can be proved.

    Args:
        program: the programs.
        solution: theirs, certified.
        raw: what the solver said itself.
        options: of the call.

    Returns:
        The solution, in which rays that were found stand for x or y, and what is to be said of elements, by position.
    """
    if solution.all_solved:
        return solution, {}
    index = _positions(_among(solution, Status.NUMERICAL_ERROR, *CLAIMS) & ~_proved(solution))
    faults = {i: said for i in index.tolist() if (said := _fault(program.select([i]))) is not None}
    index = np.setdiff1d(index, list(faults))
    status, x, y, messages = list(solution.status), solution.x.copy(), solution.y.copy(), raw.stats.get("messages", {})
    told: dict[int, str] = dict(faults)
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
            status[i], told[i] = Status.UNBOUNDED, "the objective falls for ever, but along no ray"
        elif raw.status[i] in CLAIMS:
            told[i] = f"the solver calls it {raw.status[i]}, but nothing was found that proves it"
        elif i in messages:
            told[i] = messages[i]
    return replace(solution, x=x, y=y, status=tuple(status)), told


def _among(solution: Solution, *words: Status) -> BoolArray:
    return np.array([status in words for status in solution.status], dtype=bool)


def _proved(solution: Solution) -> BoolArray:
    """Which elements of a certified solution are called infeasible or unbounded with a ray, which was judged there."""
    proved: BoolArray = (_among(solution, Status.INFEASIBLE) & has_ray(solution.y)) | (
        _among(solution, Status.UNBOUNDED) & has_ray(solution.x)
    )
    return proved


def _positions(mask: BoolArray) -> IndexArray:
    return np.flatnonzero(mask).astype(np.int64)


def _fault(program: ConeProgram) -> str | None:
    """Why the one program cannot be solved by anyone, or None."""
    for name, values in (("P", program.P), ("q", program.q), ("A", program.A), ("b", program.b)):
        if not np.isfinite(values).all():
            return f"{name} of its cone program is not finite: the parameters' values are too large"
    return not_convex(program).get(0)
