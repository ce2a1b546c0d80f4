"""Requests that differ in their arrays alone as one request, and its result as one for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import final

import numpy as np

from ..arrays import Array
from .parts import Batched, joined_points
from .protocol import ComputeRequest, ComputeResult, PortableState

__all__ = ["Member", "merged", "split"]


@final
@dataclass(frozen=True, eq=False)
class Member:
    """One request among several.

    Attributes:
        request: the request; its state, if any, is portable.
        rows: its elements.
        batched: names of its parameters and of its directions that have a batch axis.
    """

    request: ComputeRequest
    rows: int
    batched: Batched


def merged(members: Sequence[Member]) -> ComputeRequest:
    """One request with all rows, and a batch axis on every array."""
    first = members[0].request
    outputs = {member.request.outputs for member in members}
    states = [member.request.state for member in members]
    points = [_repeated(state, member.rows) for state, member in zip(states, members, strict=True)]
    return replace(
        first,
        parameters=_stacked([(each.request.parameters, each.rows, each.batched[0]) for each in members]),
        directions=_stacked([(each.request.directions, each.rows, each.batched[1]) for each in members]),
        outputs=first.outputs if len(outputs) == 1 else None,
        keep=False,
        portable=any(member.request.keep or member.request.portable for member in members),
        state=None if first.state is None else joined_points(points),
    )


def split(result: ComputeResult, members: Sequence[Member]) -> list[ComputeResult]:
    """The rows of each; gradients of parameters without a batch axis are summed over them."""
    bounds = accumulate((member.rows for member in members), initial=0)
    return [
        _rows(result, slice(start, stop), member)
        for (start, stop), member in zip(pairwise(bounds), members, strict=True)
    ]


def _stacked(arrays: Sequence[tuple[Mapping[str, Array], int, frozenset[str]]]) -> dict[str, Array]:
    return {
        name: np.concatenate(
            [
                values[name] if name in batched else np.broadcast_to(values[name], (rows, *values[name].shape))
                for values, rows, batched in arrays
            ]
        )
        for name in arrays[0][0]
    }


def _repeated(state: str | PortableState | None, rows: int) -> PortableState:
    """One row for each, where all have the same."""
    if not isinstance(state, PortableState):
        return _NOTHING
    if len(state.status) == rows:
        return state
    x, y, s = (np.repeat(values, rows, axis=0) for values in (state.x, state.y, state.s))
    return PortableState(digest="", x=x, y=y, s=s, status=state.status * rows)


_NOTHING = PortableState(digest="", x=np.zeros((0, 0)), y=np.zeros((0, 0)), s=np.zeros((0, 0)), status=())


def _rows(result: ComputeResult, rows: slice, member: Member) -> ComputeResult:
    request, batched = member.request, member.batched[0]
    if request.operation == "vjp":
        arrays = {
            name: value[rows] if name in batched else value[rows].sum(axis=0) for name, value in result.arrays.items()
        }
    else:
        arrays = {name: result.arrays[name][rows] for name in request.outputs or result.arrays}
    points = result.portable if request.keep or request.portable else None
    return ComputeResult(
        arrays=arrays,
        batched=bool(batched or member.batched[1]),
        status=result.status[rows],
        objective=None if result.objective is None else result.objective[rows],
        iterations=result.iterations[rows],
        residuals={name: value[rows] for name, value in result.residuals.items()},
        report=None if result.report is None else {name: values[rows] for name, values in result.report.items()},
        solver=result.solver,
        reason=result.reason,
        seconds=result.seconds,
        portable=None if points is None else _own(points, rows),
        details={i - rows.start: said for i, said in result.details.items() if rows.start <= i < rows.stop},
    )


def _own(points: PortableState, rows: slice) -> PortableState:
    """Copies, since they may be kept for long, and the others with them."""
    x, y, s = (values[rows].copy() for values in (points.x, points.y, points.s))
    return PortableState(digest="", x=x, y=y, s=s, status=points.status[rows])
