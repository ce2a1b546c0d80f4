"""Batches beyond what a server takes in one request, cut into parts that it takes."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Generic, TypeVar, final

from convexlayer_client.account import Capabilities
from convexlayer_client.arrays import Array
from convexlayer_client.call import Call, Form, Rows
from convexlayer_client.errors import ShapeError
from convexlayer_client.results import PortableState, Problem, SplitState

__all__ = ["Cutter", "Limits", "may_be_too_large", "rows_at_most"]

T = TypeVar("T")

_AROUND_BYTES = 64
"""By so much what is written around an array may grow with its rows, at most."""

_STATUS_BYTES = 64
"""What the status of an element takes in a portable state, at most."""

_GROUPS = ("parameters", "tangents", "cotangents")


@final
@dataclass(frozen=True)
class Limits:
    """What a server takes in one request.

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
        """Those that a server states; no limit is infinity."""
        names = ("max_batch", "max_body_bytes", "max_array_size", "max_batch_size")
        given = (capabilities.limits.get(name) for name in names)
        return cls(*(math.inf if limit is None else limit for limit in given))


_UNASKED = Limits(batch=256, body_bytes=2**20, array_size=math.inf, batch_size=math.inf)
"""What any server is taken to read; so little is sent without asking for its limits."""


def may_be_too_large(call: Call[Any], problem: Problem | None, limits: Limits | None) -> bool:
    """Whether a server may refuse a call for its size, or cannot but refuse it, since its state is of several solves.

    An estimate, for it is made for every call.

    Args:
        call: The call.
        problem: Its problem, if that is known; then the derivatives that begin with a state are looked at, too.
        limits: The server's, if they are known.
    """
    limits = limits or _UNASKED
    rows = rows_at_most(call)
    later_bytes = 0 if problem is None else 8 * rows * sum(_later(call, problem))
    if rows > limits.batch or (problem is not None and rows * _entries(problem) > limits.batch_size):
        return True
    for level in call.levels:
        state = _state(level)
        sizes = [value.size for *_, value in _arrays(level)]
        around_bytes = 4 * _AROUND_BYTES * (1 + len(sizes))
        if isinstance(state, dict):
            sizes += [state[name].size for name in "xys"]
            around_bytes += _STATUS_BYTES * len(state["status"])
        if isinstance(state, SplitState) or max(sizes, default=0) > limits.array_size:
            return True
        if (8 * sum(sizes) + later_bytes) * 4 / 3 + around_bytes > limits.body_bytes:
            return True
    return False


def rows_at_most(call: Call[Any]) -> int:
    """Elements that a call can have, whatever its problem: without that, nobody knows which axis is the batch."""
    return max((len(value) for level in call.levels for *_, value in _arrays(level) if value.ndim), default=1)


@final
class Cutter(Generic[T]):
    """Cuts one call.

    Args:
        call: A solve, vjp or jvp.
        problem: Its problem.
        limits: The server's.
        form: How its arrays travel.
    """

    def __init__(self, call: Call[T], problem: Problem, limits: Limits, form: Form) -> None:
        self._call = call
        self._plain = list(call.levels)[-1]
        self._problem = problem
        self._limits = limits
        self._form: Form = form
        outputs = {**problem.variables, **problem.duals, "objective": ()}
        self._shapes = {"parameters": problem.parameters, "tangents": problem.parameters, "cotangents": outputs}

    def parts(self) -> list[Call[T]]:
        """The calls that together are the call, each with its rows; one where it is small enough as it is.

        What is wrong with one that is small enough is left to the server to say.

        Raises:
            ShapeError: Batches, or a batch and its state, differ in size.
        """
        call, sizes = self._call, self._sizes()
        states = [state for state in map(_state, call.levels) if state is not None]
        if any(isinstance(state, SplitState) for state in states):
            parts = self._parts(call, self._split_rows(states, sizes))
            if not self._has_parameters or all(map(self._fits, parts)):
                return parts
            call = self._plain
        batches = set(sizes.values())
        if len(batches) > 1 and self._bytes(call) > self._limits.body_bytes:
            raise ShapeError(f"batch sizes must be equal: {', '.join(f'{what} has {n}' for what, n in sizes.items())}")
        if len(batches) != 1:
            return [call if batches else replace(call, rows=Rows(0, 1, 1))]
        (batch,) = batches
        if self._batched_parameters and batch > self._most(call):
            call = self._plain  # a state cannot be cut, unless its one element stands for all
        count = -(-batch // self._most(call))
        bounds = [batch * part // count for part in range(count + 1)]
        return self._parts(call, [stop - start for start, stop in pairwise(bounds)])

    def joined(self, results: Sequence[T]) -> T:
        """The result of the call, by those of its parts in order."""
        assert self._call.operation is not None, "only what computes is cut"
        return results[0] if len(results) == 1 else self._call.operation.join(results, self._problem)

    @property
    def _has_parameters(self) -> bool:
        return "parameters" in (self._plain.body or {})

    @property
    def _batched_parameters(self) -> bool:
        return any(self._is_batched(*place) for place in _arrays(self._plain) if place[0] == "parameters")

    def _sizes(self) -> dict[str, int]:
        """Elements of everything that has a batch axis."""
        return {
            f"{group[:-1]} {name!r}": len(value)
            for group, name, value in _arrays(self._plain)
            if self._is_batched(group, name, value)
        }

    def _is_batched(self, group: str, name: str, value: Array) -> bool:
        shape = self._shapes[group].get(name)
        return shape is not None and value.ndim == len(shape) + 1

    def _split_rows(self, states: Sequence[Any], sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Elements of the parts of states, which must be those of one solve, and of this batch."""
        kinds = {state.rows if isinstance(state, SplitState) else None for state in states}
        if len(kinds) > 1:
            raise ShapeError("state and portable are not of one solve: their parts differ in size")
        rows: tuple[int, ...] = states[0].rows
        for what, size in sizes.items():
            if size != sum(rows):
                raise ShapeError(f"{what} has {size} elements, but the state has {sum(rows)}")
        if self._has_parameters and not self._batched_parameters:
            raise ShapeError(f"no parameter has a batch axis, but the state has {sum(rows)} elements")
        return rows

    def _parts(self, call: Call[T], rows: Sequence[int]) -> list[Call[T]]:
        bounds = list(accumulate(rows, initial=0))
        found = [self._part(call, Rows(*ends, bounds[-1]), i) for i, ends in enumerate(pairwise(bounds))]
        name = uuid.uuid4().hex if len(found) > 1 else None  # one in the server's log for all
        return [replace(part, request_id=name) for part in found]

    def _part(self, call: Call[T], rows: Rows, position: int = 0) -> Call[T]:
        """These rows of a call, with the state of the part at a position."""
        body = dict(call.body or {})
        for group, name, value in _arrays(call):
            if self._is_batched(group, name, value):
                body[group] = {**body[group], name: value[rows.start : rows.stop]}
        state = _state(call)
        if isinstance(state, SplitState):
            own = state.parts[position]
            body["state"] = own.described() if isinstance(own, PortableState) else own
        otherwise = None if call.otherwise is None else self._part(call.otherwise, rows, position)
        return replace(call, body=body, otherwise=otherwise, rows=rows)

    def _bytes(self, call: Call[T]) -> int:
        """Of the largest body that may have to be sent."""
        return max(level.size_bytes(self._form) for level in call.levels)

    def _fits(self, part: Call[T]) -> bool:
        """Whether the server takes a part; if not, there is something to be done about it."""
        rows, limits = len(part.rows or ()), self._limits
        widest = max((value.size for level in part.levels for *_, value in _arrays(level)), default=0)
        return rows <= 1 or (
            rows <= limits.batch
            and rows * _entries(self._problem) <= limits.batch_size
            and widest <= limits.array_size
            and self._bytes(part) <= limits.body_bytes
        )

    def _most(self, call: Call[T]) -> int:
        """Elements that the server takes at a time; of a solve that keeps its state, in the derivatives, too."""
        limits = self._limits
        room_bytes = limits.body_bytes * (1.0 if self._form == "binary" else 0.75)
        found = [limits.batch, limits.batch_size // _entries(self._problem)]
        for level in call.levels:
            arrays = list(_arrays(level))
            entries = [math.prod(place[2].shape[1:]) for place in arrays if self._is_batched(*place)]
            entries += _later(level, self._problem)
            around_bytes = self._part(level, Rows(0, 0, 1)).size_bytes("binary") + _AROUND_BYTES * (1 + len(arrays))
            each_bytes = 8 * sum(entries) + _STATUS_BYTES * bool(_kept(level))
            found += [limits.array_size // max(1, *entries), (room_bytes - around_bytes) // max(1, each_bytes)]
        return int(max(1, min(found)))


def _arrays(call: Call[Any]) -> Iterator[tuple[str, str, Array]]:
    """Those that may have a batch axis, with their places in the body."""
    for group in _GROUPS:
        for name, value in (call.body or {}).get(group, {}).items():
            yield group, name, value


def _state(call: Call[Any]) -> Any:
    return (call.body or {}).get("state")


def _later(call: Call[Any], problem: Problem) -> list[int]:
    """Entries of what a derivative sends of each element beside the parameters, if the call keeps a state for one."""
    kept = _kept(call)
    if not kept:
        return []
    outputs = [1, *map(math.prod, (*problem.variables.values(), *problem.duals.values()))]
    directions = max(outputs, list(map(math.prod, problem.parameters.values())), key=sum)
    return directions + [_sizes(problem).get(name, 0) for name in ("n", "m", "m") if "portable" in kept]


def _kept(call: Call[Any]) -> set[str]:
    """The forms in which a solve keeps its state."""
    return {"state", "portable"}.intersection((call.body or {}).get("return", ()))


def _entries(problem: Problem) -> int:
    """What an element has, as the server counts it."""
    shapes = (*problem.variables.values(), *problem.duals.values(), *problem.parameters.values())
    return max(1, sum(_sizes(problem).values()) + sum(map(math.prod, shapes)))


def _sizes(problem: Problem) -> Mapping[str, int]:
    """Of the standard form."""
    sizes: Mapping[str, int] = problem.details.get("sizes", {})
    return sizes
