"""What is to be done: tasks, which are requests or documents to compile, and the pieces in which they are."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

from .merging import Member
from .parts import Cutter
from .protocol import Begun, ComputeOptions, ComputeRequest, ComputeResult, PortableState, Progress
from .states import SolvedState

__all__ = ["Computation", "Outcome", "Piece", "Task"]

Computation = tuple[str, str, str, ComputeOptions | None]
"""Owner, problem, operation and options: what is likely to take as long from one time to the next."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """What became of a piece.

    Attributes:
        rows: those of the request.
        key: id under which a worker may keep their solved batch.
        result: what was computed.
    """

    rows: slice
    key: str
    result: ComputeResult


@final
@dataclass(eq=False, kw_only=True)
class Task:
    """Something to do for an owner: a request, piece by piece, or, without one, to compile.

    Attributes:
        owner: whose it is.
        problem_id: of the problem.
        document: its document.
        future: has what became of it: a list of ``Outcome``, or the problem's summary.
        cutter: of the request.
        kept: the state that the request starts from, where it is kept here.
        progress: told of every piece that is done.
        on_begun: told when the first piece is handed to a worker.
        long: whether it was seen to take long.
        alone: whether it is not to be merged.
        since: when it began to wait.
        begun: whether any of it was handed to a worker.
    """

    owner: str
    problem_id: str
    document: bytes
    future: asyncio.Future[Any]
    cutter: Cutter | None = None
    kept: SolvedState | None = None
    progress: Progress | None = None
    on_begun: Begun | None = None
    long: bool = False
    alone: bool = False
    since: float = field(default_factory=lambda: time.monotonic())
    begun: bool = False
    _next: int = 0
    _returned: deque[Piece] = field(default_factory=deque)
    _outcomes: list[Outcome] = field(default_factory=list)

    @property
    def batch(self) -> int:
        """Elements to compute."""
        return 0 if self.cutter is None else self.cutter.batch

    @property
    def left(self) -> int:
        """Elements that are not yet handed to a worker."""
        return self.batch - self._next + sum(piece.rows for piece in self._returned)

    @property
    def waiting(self) -> bool:
        """Whether any of it is to be handed to a worker."""
        return bool(self._returned) or (not self.begun if self.cutter is None else self._next < self.batch)

    @property
    def computation(self) -> Computation:
        """What of it is likely to take as long another time."""
        if self.cutter is None:
            return self.owner, self.problem_id, "register", None
        request = self.cutter.request
        return self.owner, self.problem_id, request.operation, request.options

    @cached_property
    def line(self) -> Hashable:
        """Tasks of one line differ in their owners and arrays alone."""
        if self.cutter is None:
            return self.problem_id
        request = self.cutter.request
        outputs = request.outputs if request.operation == "jvp" else None
        stated = request.state is not None
        directions = frozenset(request.directions)
        return self.problem_id, request.operation, request.options, request.wrt, outputs, directions, stated

    @property
    def is_whole(self) -> bool:
        """Whether nothing of it was handed to a worker, and all of it can be at once."""
        return not self.begun and len(self._kept_pieces) <= 1

    @property
    def home(self) -> str:
        """Id under which a worker may keep the solved batch that the next piece starts from; empty where none does."""
        return self._returned[0].home if self._returned else self._kept_pieces.get(self._next, (None, ""))[1]

    @property
    def kept_each_s(self) -> float:
        """What solving one element of its state took."""
        return 0.0 if self.kept is None else self.kept.seconds_each

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all its arrays, about."""
        if self.cutter is None:
            return 0
        points = self.cutter.request.state if self.kept is None else self.kept.points
        return _size_bytes(self.cutter.request, points)

    def take(self, most: int) -> Piece:
        """The next piece, of so many elements at most; a state is cut as its solve was."""
        if not self.begun and self.on_begun is not None:
            self.on_begun()
        self.begun = True
        if self._returned:
            return self._returned.popleft()
        if self.cutter is None:
            return Piece(self, None, slice(0, 0))
        start = self._next
        kept = self._kept_pieces.get(start)
        rows, home = kept or (slice(start, min(self.batch, start + max(most, self.cutter.least_rows))), "")
        self._next = rows.stop
        key = f"{self.cutter.request.request_id}/{start}"
        member = Member(
            self.cutter.part(rows, key, self._points(rows, home)), rows.stop - rows.start, self.cutter.batched
        )
        return Piece(self, member, rows, home)

    def put_back(self, piece: Piece) -> None:
        """Have a piece done again, before those that are not yet handed out."""
        self._returned.append(piece)

    def succeed(self, piece: Piece, result: ComputeResult) -> None:
        """Say what became of a piece; with the last of them the task is done."""
        if self.future.done():
            return
        assert piece.member is not None, "a document that was compiled is no result"
        self._outcomes.append(Outcome(rows=piece.part, key=piece.member.request.request_id, result=result))
        done = sum(outcome.rows.stop - outcome.rows.start for outcome in self._outcomes)
        if self.progress is not None:
            self.progress(done, self.batch)
        if done == self.batch:
            self.future.set_result(sorted(self._outcomes, key=lambda outcome: outcome.rows.start))

    def compiled(self, summary: Mapping[str, Any]) -> None:
        """Say what a document was compiled to."""
        if not self.future.done():
            self.future.set_result(summary)

    def fail(self, error: Exception) -> None:
        """Say why there is no result."""
        if not self.future.done():
            self.future.set_exception(error)

    @cached_property
    def _kept_pieces(self) -> Mapping[int, tuple[slice, str]]:
        """Rows and the id of the solved batch, by the first row; none where one element stands for all."""
        if self.kept is None or len(self.kept.points.status) != self.batch:
            return {}
        return {rows.start: (rows, home) for rows, home in self.kept.pieces}

    def _points(self, rows: slice, home: str) -> PortableState | None:
        assert self.cutter is not None, "a document has no state"
        points = self.cutter.request.state if self.kept is None else self.kept.points
        if not isinstance(points, PortableState):
            return None
        if len(points.status) != self.batch:
            rows = slice(None)
        return PortableState(
            digest=home, x=points.x[rows], y=points.y[rows], s=points.s[rows], status=points.status[rows]
        )


@final
@dataclass(frozen=True, eq=False)
class Piece:
    """Some elements of a task, or a document to compile.

    Attributes:
        task: whose piece it is.
        member: what to compute.
        part: the rows of the request.
        home: id under which a worker may keep the solved batch that its state stands for.
    """

    task: Task
    member: Member | None
    part: slice
    home: str = ""

    @property
    def rows(self) -> int:
        """Elements to compute."""
        return 0 if self.member is None else self.member.rows

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of its arrays, about."""
        return 0 if self.member is None else _size_bytes(self.member.request, self.member.request.state)


def _size_bytes(request: ComputeRequest, state: str | PortableState | None) -> int:
    arrays = [*request.parameters.values(), *request.directions.values()]
    arrays += [state.x, state.y, state.s] if isinstance(state, PortableState) else []
    return sum(array.nbytes for array in arrays)
