"""What is known of the request in work: for its log line, its metrics, and every other line that it causes."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Trace", "current_trace"]


@dataclass(eq=False)
class Trace:
    """One request. It never holds tensors, documents or keys.

    Attributes:
        request_id: of the request.
        key_id: of the caller's key; empty where there is none.
        body_bytes: that were received.
        problem_id: of the problem that was computed with.
        operation: what was computed.
        batch: its elements.
        queue_s: how long it waited for the engine.
        solve_s: how long it was in the engine.
    """

    request_id: str
    key_id: str = ""
    body_bytes: int | None = None
    problem_id: str | None = None
    operation: str | None = None
    batch: int | None = None
    queue_s: float | None = None
    solve_s: float | None = None


_TRACE: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current_trace(begin: Trace | None = None) -> Trace:
    """The request that the caller of this is at work for; a nameless one outside any.

    Args:
        begin: let this be the one, from now on in this task.
    """
    trace = begin or _TRACE.get() or Trace("")
    _TRACE.set(trace)
    return trace
