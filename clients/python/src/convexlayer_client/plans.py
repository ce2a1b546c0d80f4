"""What takes more than one call: batches in parts, and lists in pages. No input, no output."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, final

from convexlayer_client import wire
from convexlayer_client.account import Capabilities
from convexlayer_client.call import Call, Form
from convexlayer_client.errors import ClientError, InvalidError, ProtocolError, TooLargeError
from convexlayer_client.parts import Cutter, Limits, may_be_too_large, rows_at_most
from convexlayer_client.results import Problem

__all__ = ["Known", "Plan", "problems", "result_of"]

T = TypeVar("T")

Plan = Generator[Sequence[Call[Any]], Sequence[Any], T]
"""Yields calls to be made side by side, is sent their results or thrown an error, and returns what they come to."""

_KEPT_PROBLEMS = 256
_ARRAYS = ("/parameters", "/tangents", "/cotangents", "/state")


@final
class Known:
    """What was learnt of a server; threads may share it.

    Attributes:
        form: How arrays travel.
        limits: What it takes in one request, as far as it was asked.
    """

    def __init__(self) -> None:
        self.form: Form = "binary"
        self.limits: Limits | None = None
        self._problems: OrderedDict[str, Problem] = OrderedDict()

    def learn(self, answer: Any) -> None:
        """Keep of an answer what is of use later: limits, and the shapes of a problem."""
        if isinstance(answer, Capabilities):
            self.limits = Limits.of(answer)
        elif isinstance(answer, Problem):
            self._problems[answer.id] = replace(answer, details={"sizes": answer.details.get("sizes", {})})
            while len(self._problems) > _KEPT_PROBLEMS:
                self._problems.popitem(last=False)

    def problem(self, problem_id: str) -> Problem | None:
        """The shapes of a problem, if they are known."""
        return self._problems.get(problem_id)


def problems() -> Plan[tuple[Problem, ...]]:
    """All pages of what is registered."""
    found: list[Problem] = []
    seen: set[str | None] = {None}
    after = None
    while True:
        ((page, after),) = yield [wire.problems(after)]
        found += page
        if after is None:
            return tuple(found)
        if after in seen:
            raise ProtocolError(f"GET /v1/problems: the page after {after!r} leads to itself")
        seen.add(after)


def result_of(call: Call[T], known: Known, *, measured: bool = False) -> Plan[T]:
    """The result of a call, in parts where the server does not take it in one request.

    Little is sent without asking for the server's limits; where that is refused for its size, or they have changed,
    they are asked for, and it is sent once more, in parts.

    Args:
        call: The call.
        known: What is known of the server.
        measured: Whether the elements of its parts are to be known in any case.

    Raises:
        ShapeError: Batches, or a batch and its state, differ in size.
    """
    if call.operation is None:
        (result,) = yield [call]
        known.learn(result)
        return result
    problem, limits = known.problem(call.problem_id), known.limits
    cutter = None
    if measured or may_be_too_large(call, problem, limits):
        cutter = yield from _cutter(call, known)
    news = known.limits is not limits
    form = known.form
    calls = cutter.parts() if cutter else [call]
    try:
        results = yield calls
    except (TooLargeError, InvalidError) as error:
        if not _is_of_size(error, call) or (news and form == known.form):
            raise
        known.limits = None
        try:
            cutter = yield from _cutter(call, known)
        except ClientError:
            raise error from None
        again = cutter.parts()
        if _bounds(again) == _bounds(calls):
            raise
        results = yield again
    return cutter.joined(results) if cutter else results[0]


def _cutter(call: Call[T], known: Known) -> Plan[Cutter[T]]:
    """By the limits and shapes that are known, or else are asked for."""
    limits = known.limits
    if limits is None:
        (capabilities,) = yield [wire.capabilities()]
        limits = known.limits = Limits.of(capabilities)
    problem = known.problem(call.problem_id)
    if problem is None:
        (problem,) = yield [wire.get(call.problem_id)]
        known.learn(problem)
    return Cutter(call, problem, limits, known.form)


def _is_of_size(error: TooLargeError | InvalidError, call: Call[Any]) -> bool:
    """Whether a call may have been refused for its size, and can be cut."""
    at_arrays = any(place.pointer.startswith(_ARRAYS) for place in error.errors)
    return rows_at_most(call) > 1 and (isinstance(error, TooLargeError) or at_arrays)


def _bounds(calls: Sequence[Call[Any]]) -> list[int]:
    """Where each begins."""
    return [0 if call.rows is None else call.rows.start for call in calls]
