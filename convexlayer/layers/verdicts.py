"""The last word on elements that no solver settled: what proves that they have no solution, or what is wrong with them.

Only elements without a solution come here, so that the others pay nothing for it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from convexlayer.program import Array, ConeProgram, IndexArray
from convexlayer.rays import has_ray, infeasibility_ray, unboundedness_ray
from convexlayer.solution import Solution, Status
from convexlayer.solvers import Options
from convexlayer.solvers.search import infeasibility_candidates, unboundedness_candidates

__all__ = ["unproved", "unsettled", "with_verdicts"]

UNSETTLED = (Status.NUMERICAL_ERROR, Status.OPTIMAL_INACCURATE)
"""What a second solver is asked about; limits are the caller's wish."""

CLAIMS = (Status.INFEASIBLE, Status.UNBOUNDED)
"""What stands only with a ray."""

INDEFINITE = 1e-9
"""A negative eigenvalue of P is rounding up to this share of the largest."""

LARGEST_P = 1000
"""Up to this order the eigenvalues of P are looked at."""


def unproved(solution: Solution) -> IndexArray:
    """Positions of the elements that are called infeasible or unbounded without a ray."""
    if solution.all_solved:
        return np.zeros(0, dtype=np.int64)
    rays = {Status.INFEASIBLE: has_ray(solution.y), Status.UNBOUNDED: has_ray(solution.x)}
    return np.array([i for i, word in enumerate(solution.status) if word in rays and not rays[word][i]], dtype=np.int64)


def unsettled(solution: Solution) -> IndexArray:
    """Positions of the elements that a second solver should be asked about, in order."""
    doubtful = [i for i, word in enumerate(solution.status) if word in UNSETTLED]
    return np.union1d(np.array(doubtful, dtype=np.int64), unproved(solution))


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
    failed = [i for i, word in enumerate(solution.status) if word is Status.NUMERICAL_ERROR]
    index = np.union1d(np.array(failed, dtype=np.int64), unproved(solution))
    if not len(index):
        return solution, {}
    status, x, y, told = list(solution.status), solution.x.copy(), solution.y.copy(), dict[int, str]()
    for i in index.tolist():
        said = _fault(program.select([i]))
        if said is not None:
            status[i], told[i] = Status.INVALID, said
    index = np.array([i for i in index.tolist() if i not in told], dtype=np.int64)
    for word, point, candidates, ray_near in (
        (Status.INFEASIBLE, y, infeasibility_candidates, infeasibility_ray),
        (Status.UNBOUNDED, x, unboundedness_candidates, unboundedness_ray),
    ):
        if not len(index):
            break
        found = candidates(program.select(index), options.time_limit_s)
        rays = [ray_near(program.select([i]), near) for i, near in zip(index.tolist(), found, strict=True)]
        for i, ray in zip(index.tolist(), rays, strict=True):
            if ray is not None:
                status[i], point[i] = word, ray
        index = index[[ray is None for ray in rays]]
    messages = raw.stats.get("messages", {})
    for i in index.tolist():
        status[i] = Status.NUMERICAL_ERROR
        if raw.status[i] in CLAIMS:
            told[i] = f"the solver calls it {raw.status[i]}, but nothing was found that proves it"
        elif i in messages:
            told[i] = messages[i]
    return replace(solution, x=x, y=y, status=tuple(status)), told


def _fault(program: ConeProgram) -> str | None:
    """Why the one program cannot be solved by anyone, or None."""
    for name, values in (("P", program.P), ("q", program.q), ("A", program.A), ("b", program.b)):
        if not np.isfinite(values).all():
            return f"{name} of its cone program is not finite: the parameters' values are too large"
    P: Array = program.structure.P.dense(program.P)[0] if program.structure.n <= LARGEST_P else np.zeros((0, 0))
    if not P.any():
        return None
    eigenvalues = np.linalg.eigvalsh(P)
    if eigenvalues[0] < -INDEFINITE * np.abs(eigenvalues).max():
        relative = eigenvalues[0] / np.abs(eigenvalues).max()
        return f"its objective is not convex: P has an eigenvalue of {relative:.2g} relative to the largest"
    return None
