"""Splitting of batches that exceed the server's limits on one request."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Generic, TypeVar, final

from convexlayer_client.account import Capabilities
from convexlayer_client.arrays import Array
from convexlayer_client.call import BatchSlice, Call, Form
from convexlayer_client.errors import ShapeError
from convexlayer_client.results import PortableState, Problem, SplitState

__all__ = ["BatchSplitter", "Limits", "max_elements", "may_be_too_large"]

T = TypeVar("T")

_OVERHEAD_BYTES = 64
"""Bytes by which the header entry of an array may grow with its number of elements, at most."""

_STATUS_BYTES = 64
"""Bytes of the status of an element in a portable state, at most."""

_GROUPS = ("parameters", "tangents", "cotangents")
"""Fields of a body whose arrays may have a batch axis."""


@final
@dataclass(frozen=True)
class Limits:
    """The limits of a server on one request.

    Attributes:
        batch: Elements.
        body_bytes: Bytes of the body.
        array_size: Entries of an array.
        batch_size: Entries of program data, parameters and outputs of all elements together.
    """

    batch: float
    body_bytes: float
    array_size: float
    batch_size: float

    @classmethod
    def of(cls, capabilities: Capabilities) -> Limits:
        """Return the limits among a server's capabilities; no limit is infinity."""
        names = ("max_batch", "max_body_bytes", "max_array_size", "max_batch_size")
        given = (capabilities.limits.get(name) for name in names)
        return cls(*(math.inf if limit is None else limit for limit in given))


_DEFAULT_LIMITS = Limits(batch=256, body_bytes=2**20, array_size=math.inf, batch_size=math.inf)
"""Limits that every server is assumed to allow: requests within them are sent without asking for its limits."""


def may_be_too_large(call: Call[Any], problem: Problem | None, limits: Limits | None) -> bool:
    """Whether a server may reject a call because of its size, or because its state comes from several solves.

    This is a cheap, conservative estimate, since it is made for every call.

    Args:
        call: The call.
        problem: Its problem, if known; then later derivatives from its state are considered, too.
        limits: Limits of the server, if known.
    """
    limits = limits or _DEFAULT_LIMITS
    elements = max_elements(call)
    later_bytes = 0 if problem is None else 8 * elements * sum(_entries_of_derivative(call, problem))
    if elements > limits.batch or (problem is not None and elements * _entries(problem) > limits.batch_size):
        return True
    for level in call.alternatives:
        state = _state(level)
        sizes = [value.size for *_, value in _arrays(level)]
        around_bytes = 4 * _OVERHEAD_BYTES * (1 + len(sizes))
        if isinstance(state, dict):
            sizes += [state[name].size for name in "xys"]
            around_bytes += _STATUS_BYTES * len(state["status"])
        if isinstance(state, SplitState) or max(sizes, default=0) > limits.array_size:
            return True
        if (8 * sum(sizes) + later_bytes) * 4 / 3 + around_bytes > limits.body_bytes:
            return True
    return False


def max_elements(call: Call[Any]) -> int:
    """Return the largest possible number of elements of a call; only the problem determines which axis is the batch."""
    return max((len(value) for level in call.alternatives for *_, value in _arrays(level) if value.ndim), default=1)


@final
class BatchSplitter(Generic[T]):
    """Splits one call.

    Args:
        call: A solve, vjp or jvp.
        problem: Its problem.
        limits: Limits of the server.
        form: Encoding of its arrays.
    """

    def __init__(self, call: Call[T], problem: Problem, limits: Limits, form: Form) -> None:
        self._call = call
        self._plain = list(call.alternatives)[-1]
        self._problem = problem
        self._limits = limits
        self._form: Form = form
        outputs = {**problem.variables, **problem.duals, "objective": ()}
        self._shapes = {"parameters": problem.parameters, "tangents": problem.parameters, "cotangents": outputs}

    def parts(self) -> list[Call[T]]:
        """Return the calls of the parts, each with its elements; the call itself if it is small enough.

        The server reports the errors of a call that is small enough.

        Raises:
            ShapeError: Batch sizes, or those of a batch and its state, differ.
        """
        call, sizes = self._call, self._sizes()
        states = [state for state in map(_state, call.alternatives) if state is not None]
        if any(isinstance(state, SplitState) for state in states):
            parts = self._parts(call, self._sizes_of_parts(states, sizes))
            if not self._has_parameters or all(map(self._fits, parts)):
                return parts
            call = self._plain
        batches = set(sizes.values())
        if len(batches) > 1 and self._bytes(call) > self._limits.body_bytes:
            raise ShapeError(f"batch sizes must be equal: {', '.join(f'{what} has {n}' for what, n in sizes.items())}")
        if len(batches) != 1:
            return [call if batches else replace(call, batch_slice=BatchSlice(0, 1, 1))]
        (batch,) = batches
        if self._batched_parameters and batch > self._max_elements(call):
            call = self._plain  # a state cannot be split, unless one element serves all
        count = -(-batch // self._max_elements(call))
        bounds = [batch * part // count for part in range(count + 1)]
        return self._parts(call, [stop - start for start, stop in pairwise(bounds)])

    def joined(self, results: Sequence[T]) -> T:
        """Join the results of the parts, in order."""
        assert self._call.operation is not None, "only operations are split"
        return results[0] if len(results) == 1 else self._call.operation.join(results, self._problem)

    @property
    def _has_parameters(self) -> bool:
        return "parameters" in (self._plain.body or {})

    @property
    def _batched_parameters(self) -> bool:
        return any(self._is_batched(*place) for place in _arrays(self._plain) if place[0] == "parameters")

    def _sizes(self) -> dict[str, int]:
        """Return the number of elements of every array with a batch axis."""
        return {
            f"{group[:-1]} {name!r}": len(value)
            for group, name, value in _arrays(self._plain)
            if self._is_batched(group, name, value)
        }

    def _is_batched(self, group: str, name: str, value: Array) -> bool:
        shape = self._shapes[group].get(name)
        return shape is not None and value.ndim == len(shape) + 1

    def _sizes_of_parts(self, states: Sequence[Any], sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the sizes of the parts of split states; check that all states agree, and fit the batch."""
        kinds = {state.sizes if isinstance(state, SplitState) else None for state in states}
        if len(kinds) > 1:
            raise ShapeError("state and portable are not of the same solve: the sizes of their parts differ")
        part_sizes: tuple[int, ...] = states[0].sizes
        for what, size in sizes.items():
            if size != sum(part_sizes):
                raise ShapeError(f"{what} has {size} elements, but the state has {sum(part_sizes)}")
        if self._has_parameters and not self._batched_parameters:
            raise ShapeError(f"no parameter has a batch axis, but the state has {sum(part_sizes)} elements")
        return part_sizes

    def _parts(self, call: Call[T], sizes: Sequence[int]) -> list[Call[T]]:
        bounds = list(accumulate(sizes, initial=0))
        found = [self._part(call, BatchSlice(*ends, bounds[-1]), i) for i, ends in enumerate(pairwise(bounds))]
        name = uuid.uuid4().hex if len(found) > 1 else None  # all parts have the same ID in the server's log
        return [replace(part, request_id=name) for part in found]

    def _part(self, call: Call[T], batch_slice: BatchSlice, position: int = 0) -> Call[T]:
        """Return some elements of a call, with the state of the part at a position."""
        body = dict(call.body or {})
        for group, name, value in _arrays(call):
            if self._is_batched(group, name, value):
                body[group] = {**body[group], name: value[batch_slice.start : batch_slice.stop]}
        state = _state(call)
        if isinstance(state, SplitState):
            own = state.parts[position]
            body["state"] = own.as_dict() if isinstance(own, PortableState) else own
        fallback = None if call.fallback is None else self._part(call.fallback, batch_slice, position)
        return replace(call, body=body, fallback=fallback, batch_slice=batch_slice)

    def _bytes(self, call: Call[T]) -> int:
        """Return the bytes of the largest body among a call and its fallbacks."""
        return max(level.size_bytes(self._form) for level in call.alternatives)

    def _fits(self, part: Call[T]) -> bool:
        """Whether a part is within the limits, or cannot be split further."""
        elements, limits = len(part.batch_slice or ()), self._limits
        widest = max((value.size for level in part.alternatives for *_, value in _arrays(level)), default=0)
        return elements <= 1 or (
            elements <= limits.batch
            and elements * _entries(self._problem) <= limits.batch_size
            and widest <= limits.array_size
            and self._bytes(part) <= limits.body_bytes
        )

    def _max_elements(self, call: Call[T]) -> int:
        """Return the most elements of a part; if a solve keeps its state, its derivatives must fit, too."""
        limits = self._limits
        room_bytes = limits.body_bytes * (1.0 if self._form == "binary" else 0.75)
        found = [limits.batch, limits.batch_size // _entries(self._problem)]
        for level in call.alternatives:
            arrays = list(_arrays(level))
            entries = [math.prod(place[2].shape[1:]) for place in arrays if self._is_batched(*place)]
            entries += _entries_of_derivative(level, self._problem)
            around_bytes = self._part(level, BatchSlice(0, 0, 1)).size_bytes("binary") + _OVERHEAD_BYTES * (
                1 + len(arrays)
            )
            each_bytes = 8 * sum(entries) + _STATUS_BYTES * bool(_kept_forms(level))
            found += [limits.array_size // max(1, *entries), (room_bytes - around_bytes) // max(1, each_bytes)]
        return int(max(1, min(found)))


def _arrays(call: Call[Any]) -> Iterator[tuple[str, str, Array]]:
    """Yield the arrays that may have a batch axis, with their places in the body."""
    for group in _GROUPS:
        for name, value in (call.body or {}).get(group, {}).items():
            yield group, name, value


def _state(call: Call[Any]) -> Any:
    return (call.body or {}).get("state")


def _entries_of_derivative(call: Call[Any], problem: Problem) -> list[int]:
    """Return the entries for an element of each array, but parameters, that a derivative from the kept state sends."""
    kept = _kept_forms(call)
    if not kept:
        return []
    outputs = [1, *map(math.prod, (*problem.variables.values(), *problem.duals.values()))]
    directions = max(outputs, list(map(math.prod, problem.parameters.values())), key=sum)
    return directions + [_sizes(problem).get(name, 0) for name in ("n", "m", "m") if "portable" in kept]


def _kept_forms(call: Call[Any]) -> set[str]:
    """Return the forms in which a solve keeps its state."""
    return {"state", "portable"}.intersection((call.body or {}).get("return", ()))


def _entries(problem: Problem) -> int:
    """Return the entries of an element, as the server counts them for ``max_batch_size``."""
    shapes = (*problem.variables.values(), *problem.duals.values(), *problem.parameters.values())
    return max(1, sum(_sizes(problem).values()) + sum(map(math.prod, shapes)))


def _sizes(problem: Problem) -> Mapping[str, int]:
    """Return the sizes of the standard form."""
    sizes: Mapping[str, int] = problem.details.get("sizes", {})
    return sizes
