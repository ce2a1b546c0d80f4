"""Requests cut into parts, so that a large batch shares the workers with others, and their results put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from typing import Any, final

import numpy as np

from ..arrays import Array
from ..errors import InvalidError, pointer
from .protocol import ComputeRequest, ComputeResult, PortableState

__all__ = ["Batched", "Cutter", "joined_points"]

Batched = tuple[frozenset[str], frozenset[str]]
"""Names of the parameters, and of the directions, that have a batch axis."""

_SHARED_BYTES = 2**26
"""What arrays without a batch axis may add to all parts of a request, each of which has them."""


@final
@dataclass(frozen=True)
class Cutter:
    """Cuts one request.

    Attributes:
        request: the request.
        batch: its elements.
        batched: names of the parameters and of the directions that have a batch axis.
    """

    request: ComputeRequest
    batch: int
    batched: Batched

    @classmethod
    def of(cls, request: ComputeRequest, summary: Mapping[str, Any]) -> Cutter:
        """Look at the shapes of a request.

        Args:
            request: a request with parameters.
            summary: of its problem.

        Raises:
            InvalidError: batch sizes differ.
        """
        shapes = {name: entry["shape"] for name, entry in summary["parameters"].items()}
        outputs = {name: entry["shape"] for part in ("variables", "duals") for name, entry in summary[part].items()}
        others = shapes if request.operation == "jvp" else {"objective": [], **outputs}
        parameters = frozenset(name for name, value in request.parameters.items() if value.ndim > len(shapes[name]))
        directions = frozenset(name for name, value in request.directions.items() if value.ndim > len(others[name]))
        sizes = {name: len(request.parameters[name]) for name in parameters}
        batch = next(iter(sizes.values()), 1)
        part = "tangents" if request.operation == "jvp" else "cotangents"
        for name in sorted(directions):
            size = len(request.directions[name])
            if sizes and size != batch:
                raise InvalidError.at(pointer(part, name), f"has {size} elements, but the parameters have {batch}")
            sizes, batch = {**sizes, name: size}, size
        state = request.state
        if isinstance(state, PortableState) and len(state.status) not in (1, batch):
            raise InvalidError.at("/state", f"has {len(state.status)} elements, but the request has {batch}")
        return cls(request, batch, (parameters, directions))

    @property
    def shared_bytes(self) -> int:
        """Bytes of what every part has."""
        pairs = zip((self.request.parameters, self.request.directions), self.batched, strict=True)
        return sum(value.nbytes for arrays, names in pairs for name, value in arrays.items() if name not in names)

    @cached_property
    def least_rows(self) -> int:
        """Rows that every part but the last has, lest what they share be had too often."""
        return -(-self.batch // (1 + _SHARED_BYTES // max(1, self.shared_bytes)))

    def part(self, rows: slice, key: str, state: str | PortableState | None = None) -> ComputeRequest:
        """These rows as a request with an id of its own."""
        if rows == slice(0, self.batch):
            return replace(self.request, request_id=key, state=state)
        parameters, directions = (
            {name: value[rows] if name in names else value for name, value in arrays.items()}
            for arrays, names in zip((self.request.parameters, self.request.directions), self.batched, strict=True)
        )
        return replace(self.request, request_id=key, parameters=parameters, directions=directions, state=state)

    def joined(self, results: Sequence[ComputeResult]) -> ComputeResult:
        """The results of all parts, in order, as one; gradients of parameters without a batch axis are summed."""
        return _joined(results, self.batched[0])


def _joined(results: Sequence[ComputeResult], batched: frozenset[str]) -> ComputeResult:
    first = results[0]
    summed = set() if first.objective is not None else first.arrays.keys() - batched

    def column(values: Sequence[Array]) -> Array:
        return values[0] if len(values) == 1 else np.concatenate(values)  # a whole request is not copied

    return ComputeResult(
        arrays={
            name: sum(each.arrays[name] for each in results[1:]) + value
            if name in summed
            else column([each.arrays[name] for each in results])
            for name, value in first.arrays.items()
        },
        batched=True,
        status=tuple(chain.from_iterable(each.status for each in results)),
        objective=None if first.objective is None else column([_given(each.objective) for each in results]),
        iterations=tuple(chain.from_iterable(each.iterations for each in results)),
        residuals={name: column([each.residuals[name] for each in results]) for name in first.residuals},
        report=None
        if first.report is None
        else {name: list(chain.from_iterable((each.report or {})[name] for each in results)) for name in first.report},
        solver=first.solver,
        reason=first.reason,
        seconds={name: sum(each.seconds.get(name, 0.0) for each in results) for name in first.seconds},
        portable=None if first.portable is None else joined_points([_given(each.portable) for each in results]),
        details={
            start + i: said
            for start, each in zip(_starts(results), results, strict=True)
            for i, said in each.details.items()
        },
    )


def _starts(results: Sequence[ComputeResult]) -> list[int]:
    """Where the elements of each begin."""
    return list(accumulate((len(each.status) for each in results[:-1]), initial=0))


def joined_points(states: Sequence[PortableState]) -> PortableState:
    """The rows of all of them."""
    x, y, s = (np.concatenate([getattr(state, name) for state in states]) for name in ("x", "y", "s"))
    return PortableState(digest="", x=x, y=y, s=s, status=tuple(chain.from_iterable(each.status for each in states)))


def _given(value: Any) -> Any:
    assert value is not None, "all parts of a request are answered alike"
    return value
