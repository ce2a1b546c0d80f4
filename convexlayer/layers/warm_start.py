"""Warm starts: the report of an earlier call as starting points of the solver."""

from __future__ import annotations

from convexlayer.arguments import check_kind
from convexlayer.errors import ShapeError
from convexlayer.layers.report import Report
from convexlayer.layers.scaling import Scaling
from convexlayer.program import IndexArray, Structure
from convexlayer.solution import Solution
from convexlayer.solvers import AbstractSolver

__all__ = ["checked_size", "checked_warm_start", "other_size", "starting_points"]


def starting_points(
    warm_start: Report | None, solver: AbstractSolver, structure: Structure, valid: IndexArray | None, scaling: Scaling
) -> tuple[Solution | None, str | None]:
    """The starting point of each valid element in scaled units, or the reason why the warm start is not used.

    Raises:
        ProblemError: ``warm_start`` has the wrong type.
        ShapeError: it is that of another problem.
    """
    if warm_start is None:
        return None, None
    solution = checked_warm_start(warm_start, structure).solution
    if not solver.supports_warm_start:
        return None, f"solver {solver.name!r} cannot start from a given point"
    if (reason := other_size(solution, len(scaling.c))) is not None:
        return None, reason
    start = scaling.scale_solution(solution)
    return (start if valid is None else start.select(valid)), None


def checked_warm_start(warm_start: Report, structure: Structure) -> Report:
    """The report, after checking that it is one of this structure."""
    check_kind("warm_start", warm_start, Report, "the Report of an earlier call, or None")
    checked_size(warm_start.solution, structure, len(warm_start.solution.x), "warm_start")
    return warm_start


def other_size(solution: Solution, batch: int) -> str | None:
    """Why the solutions of another batch cannot start this one, or None if their numbers are equal."""
    size = len(solution.x)
    return None if size == batch else f"the warm start has {size} elements, this batch {batch}"


def checked_size(solution: Solution, structure: Structure, batch: int, name: str) -> Solution:
    """The solution that was passed as the argument ``name``, after checking its size."""
    if (solution.x.shape, solution.y.shape) != ((batch, structure.n), (batch, structure.m)):
        raise ShapeError(
            f"{name} must come from a call of this layer with {batch} elements, got {solution.x.shape[0]} elements "
            f"of {solution.x.shape[1]} variables"
        )
    return solution
