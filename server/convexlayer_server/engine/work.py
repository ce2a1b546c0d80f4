"""What the engine asks of a worker, and what the worker says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pickle import PickleBuffer
from typing import Any, Literal

from .protocol import Abilities, ComputeRequest, ComputeResult

__all__ = ["Done", "Ending", "Ready", "Work"]

Ending = Literal["crash", "killed", "deadline", "memory", "abandoned", "stopped", "asked"]
"""How a worker ended: by itself, by a signal from outside, for taking too long or too much, for being at what nobody
waits for any more, for keeping others waiting, or because it was to."""


@dataclass(frozen=True)
class Ready:
    """A worker takes work, and says what it can do."""

    abilities: Abilities


@dataclass(frozen=True, eq=False, kw_only=True)
class Work:
    """A request, or without one a document to compile.

    Attributes:
        problem_id: of the problem.
        document: as JSON, where the worker does not have it compiled.
        request: the worker may keep its solved batch under its id where ``keep`` is set. A ``state`` is such an id, or
            arrays: their ``digest`` is then the id to keep the batch under, if any.
        merged: whether the rows are those of several requests, none of which is to wait for a slow one.
    """

    problem_id: str
    document: bytes | memoryview | None
    request: ComputeRequest | None = None
    merged: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the document as a buffer, which is sent from where it lies."""
        return vars(self) | {"document": self.document and PickleBuffer(self.document)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Done:
    """What became of work.

    Attributes:
        result: of the request.
        error: why there is none.
        stopped: whether the solve of a merged request was stopped where rows had taken much longer than is usual.
        summary: of the problem, where it was compiled.
        compiled: whether the worker has the problem now.
        kept: ids of the solved batches that the worker now keeps.
        problems: ids of the problems that it dropped.
        dropped: ids of the solved batches that it dropped.
        compile_s: seconds of compiling.
        compute_s: seconds of computing.
    """

    result: ComputeResult | None = None
    error: Exception | None = None
    stopped: bool = False
    summary: Mapping[str, Any] | None = None
    compiled: bool = True
    kept: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    compile_s: float = 0.0
    compute_s: float = 0.0
