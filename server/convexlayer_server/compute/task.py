"""Tasks in the queue, and the chunks in which workers compute them. ``batching`` lists the stages of a request."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

from .batching import BatchedRequest
from .protocol import ComputeOptions, ComputeRequest, ComputeResult, OnProgress, OnStart, PortableState
from .states import SolvedState

__all__ = ["Chunk", "ChunkResult", "CostKey", "Task"]

CostKey = tuple[str, str, str, ComputeOptions | None]
"""Owner, problem, operation and options: tasks with the same key probably take the same time an element."""

ChunkResult = tuple[slice, str, ComputeResult]
"""Elements of a chunk, the key under which a worker may cache their solved batch, and their result.

Not the chunk: its task holds the future, so that the arrays would live on in a reference cycle.
"""


@final
@dataclass(eq=False, kw_only=True)
class Task:
    """A queued request, computed chunk by chunk; or, without a request, a document to canonicalise.

    Attributes:
        owner: ID of the key that sent it.
        problem_id: ID of the problem.
        document: document of the problem.
        future: resolves to a list of ``ChunkResult`` in the order of the elements, or to the problem's summary.
        batched: the request; None to canonicalise the document alone.
        solved: the state that the request starts from, if this process keeps it.
        on_progress: called for every finished chunk.
        on_start: called when a worker receives the first chunk.
        slow: whether the task was seen to occupy a worker for long.
        unmergeable: whether the task must not be merged with others.
        since: monotonic time at which the task entered the queue.
        started: whether a worker received any of it.
    """

    owner: str
    problem_id: str
    document: bytes
    future: asyncio.Future[Any]
    batched: BatchedRequest | None = None
    solved: SolvedState | None = None
    on_progress: OnProgress | None = None
    on_start: OnStart | None = None
    slow: bool = False
    unmergeable: bool = False
    since: float = field(default_factory=lambda: time.monotonic())
    started: bool = False
    _next: int = 0
    _returned: deque[Chunk] = field(default_factory=deque)
    _results: list[ChunkResult] = field(default_factory=list)

    @property
    def elements(self) -> int:
        """Number of elements; 0 for a document."""
        return 0 if self.batched is None else self.batched.elements

    @property
    def remaining(self) -> int:
        """Number of elements that no worker has received."""
        return self.elements - self._next + sum(chunk.size for chunk in self._returned)

    @property
    def waiting(self) -> bool:
        """Whether any of it waits for a worker."""
        return bool(self._returned) or (not self.started if self.batched is None else self._next < self.elements)

    @property
    def cost_key(self) -> CostKey:
        """Key under which the durations of such tasks are recorded."""
        if self.batched is None:
            return self.owner, self.problem_id, "register", None
        request = self.batched.request
        return self.owner, self.problem_id, request.operation, request.options

    @cached_property
    def merge_key(self) -> Hashable:
        """Key of the tasks that can be merged: they differ in their owners and arrays alone."""
        if self.batched is None:
            return self.problem_id
        request = self.batched.request
        outputs = request.outputs if request.operation == "jvp" else None
        has_state = request.state is not None
        directions = frozenset(request.directions)
        return self.problem_id, request.operation, request.options, request.wrt, outputs, directions, has_state

    @property
    def is_whole(self) -> bool:
        """Whether no worker received any of it, and one chunk can hold all of it."""
        return not self.started and len(self._solved_chunks) <= 1

    @property
    def solved_key(self) -> str:
        """Key under which a worker may cache the solved batch that the next chunk starts from, or empty."""
        return self._returned[0].solved_key if self._returned else self._solved_chunks.get(self._next, (None, ""))[1]

    @property
    def solve_seconds_each(self) -> float:
        """Seconds that solving one element of its state took; 0 without a state."""
        return 0.0 if self.solved is None else self.solved.seconds_each

    @cached_property
    def size_bytes(self) -> int:
        """Approximate bytes of all arrays."""
        if self.batched is None:
            return 0
        state = self.batched.request.state if self.solved is None else self.solved.points
        return _size_bytes(self.batched.request, state)

    def take(self, max_elements: int) -> Chunk:
        """Return the next chunk; the chunks of a kept state are those of its solve, whatever their size."""
        if not self.started and self.on_start is not None:
            self.on_start()
        self.started = True
        if self._returned:
            return self._returned.popleft()
        if self.batched is None:
            return Chunk(self, None, slice(0, 0))
        start = self._next
        solved = self._solved_chunks.get(start)
        stop = min(self.elements, start + max(max_elements, self.batched.min_chunk))
        elements, solved_key = solved or (slice(start, stop), "")
        self._next = elements.stop
        key = f"{self.batched.request.request_id}/{start}"
        return Chunk(self, self.batched.slice(elements, key, self._state(elements, solved_key)), elements, solved_key)

    def requeue(self, chunk: Chunk) -> None:
        """Compute a chunk again, before the chunks that were not taken yet."""
        self._returned.append(chunk)

    def succeed(self, chunk: Chunk, result: ComputeResult) -> None:
        """Record the result of a chunk; the last one resolves the future."""
        if self.future.done():
            return
        assert chunk.batched is not None, "canonicalising a document has no ComputeResult"
        self._results.append((chunk.elements, chunk.batched.request.request_id, result))
        done = sum(elements.stop - elements.start for elements, _, _ in self._results)
        if self.on_progress is not None:
            self.on_progress(done, self.elements)
        if done == self.elements:
            self.future.set_result(sorted(self._results, key=lambda each: each[0].start))

    def set_summary(self, summary: Mapping[str, Any]) -> None:
        """Resolve the future of a document to its summary."""
        if not self.future.done():
            self.future.set_result(summary)

    def fail(self, error: Exception) -> None:
        """Fail the future."""
        if not self.future.done():
            self.future.set_exception(error)

    @cached_property
    def _solved_chunks(self) -> Mapping[int, tuple[slice, str]]:
        """Elements and cache key of each chunk of the kept state, by first element; empty if one element serves all."""
        if self.solved is None or len(self.solved.points.status) != self.elements:
            return {}
        return {elements.start: (elements, key) for elements, key in self.solved.chunks}

    def _state(self, elements: slice, solved_key: str) -> PortableState | None:
        assert self.batched is not None, "a document has no state"
        state = self.batched.request.state if self.solved is None else self.solved.points
        if not isinstance(state, PortableState):
            return None
        if len(state.status) != self.elements:
            elements = slice(None)
        return PortableState(
            digest=solved_key,
            x=state.x[elements],
            y=state.y[elements],
            s=state.s[elements],
            status=state.status[elements],
        )


@final
@dataclass(frozen=True, eq=False)
class Chunk:
    """Some elements of a task, or its document.

    Attributes:
        task: the task.
        batched: the elements as a request; None for a document.
        elements: their positions in the task.
        solved_key: key under which a worker may cache the solved batch of the state.
    """

    task: Task
    batched: BatchedRequest | None
    elements: slice
    solved_key: str = ""

    @property
    def size(self) -> int:
        """Number of elements; 0 for a document."""
        return 0 if self.batched is None else self.batched.elements

    @cached_property
    def size_bytes(self) -> int:
        """Approximate bytes of its arrays."""
        return 0 if self.batched is None else _size_bytes(self.batched.request, self.batched.request.state)


def _size_bytes(request: ComputeRequest, state: str | PortableState | None) -> int:
    arrays = [*request.parameters.values(), *request.directions.values()]
    arrays += [state.x, state.y, state.s] if isinstance(state, PortableState) else []
    return sum(array.nbytes for array in arrays)
