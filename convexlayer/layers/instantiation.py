"""Computation of the batch of programs from parameter values; invalid elements keep their place but are not solved."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np

from convexlayer.canon import ParametricProgram
from convexlayer.layers.convexity import nonconvex_elements
from convexlayer.layers.theta import as_values, batch_size, invalid_values, with_substitutes
from convexlayer.program import Array, ConeProgram, IndexArray, max_norm
from convexlayer.solution import Residuals, Solution
from convexlayer.status import Status

__all__ = ["Instances", "instantiate", "scatter_to_batch", "valid_part"]

ROUNDING = 1e-9
"""Violation of an inequality between parameters alone that counts as rounding, relative to the largest entry of b."""


class Instances(NamedTuple):
    """A batch of programs to solve.

    Attributes:
        features: feature vectors; those of invalid elements are computed from substitute values.
        program: the programs, with objectives divided by ``divisor``.
        divisor: largest coefficient of each objective, a power of two, (B,).
        batched: mask of the parameters whose values have a batch axis.
        seconds: wall time of the computation.
        invalid: error messages of the invalid elements, by position.
    """

    features: Array
    program: ConeProgram
    divisor: Array
    batched: tuple[bool, ...]
    seconds: float
    invalid: dict[int, str]


def instantiate(program: ParametricProgram, theta: Sequence[Array], *, attributes: bool, curvature: bool) -> Instances:
    """Compute the programs at parameter values.

    Args:
        program: the parametric program.
        theta: one array per parameter, of its shape or with one additional leading batch axis.
        attributes: whether values that violate a parameter's attributes are invalid.
        curvature: whether elements whose objective is not convex are invalid.

    Raises:
        ShapeError: shapes or batch sizes do not match.
        ProblemError: a value is not an array of real numbers.
    """
    specs = program.parameters
    values = as_values(specs, theta)
    size = batch_size(specs, [value.shape for value in values])
    batch, invalid = 1 if size is None else size, dict[int, str]()
    for spec, value in zip(specs, values, strict=True):
        wrong = invalid_values(spec, value, attributes=attributes)
        if wrong and value.shape == spec.shape:
            wrong = dict.fromkeys(range(batch), wrong[0])
        invalid = wrong | invalid
    if invalid:
        values = with_substitutes(specs, values, invalid)
    start = time.perf_counter()
    features = program.features.apply(values, batch)
    cone_program, divisor = program.normalised(features)
    if len(cone_program.structure.constant_inequalities):
        cone_program = _with_slack(cone_program)
    if curvature:
        invalid = nonconvex_elements(cone_program) | invalid
    batched = tuple(value.ndim > len(spec.shape) for spec, value in zip(specs, values, strict=True))
    return Instances(features, cone_program, divisor, batched, time.perf_counter() - start, invalid)


def _with_slack(program: ConeProgram) -> ConeProgram:
    """Give satisfied inequalities between parameters alone a large slack.

    The solution does not depend on their slack; a small slack would make them look active.
    """
    rows, b, size = program.structure.constant_inequalities, program.b.copy(), max_norm(program.b)[:, None]
    held = b[:, rows] >= -ROUNDING * size
    b[:, rows] = np.where(held, np.where(size > 0.0, size, 1.0), b[:, rows])
    return replace(program, b=b)


def valid_part(program: ConeProgram, invalid: Mapping[int, str]) -> tuple[ConeProgram, IndexArray | None]:
    """Select the valid elements; return their programs and positions (None if all elements are valid)."""
    if not invalid:
        return program, None
    valid = np.setdiff1d(np.arange(program.batch), np.fromiter(invalid, np.int64))
    return program.select(valid), valid


def scatter_to_batch(
    solution: Solution, residuals: Residuals, valid: IndexArray | None, batch: int
) -> tuple[Solution, Residuals]:
    """Scatter solutions and residuals of the valid elements into the whole batch; other elements are ``invalid``."""
    if valid is None:
        return solution, residuals

    def whole(rows: Array, fill: float = np.nan) -> Array:
        out = np.full((batch, *rows.shape[1:]), fill)
        out[valid] = rows
        return out

    status = [Status.INVALID] * batch
    for i, word in zip(valid.tolist(), solution.status, strict=True):
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
