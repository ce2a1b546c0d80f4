"""Elements whose values cannot be used: left out of the batch that is solved, and put back in the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from convexlayer.program import Array, ConeProgram, IndexArray
from convexlayer.solution import Residuals, Solution, Status

__all__ = ["among", "usable_part"]


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
