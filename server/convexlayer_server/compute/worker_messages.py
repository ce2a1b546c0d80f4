"""Messages between the scheduler and its workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pickle import PickleBuffer
from typing import Any, Literal

from .protocol import ComputeRequest, ComputeResult, WorkerCapabilities

__all__ = ["ExitReason", "WorkItem", "WorkResult", "WorkerReady"]

ExitReason = Literal["crash", "killed", "deadline", "memory", "cancelled", "preempted", "requested"]
"""Why a worker ended.

    crash       it ended by itself
    killed      a signal from outside, such as that of the kernel's out-of-memory killer
    deadline    its work took too long
    memory      it used too much memory
    cancelled   every request that it computed was cancelled
    preempted   it computed for long while other owners waited
    requested   the pool ended it to make room, or to shut down
"""


@dataclass(frozen=True)
class WorkerReady:
    """First message of a worker: it accepts work."""

    capabilities: WorkerCapabilities


@dataclass(frozen=True, eq=False, kw_only=True)
class WorkItem:
    """A request to compute; without one, a document to canonicalise.

    Attributes:
        problem_id: ID of the problem.
        document: document as JSON, if the worker does not hold the problem.
        request: the worker caches its solved batch under the request's ID if ``keep`` is set. Its ``state`` may be the
            key of a cached batch; or arrays, whose ``digest``, unless empty, is the key to cache their batch under.
        merged: whether it merges several requests, none of which should wait for a slow one.
    """

    problem_id: str
    document: bytes | memoryview | None
    request: ComputeRequest | None = None
    merged: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the document as a buffer, which is sent without a copy."""
        return vars(self) | {"document": self.document and PickleBuffer(self.document)}


@dataclass(frozen=True, eq=False, kw_only=True)
class WorkResult:
    """The answer to a work item.

    Attributes:
        result: result of the request.
        error: the error, if it failed.
        stopped: whether the iteration limit of merged requests stopped a slow element.
        summary: summary of the problem, if the worker canonicalised it.
        canonicalised: whether the worker holds the problem now.
        cached: keys of the solved batches that the worker now caches.
        evicted_problems: IDs of the problems that it evicted.
        evicted_batches: keys of the solved batches that it evicted.
        canonicalise_s: seconds of canonicalising.
        compute_s: seconds of computing.
    """

    result: ComputeResult | None = None
    error: Exception | None = None
    stopped: bool = False
    summary: Mapping[str, Any] | None = None
    canonicalised: bool = True
    cached: tuple[str, ...] = ()
    evicted_problems: tuple[str, ...] = ()
    evicted_batches: tuple[str, ...] = ()
    canonicalise_s: float = 0.0
    compute_s: float = 0.0
