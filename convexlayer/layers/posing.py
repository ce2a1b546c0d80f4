"""From values of parameters to programs; elements whose values cannot be used have their place, but are not solved."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np

from convexlayer.canon import ParametricProgram
from convexlayer.layers.convexity import not_convex
from convexlayer.layers.theta import as_values, batch_size, stood_in, unusable
from convexlayer.program import Array, ConeProgram, IndexArray, max_norm
from convexlayer.solution import Residuals, Solution
from convexlayer.status import Status

__all__ = ["Posed", "among", "posed", "usable_part"]

ROUNDING = 1e-9
"""By so much, relative to the largest entry of b, an inequality between parameters alone may be missed."""


class Posed(NamedTuple):
    """What is to be solved.

    Attributes:
        features: feature vectors, of stand-ins where values cannot be used.
        program: their programs.
        scale: what their objectives were divided by.
        batched: whether there is a batch axis.
        seconds: how long it took.
        invalid: what is wrong with the elements whose values cannot be used, by position.
    """

    features: Array
    program: ConeProgram
    scale: Array
    batched: bool
    seconds: float
    invalid: dict[int, str]


def posed(program: ParametricProgram, theta: Sequence[Array], *, attributes: bool, curvature: bool) -> Posed:
    """The programs of these parameters.

    Args:
        program: the problem.
        theta: one array a parameter, of its shape or with one leading batch axis.
        attributes: whether values that violate a parameter's attributes are of no use.
        curvature: whether elements whose objective is not convex are to be found.

    Raises:
        ShapeError: shapes or batch sizes do not fit.
        ProblemError: a value is no array of numbers.
    """
    specs = program.parameters
    values = as_values(specs, theta)
    size = batch_size(specs, [value.shape for value in values])
    batch, invalid = 1 if size is None else size, dict[int, str]()
    for spec, value in zip(specs, values, strict=True):
        wrong = unusable(spec, value, attributes=attributes)
        if wrong and value.shape == spec.shape:
            wrong = dict.fromkeys(range(batch), wrong[0])
        invalid = wrong | invalid
    if invalid:
        values = stood_in(specs, values, invalid)
    start = time.perf_counter()
    features = program.features.apply(values, batch)
    cone_program, scale = program.normalised(features)
    if len(cone_program.structure.constant_inequalities):
        cone_program = _with_room(cone_program)
    if curvature:
        invalid = not_convex(cone_program) | invalid
    return Posed(features, cone_program, scale, size is not None, time.perf_counter() - start, invalid)


def _with_room(program: ConeProgram) -> ConeProgram:
    """The programs, where inequalities between parameters alone that hold do so by far.

    Nothing depends on by how much they hold, and nothing else is active where they only just do.
    """
    rows, b, size = program.structure.constant_inequalities, program.b.copy(), max_norm(program.b)[:, None]
    held = b[:, rows] >= -ROUNDING * size
    b[:, rows] = np.where(held, np.where(size > 0.0, size, 1.0), b[:, rows])
    return replace(program, b=b)


def usable_part(program: ConeProgram, invalid: Mapping[int, str]) -> tuple[ConeProgram, IndexArray | None]:
    """The programs of the other elements than the invalid ones, and their positions; None where that is all of them."""
    if not invalid:
        return program, None
    usable = np.setdiff1d(np.arange(program.batch), np.fromiter(invalid, np.int64))
    return program.select(usable), usable


def among(
    solution: Solution, residuals: Residuals, usable: IndexArray | None, batch: int
) -> tuple[Solution, Residuals]:
    """Solutions of the usable elements and their residuals in a whole batch, whose other elements are ``invalid``."""
    if usable is None:
        return solution, residuals

    def whole(rows: Array, fill: float = np.nan) -> Array:
        out = np.full((batch, *rows.shape[1:]), fill)
        out[usable] = rows
        return out

    status = [Status.INVALID] * batch
    for i, word in zip(usable.tolist(), solution.status, strict=True):
        status[i] = word
    placed = Solution(
        x=whole(solution.x),
        y=whole(solution.y),
        s=whole(solution.s),
        status=tuple(status),
        iterations=whole(solution.iterations.astype(np.float64), 0.0).astype(np.int64),
        seconds=whole(solution.seconds, 0.0),
        stats=solution.stats,
    )
    measured = {field.name: whole(getattr(residuals, field.name)) for field in fields(residuals)}
    measured["worst"] = np.where(np.isnan(measured["worst"]), np.inf, measured["worst"])
    return placed, Residuals(**measured)
