"""What the engine asks of a worker, and what the worker says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .protocol import ComputeRequest, ComputeResult

__all__ = ["Done", "Outcome", "Ready", "Work"]

Outcome = ComputeResult | Exception | None
"""An answer, an error, or None: to be computed again, on its own."""


@dataclass(frozen=True)
class Ready:
    """A worker takes work."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Work:
    """Requests that differ in their arrays alone, to be computed together; none is to compile the document.

    Attributes:
        problem_id: of the problem.
        document: where the worker does not have it compiled.
        requests: each with an id of its own, under which the worker may keep its solved batch where ``keep`` is set.
            A ``state`` is such an id, or arrays: their ``digest`` is then the id to keep the batch under, if any.
    """

    problem_id: str
    document: Mapping[str, Any] | None
    requests: tuple[ComputeRequest, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Done:
    """What became of work.

    Attributes:
        outcomes: one a request.
        summary: of the problem, where it was compiled.
        error: why it could not be compiled.
        kept: ids of the solved batches that the worker now keeps.
        problems: ids of the problems that it dropped.
        dropped: ids of the solved batches that it dropped.
        compile_s: seconds of compiling.
        compute_s: seconds of computing.
    """

    outcomes: tuple[Outcome, ...] = ()
    summary: Mapping[str, Any] | None = None
    error: Exception | None = None
    kept: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    compile_s: float = 0.0
    compute_s: float = 0.0
