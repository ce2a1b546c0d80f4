"""Batched requests: slicing one into chunks and joining their results, merging several and splitting their result.

A request passes through these stages:

    ComputeRequest    what the client asked for (``protocol``)
    BatchedRequest    the same, with the size of its batch and the names of the arrays that have a batch axis
    Task              a BatchedRequest in the queue, with its future; or a document to canonicalise (``task``)
    Chunk             some elements of a task: what the scheduler hands to a worker at a time (``task``)
    WorkItem          one or more merged chunks, as a message to the worker, which answers with a WorkResult
                      (``worker_messages``)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Any, final

import numpy as np

from ..encodings.arrays import Array
from ..errors import InvalidError, pointer
from .protocol import ComputeRequest, ComputeResult, PortableState

__all__ = ["BatchedNames", "BatchedRequest", "join_states", "merge", "split"]

BatchedNames = tuple[frozenset[str], frozenset[str]]
"""Names of the parameters, and of the directions, that have a batch axis."""

_MAX_SHARED_BYTES = 2**26
"""Bytes that copies of the arrays without a batch axis may add to all chunks of a request together.

Every chunk carries them to a worker. Smaller chunks share the workers better; this bounds what that costs.
"""

_EMPTY_STATE = PortableState(digest="", x=np.zeros((0, 0)), y=np.zeros((0, 0)), s=np.zeros((0, 0)), status=())
"""The state of no elements."""


@final
@dataclass(frozen=True, eq=False)
class BatchedRequest:
    """A request whose shapes are known.

    Attributes:
        request: the request; for ``merge``, its state, if any, is portable.
        elements: number of elements.
        batched: names of the parameters and of the directions that have a batch axis.
    """

    request: ComputeRequest
    elements: int
    batched: BatchedNames

    @classmethod
    def of(cls, request: ComputeRequest, summary: Mapping[str, Any]) -> BatchedRequest:
        """Determine the batch of a request.

        Args:
            request: a request with parameters.
            summary: summary of its problem.

        Raises:
            InvalidError: batch sizes differ.
        """
        shapes = {name: entry["shape"] for name, entry in summary["parameters"].items()}
        outputs = {name: entry["shape"] for part in ("variables", "duals") for name, entry in summary[part].items()}
        direction_shapes = shapes if request.operation == "jvp" else {"objective": [], **outputs}
        parameters = frozenset(name for name, value in request.parameters.items() if value.ndim > len(shapes[name]))
        directions = frozenset(
            name for name, value in request.directions.items() if value.ndim > len(direction_shapes[name])
        )
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
        """Bytes of the arrays without a batch axis, which every chunk carries."""
        pairs = zip((self.request.parameters, self.request.directions), self.batched, strict=True)
        return sum(value.nbytes for arrays, names in pairs for name, value in arrays.items() if name not in names)

    @cached_property
    def min_chunk(self) -> int:
        """Fewest elements of a chunk (but the last), so that copies of shared arrays stay within their bound."""
        return -(-self.elements // (1 + _MAX_SHARED_BYTES // max(1, self.shared_bytes)))

    def slice(self, elements: slice, key: str, state: str | PortableState | None = None) -> BatchedRequest:
        """Return some elements as a request with its own ID and state."""
        size = elements.stop - elements.start
        if elements == slice(0, self.elements):
            return replace(self, request=replace(self.request, request_id=key, state=state))
        parameters, directions = (
            {name: value[elements] if name in names else value for name, value in arrays.items()}
            for arrays, names in zip((self.request.parameters, self.request.directions), self.batched, strict=True)
        )
        request = replace(self.request, request_id=key, parameters=parameters, directions=directions, state=state)
        return replace(self, request=request, elements=size)

    def join(self, results: Sequence[ComputeResult]) -> ComputeResult:
        """Join the results of all chunks, in order; sum the gradients of parameters without a batch axis."""
        return _join(results, self.batched[0])


def merge(requests: Sequence[BatchedRequest]) -> ComputeRequest:
    """Merge requests that differ in their arrays alone into one, with a batch axis on every array."""
    first = requests[0].request
    outputs = {each.request.outputs for each in requests}
    states = [_repeat(each.request.state, each.elements) for each in requests]
    return replace(
        first,
        parameters=_stack([(each.request.parameters, each.elements, each.batched[0]) for each in requests]),
        directions=_stack([(each.request.directions, each.elements, each.batched[1]) for each in requests]),
        outputs=first.outputs if len(outputs) == 1 else None,
        keep=False,
        portable=any(each.request.keep or each.request.portable for each in requests),
        state=None if first.state is None else join_states(states),
    )


def split(result: ComputeResult, requests: Sequence[BatchedRequest]) -> list[ComputeResult]:
    """Split the result of merged requests; sum the gradients of parameters without a batch axis."""
    bounds = accumulate((each.elements for each in requests), initial=0)
    return [_extract(result, slice(*pair), each) for pair, each in zip(pairwise(bounds), requests, strict=True)]


def join_states(states: Sequence[PortableState]) -> PortableState:
    """Concatenate states, without a digest."""
    x, y, s = (np.concatenate([getattr(state, name) for state in states]) for name in ("x", "y", "s"))
    return PortableState(digest="", x=x, y=y, s=s, status=tuple(chain.from_iterable(each.status for each in states)))


def _join(results: Sequence[ComputeResult], batched: frozenset[str]) -> ComputeResult:
    first = results[0]
    summed = set() if first.objective is not None else first.arrays.keys() - batched

    def concatenate(values: Sequence[Array]) -> Array:
        return values[0] if len(values) == 1 else np.concatenate(values)  # one chunk is not copied

    return ComputeResult(
        arrays={
            name: sum(each.arrays[name] for each in results[1:]) + value
            if name in summed
            else concatenate([each.arrays[name] for each in results])
            for name, value in first.arrays.items()
        },
        batched=True,
        status=tuple(chain.from_iterable(each.status for each in results)),
        objective=None if first.objective is None else concatenate([_present(each.objective) for each in results]),
        iterations=tuple(chain.from_iterable(each.iterations for each in results)),
        residuals={name: concatenate([each.residuals[name] for each in results]) for name in first.residuals},
        report=None
        if first.report is None
        else {name: list(chain.from_iterable((each.report or {})[name] for each in results)) for name in first.report},
        solver=first.solver,
        reason=first.reason,
        seconds={name: sum(each.seconds.get(name, 0.0) for each in results) for name in first.seconds},
        portable=None if first.portable is None else join_states([_present(each.portable) for each in results]),
        details={
            start + i: detail
            for start, each in zip(_offsets(results), results, strict=True)
            for i, detail in each.details.items()
        },
    )


def _offsets(results: Sequence[ComputeResult]) -> list[int]:
    """Return the position of each result's first element."""
    return list(accumulate((len(each.status) for each in results[:-1]), initial=0))


def _present(value: Any) -> Any:
    assert value is not None, "all chunks of a request have the same fields"
    return value


def _stack(arrays: Sequence[tuple[Mapping[str, Array], int, frozenset[str]]]) -> dict[str, Array]:
    return {
        name: np.concatenate(
            [
                values[name] if name in batched else np.broadcast_to(values[name], (elements, *values[name].shape))
                for values, elements, batched in arrays
            ]
        )
        for name in arrays[0][0]
    }


def _repeat(state: str | PortableState | None, elements: int) -> PortableState:
    """Repeat a state of one element for all elements of its request."""
    if not isinstance(state, PortableState):
        return _EMPTY_STATE
    if len(state.status) == elements:
        return state
    x, y, s = (np.repeat(values, elements, axis=0) for values in (state.x, state.y, state.s))
    return PortableState(digest="", x=x, y=y, s=s, status=state.status * elements)


def _extract(result: ComputeResult, elements: slice, batched_request: BatchedRequest) -> ComputeResult:
    """Return the elements of one of several merged requests."""
    request, batched = batched_request.request, batched_request.batched[0]
    if request.operation == "vjp":
        arrays = {
            name: value[elements] if name in batched else value[elements].sum(axis=0)
            for name, value in result.arrays.items()
        }
    else:
        arrays = {name: result.arrays[name][elements] for name in request.outputs or result.arrays}
    state = result.portable if request.keep or request.portable else None
    return ComputeResult(
        arrays=arrays,
        batched=bool(batched or batched_request.batched[1]),
        status=result.status[elements],
        objective=None if result.objective is None else result.objective[elements],
        iterations=result.iterations[elements],
        residuals={name: value[elements] for name, value in result.residuals.items()},
        report=None if result.report is None else {name: values[elements] for name, values in result.report.items()},
        solver=result.solver,
        reason=result.reason,
        seconds=result.seconds,
        portable=None if state is None else _copy(state, elements),
        details={
            i - elements.start: detail for i, detail in result.details.items() if elements.start <= i < elements.stop
        },
    )


def _copy(state: PortableState, elements: slice) -> PortableState:
    """Copy some elements of a state; a view would keep the arrays of the other requests alive."""
    x, y, s = (values[elements].copy() for values in (state.x, state.y, state.s))
    return PortableState(digest="", x=x, y=y, s=s, status=state.status[elements])
