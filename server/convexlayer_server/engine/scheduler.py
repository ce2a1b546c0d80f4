"""Who computes what, and when.

Work waits in groups of what can be computed together, and groups are served in turn. A worker that is free takes all of
a group that fits into one merged batch, so nothing waits where nobody is before it, and batches grow with the load. A
problem stays with the workers that have it compiled; when all of those are busy it waits for them as long as compiling
took, then another worker compiles it too: so waiting never costs more than twice the better choice.

Work that a worker took along when it ended is blamed if it was alone, and done again on its own if it was not.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median
from typing import Any, final

from convexlayer.solution import Status

from ..errors import DeadlineError, DocumentError, InvalidError, RequestError, UnavailableError
from ..settings import Settings
from .crew import Crew, Ending, Worker
from .merging import Member, merged, split
from .protocol import ComputeResult, PortableState
from .quarantine import Quarantine
from .work import Done, Work

__all__ = ["Scheduler", "Task"]

_MERGED_BYTES = 2**22
"""Arrays of one merged batch: they are put together on the event loop, and larger ones gain nothing by it."""

_WORTH_KEEPING_S = 2e-3
"""From this long an element, a derivative from kept factors is worth more than one in a merged batch."""

_RETRY_S = 1.0
_KNOWN = 10_000
"""Problems whose summaries and timings are remembered."""

_UNKNOWN_EACH_S = 5e-3
_LATELY = 16


@final
@dataclass(eq=False, kw_only=True)
class Task:
    """Something to do: one part of a request, or, without a request, to compile.

    Attributes:
        problem_id: of the problem.
        document: its document.
        future: has what became of it: a ``ComputeResult``, or the problem's summary.
        member: what to compute.
        home: id under which a worker may keep the solved batch that its state stands for.
        each_s: what solving one element of that batch took.
        alone: whether it is not to be merged.
        since: when it began to wait.
    """

    problem_id: str
    document: Mapping[str, Any]
    future: asyncio.Future[Any]
    member: Member | None = None
    home: str = ""
    each_s: float = 0.0
    alone: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def rows(self) -> int:
        """Elements to compute."""
        return 0 if self.member is None else self.member.rows

    @cached_property
    def group(self) -> Hashable:
        """Tasks of one group differ in their arrays alone."""
        if self.member is None:
            return self.problem_id
        request = self.member.request
        outputs = request.outputs if request.operation == "jvp" else None
        directions = frozenset(request.directions)
        stated = request.state is not None
        return self.problem_id, request.operation, request.options, request.wrt, outputs, directions, stated

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of its arrays, about."""
        if self.member is None:
            return 0
        request = self.member.request
        state = request.state
        arrays = [*request.parameters.values(), *request.directions.values()]
        arrays += [state.x, state.y, state.s] if isinstance(state, PortableState) else []
        return sum(array.nbytes for array in arrays)

    @property
    def merged_bytes(self) -> int:
        """Bytes of its arrays when each has a batch axis, at most."""
        return self.size_bytes * self.rows

    def succeed(self, outcome: Any) -> None:
        """Say what became of it, if anybody still wants to know."""
        if not self.future.done():
            self.future.set_result(outcome)

    def fail(self, error: Exception) -> None:
        """Say what went wrong."""
        if not self.future.done():
            self.future.set_exception(error)


@final
class Scheduler:
    """Gives work to workers; every call comes from the event loop.

    Args:
        settings: ``batching``, ``merged_rows``, ``deadline_s``, ``compile_limit_s``, ``quarantine_s``, and the crew's.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.crew = Crew(settings, self)
        self._waiting: OrderedDict[Hashable, deque[Task]] = OrderedDict()
        self._in_work: dict[Worker, list[Task]] = {}
        self._summaries: OrderedDict[str, Mapping[str, Any]] = OrderedDict()
        self._compile_s: dict[str, float] = {}
        self._each_s: dict[tuple[str, str], deque[float]] = {}
        self._quarantine = Quarantine(settings.quarantine_s)
        self._later: asyncio.TimerHandle | None = None
        self._soon = False

    @property
    def unfinished(self) -> int:
        """Tasks that wait or are in work."""
        return sum(map(len, (*self._waiting.values(), *self._in_work.values())))

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for any of them."""
        groups = (*self._waiting.values(), *self._in_work.values())
        return not all(task.future.done() for group in groups for task in group)

    @property
    def problems(self) -> set[str]:
        """Ids of the problems that a worker has compiled."""
        return set().union(*(worker.problems for worker in self.crew.workers))

    def summary(self, problem_id: str) -> Mapping[str, Any] | None:
        """What is known of a problem that was compiled here before."""
        if problem_id in self._summaries:
            self._summaries.move_to_end(problem_id)
        return self._summaries.get(problem_id)

    def each_s(self, problem_id: str, operation: str) -> float | None:
        """Seconds that one element takes, at best of late: what small batches and first calls take more is not its."""
        return min(self._each_s.get((problem_id, operation), ()), default=None)

    def backlog_s(self) -> float:
        """Seconds until what waits now is in work, about."""
        waiting = 0.0
        for group in self._waiting.values():
            member = group[0].member
            if member is not None:  # those that compile are not counted
                seen = self._each_s.get((group[0].problem_id, member.request.operation))
                waiting += sum(task.rows for task in group) * (median(seen) if seen else _UNKNOWN_EACH_S)
        return waiting / max(1, len(self.crew.workers))

    def submit(self, tasks: list[Task]) -> None:
        """Have tasks of one problem done.

        Raises:
            UnavailableError: their problem is quarantined.
        """
        self._quarantine.check(tasks[0].problem_id)
        for task in tasks:
            self._waiting.setdefault(task.group, deque()).append(task)
        if not self._soon:  # once for all that are submitted in this turn of the loop
            self._soon = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def withdraw(self, task: Task) -> bool:
        """Have a task not done; whether any of it was still to be done."""
        if task.future.done() and not task.future.cancelled():
            return False
        unfinished = task.future.cancel()
        group = self._waiting.get(task.group)
        if group is not None and task in group:
            group.remove(task)
            self._drop_empty(task.group)
        return unfinished

    def give_up(self) -> None:
        """Fail what waits."""
        for group in self._waiting.values():
            for task in group:
                task.fail(UnavailableError("the server is shutting down", retry_after_s=_RETRY_S))
        self._waiting.clear()
        if self._later is not None:
            self._later.cancel()

    def is_waited_for(self, worker: Worker) -> bool:
        """Whether anybody waits for what it has in work."""
        return not all(task.future.done() for task in self._in_work.get(worker, ()))

    def on_ready(self, worker: Worker) -> None:
        """It takes work."""
        self._dispatch()

    def on_done(self, worker: Worker, work: Work, done: Done) -> None:
        """It has done work, and takes more."""
        tasks = self._in_work.pop(worker)
        if done.summary is not None:
            self._remember(work.problem_id, done.summary, done.compile_s)
        if done.error is not None:
            if work.merged and done.compiled:  # whose it is shows when they are done one by one
                self._again(tasks)
            else:
                for task in tasks:
                    task.fail(done.error)
        elif done.result is not None:
            self._answer(work, tasks, done, done.result)
        else:
            for task in tasks:
                task.succeed(self._summaries[work.problem_id])
        self._dispatch()

    def on_gone(self, worker: Worker, work: Work | None, ending: Ending) -> None:
        """It has ended, with work in its hands or without."""
        tasks = self._in_work.pop(worker, [])
        if work is not None:
            if work.merged and ending != "asked":
                self._again(tasks)
            else:
                large = ending == "memory" and sum(task.rows for task in tasks) > 1  # fewer rows may well do
                if not large and ending not in ("asked", "abandoned"):
                    self._quarantine.strike(work.problem_id, ending)
                for task in tasks:
                    task.fail(self._error(ending, compiling=work.request is None))
            self._fail_quarantined(work.problem_id)
        self._dispatch()

    def _answer(self, work: Work, tasks: list[Task], done: Done, result: ComputeResult) -> None:
        key = work.problem_id, "" if work.request is None else work.request.operation
        self._each_s.setdefault(key, deque(maxlen=_LATELY)).append(done.compute_s / len(result.status))
        self._quarantine.forgive(work.problem_id)
        begun = time.monotonic() - done.compute_s - done.compile_s
        members = [task.member for task in tasks if task.member is not None]
        results = split(result, members) if work.merged else [result]
        slow = []
        for task, own in zip(tasks, results, strict=True):
            if done.stopped and str(Status.ITERATION_LIMIT) in own.status:
                slow.append(task)
            else:
                task.succeed(replace(own, seconds={"queue": max(0.0, begun - task.since), **own.seconds}))
        self._again(slow)

    def _again(self, tasks: list[Task]) -> None:
        """Do tasks again that somebody waits for, each on its own, before those that came after them."""
        for task in reversed([task for task in tasks if not task.future.done()]):
            task.alone = True
            self._waiting.setdefault(task.group, deque()).appendleft(task)

    def _remember(self, problem_id: str, summary: Mapping[str, Any], compile_s: float) -> None:
        self._summaries[problem_id] = summary
        self._summaries.move_to_end(problem_id)
        self._compile_s[problem_id] = compile_s
        if len(self._summaries) > _KNOWN:
            oldest, _ = self._summaries.popitem(last=False)
            del self._compile_s[oldest]
            for operation in ("solve", "vjp", "jvp"):
                self._each_s.pop((oldest, operation), None)

    def _dispatch(self) -> None:
        """Give work to those that are free."""
        self._soon = False
        workers = self.crew.workers
        idle = [worker for worker in workers if worker.idle]
        patience = float("inf")
        for key in list(self._waiting) if idle else ():
            group = self._waiting[key]
            while idle and group:
                chosen, wait_s = self._worker_for(group[0], idle, workers)
                if chosen is None:
                    patience = min(patience, wait_s)
                    break
                idle.remove(chosen)
                self._start(chosen, self._taken(group, chosen))
                self._waiting.move_to_end(key)
            self._drop_empty(key)
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if patience < float("inf"):
            self._later = asyncio.get_running_loop().call_later(patience, self._dispatch)

    def _worker_for(self, task: Task, idle: list[Worker], workers: list[Worker]) -> tuple[Worker | None, float]:
        """The best of the idle workers, or None and how long to wait for a better one."""
        for worker in idle:
            if task.home in worker.batches:
                return worker, 0.0
        for worker in idle:
            if task.problem_id in worker.problems:
                return worker, 0.0
        if any(
            task.problem_id in worker.problems or (worker.work and worker.work.problem_id == task.problem_id)
            for worker in workers
        ):
            wait_s = (
                task.since + self._compile_s.get(task.problem_id, self._settings.compile_limit_s) - time.monotonic()
            )
            if wait_s > 0:
                return None, wait_s
        return min(idle, key=lambda worker: len(worker.problems)), 0.0

    def _taken(self, group: deque[Task], worker: Worker) -> list[Task]:
        """The tasks that a worker is to do now, taken from their group."""
        first = group.popleft()
        tasks = [first]
        rows, size_bytes = first.rows, first.merged_bytes
        while group and self._merges(first, worker) and self._merges(group[0], worker):
            rows += group[0].rows
            size_bytes += group[0].merged_bytes
            if first.member is not None and (rows > self._settings.merged_rows or size_bytes > _MERGED_BYTES):
                break
            tasks.append(group.popleft())
        return tasks

    def _merges(self, task: Task, worker: Worker) -> bool:
        """Whether a task may be done together with others of its group; without parameters there is no batch.

        One with a time limit has that for itself.
        """
        if task.member is None:
            return True
        if task.member.request.options.time_limit_s is not None:
            return False
        factors = task.home in worker.batches and task.each_s > _WORTH_KEEPING_S
        return self._settings.batching and not task.alone and not factors and bool(task.member.request.parameters)

    def _start(self, worker: Worker, tasks: list[Task]) -> None:
        first = tasks[0]
        members = [task.member for task in tasks if task.member is not None]
        together = len(members) > 1
        request = merged(members) if together else members[0].request if members else None
        if request is not None and not together and first.home in worker.batches:
            request = replace(request, state=first.home)
        unknown = first.problem_id not in worker.problems
        work = Work(
            problem_id=first.problem_id,
            document=first.document if unknown else None,
            request=request,
            merged=together,
        )
        limit_s = (self._settings.deadline_s if request else 0.0) + (self._settings.compile_limit_s if unknown else 0.0)
        self._in_work[worker] = tasks
        worker.start(
            work, limit_s=limit_s, size_bytes=sum(task.merged_bytes if together else task.size_bytes for task in tasks)
        )

    def _drop_empty(self, key: Hashable) -> None:
        if not self._waiting.get(key, True):
            del self._waiting[key]

    def _error(self, ending: Ending, *, compiling: bool) -> RequestError:
        """What those are told whose work ended a worker."""
        limit_s = self._settings.compile_limit_s if compiling else self._settings.deadline_s
        memory = f"more memory than a worker may have ({self._settings.worker_memory_bytes} bytes)"
        if ending == "deadline":
            taken = f"more than {limit_s:g} s"
            return DocumentError(f"compiling it took {taken}") if compiling else DeadlineError(f"it took {taken}")
        if ending == "memory" and compiling:
            return DocumentError(f"compiling it took {memory}")
        if ending == "memory":
            return InvalidError.at("/parameters", f"it took {memory}; send fewer elements at a time")
        if ending == "asked":
            return UnavailableError("the server is shutting down", retry_after_s=_RETRY_S)
        return UnavailableError("the worker that computed it ended; send it again", retry_after_s=_RETRY_S)

    def _fail_quarantined(self, problem_id: str) -> None:
        """Fail what waits for a problem that is quarantined now."""
        try:
            self._quarantine.check(problem_id)
        except UnavailableError as error:
            for key in list(self._waiting):
                if self._waiting[key][0].problem_id == problem_id:
                    for task in self._waiting.pop(key):
                        task.fail(error)
