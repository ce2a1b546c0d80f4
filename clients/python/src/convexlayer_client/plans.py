"""Plans: sequences of calls, for batches in parts and lists in pages. This module does no I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, final

from convexlayer_client import wire
from convexlayer_client.account import Capabilities
from convexlayer_client.call import Call, Form
from convexlayer_client.errors import ClientError, InvalidError, ProtocolError, TooLargeError
from convexlayer_client.parts import BatchSplitter, Limits, max_elements, may_be_too_large
from convexlayer_client.results import Problem

__all__ = ["Plan", "ServerInfo", "problems", "result_of"]

T = TypeVar("T")

Plan = Generator[Sequence[Call[Any]], Sequence[Any], T]
"""A generator that yields calls to send concurrently, receives their results or an error, and returns the result."""

_MAX_PROBLEMS = 256
"""Problems whose shapes are remembered; an evicted one costs a request."""

_ARRAYS = ("/parameters", "/tangents", "/cotangents", "/state")
"""JSON pointers of the arrays of a body, of which the server may say that they are too large."""


@final
class ServerInfo:
    """What responses have revealed about a server; thread-safe.

    Attributes:
        form: Encoding of arrays.
        limits: Limits on one request, once they were requested.
    """

    def __init__(self) -> None:
        self.form: Form = "binary"
        self.limits: Limits | None = None
        self._problems: OrderedDict[str, Problem] = OrderedDict()

    def remember(self, result: Any) -> None:
        """Remember the limits, or the shapes of a problem, if a result has them."""
        if isinstance(result, Capabilities):
            self.limits = Limits.of(result)
        elif isinstance(result, Problem):
            self._problems[result.id] = replace(result, details={"sizes": result.details.get("sizes", {})})
            while len(self._problems) > _MAX_PROBLEMS:
                self._problems.popitem(last=False)

    def problem(self, problem_id: str) -> Problem | None:
        """Return a problem, if it is remembered."""
        return self._problems.get(problem_id)


def problems() -> Plan[tuple[Problem, ...]]:
    """Return all registered problems, page by page."""
    found: list[Problem] = []
    seen: set[str | None] = {None}
    after = None
    while True:
        ((page, after),) = yield [wire.problems(after)]
        found += page
        if after is None:
            return tuple(found)
        if after in seen:
            raise ProtocolError(f"GET /v1/problems: the page after {after!r} repeats an earlier page")
        seen.add(after)


def result_of(call: Call[T], known: ServerInfo, *, measured: bool = False) -> Plan[T]:
    """Return the result of a call, sent in parts if it exceeds the server's limits.

    A small call is sent without requesting the limits. If the server rejects it because of its size, or the limits have
    changed, they are requested, and the call is sent again in parts.

    Args:
        call: The call.
        known: What is known about the server.
        measured: Whether the number of elements is needed in any case, for a progress bar.

    Raises:
        ShapeError: Batch sizes, or those of a batch and its state, differ.
    """
    if call.operation is None:
        (result,) = yield [call]
        known.remember(result)
        return result
    problem, limits = known.problem(call.problem_id), known.limits
    splitter = None
    if measured or may_be_too_large(call, problem, limits):
        splitter = yield from _splitter(call, known)
    limits_are_new = known.limits is not limits
    form = known.form
    calls = splitter.parts() if splitter else [call]
    try:
        results = yield calls
    except (TooLargeError, InvalidError) as error:
        if not _is_about_size(error, call) or (limits_are_new and form == known.form):
            raise
        known.limits = None
        try:
            splitter = yield from _splitter(call, known)
        except ClientError:
            raise error from None
        again = splitter.parts()
        if _bounds(again) == _bounds(calls):
            raise
        results = yield again
    return splitter.joined(results) if splitter else results[0]


def _splitter(call: Call[T], known: ServerInfo) -> Plan[BatchSplitter[T]]:
    """Return the splitter of a call; request the limits and the problem if they are unknown."""
    limits = known.limits
    if limits is None:
        (capabilities,) = yield [wire.capabilities()]
        limits = known.limits = Limits.of(capabilities)
    problem = known.problem(call.problem_id)
    if problem is None:
        (problem,) = yield [wire.get(call.problem_id)]
        known.remember(problem)
    return BatchSplitter(call, problem, limits, known.form)


def _is_about_size(error: TooLargeError | InvalidError, call: Call[Any]) -> bool:
    """Whether a call may have been rejected because of its size, and can be split."""
    at_arrays = any(place.pointer.startswith(_ARRAYS) for place in error.errors)
    return max_elements(call) > 1 and (isinstance(error, TooLargeError) or at_arrays)


def _bounds(calls: Sequence[Call[Any]]) -> list[int]:
    """Return the first element of each call."""
    return [0 if call.batch_slice is None else call.batch_slice.start for call in calls]
