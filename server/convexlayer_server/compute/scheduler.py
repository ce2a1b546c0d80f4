"""The scheduler: which worker computes which task, and when.

- **Fairness.** Tasks are handed out chunk by chunk in the order of the fair queue. The last idle worker is reserved for
  owners that no worker computes for.
- **Slow tasks.** While several owners compute, background workers compute slow tasks at a lower priority. A task that
  turns out slow takes its worker to the background, and the standby takes the place. If the background is full, the
  task is preempted, and computed again when there is room.
- **Placement.** A problem stays with the workers that hold it canonicalised. If all of them are busy, its task waits as
  long as canonicalising took, and then goes to another worker. So waiting costs at most twice the better choice.
- **Failures.** If a worker ends, its task fails if it was alone; merged tasks are computed again, one by one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

from convexlayer.status import Status

from ..errors import RequestError, shutting_down
from ..settings import Settings
from ..shared.caches import LRUCache
from ..shared.fair_queue import QueuedItem
from .batching import merge, split
from .estimates import SLOW_S
from .protocol import ComputeResult, RecordUsage
from .quarantine import Quarantine
from .task import Chunk, Task
from .task_queue import TaskQueue
from .worker_failures import failure
from .worker_handle import WorkerHandle
from .worker_messages import ExitReason, WorkItem, WorkResult
from .worker_pool import WorkerPool

__all__ = ["Scheduler"]

_REPLACEMENT_COST_S = 0.5
"""Seconds charged to an owner for a worker that ended because of it."""

_MAX_SUMMARY_BYTES = 2**25
"""Bytes of the remembered summaries, each measured by its document; a summary is seldom larger than that."""

_MIN_SUMMARY_BYTES = 2**11
"""Bytes of a summary at least."""


class _ProblemRecord(NamedTuple):
    """What the scheduler remembers of a problem that a worker canonicalised."""

    summary: Mapping[str, Any]
    canonicalise_s: float


@dataclass(frozen=True, eq=False)
class _Assignment:
    """The chunks that a worker computes.

    Attributes:
        charged: the chunks, each with the estimated seconds that its owner was charged in advance.
        started: monotonic time of the start.
    """

    charged: list[tuple[Chunk, float]]
    started: float

    @property
    def chunks(self) -> list[Chunk]:
        """The chunks."""
        return [chunk for chunk, _ in self.charged]

    @property
    def owners(self) -> set[str]:
        """Owners of the chunks."""
        return {chunk.task.owner for chunk in self.chunks}

    @property
    def elements(self) -> int:
        """Number of elements of all chunks."""
        return sum(chunk.size for chunk in self.chunks)


@final
class Scheduler:
    """Assigns tasks to the workers of a pool; for use on the event loop.

    Args:
        settings: ``workers``, ``background_workers``, ``batching``, ``merged_elements`` and the limits of workers.
        record_usage: called with the seconds that a worker computed for an owner.

    Attributes:
        pool: the workers.
    """

    def __init__(self, settings: Settings, record_usage: RecordUsage) -> None:
        self._settings = settings
        self._record_usage = record_usage
        self.pool = WorkerPool(settings, self)
        self._queue = TaskQueue(settings)
        self._tasks: set[Task] = set()
        self._assignments: dict[WorkerHandle, _Assignment] = {}
        self._quarantine = Quarantine(settings.quarantine_s)
        self._records: LRUCache[str, _ProblemRecord] = LRUCache(_MAX_SUMMARY_BYTES)
        self._dispatch_scheduled = False
        self._next_dispatch = float("inf")
        self._timer: asyncio.TimerHandle | None = None

    def summary(self, problem_id: str) -> Mapping[str, Any] | None:
        """Return the summary of a problem that a worker has canonicalised, if it is remembered."""
        record = self._records.get(problem_id)
        return None if record is None else record.summary

    @property
    def problems(self) -> set[str]:
        """IDs of the problems that any worker holds canonicalised."""
        return set().union(*(worker.problems for worker in self.pool.all_workers))

    @property
    def unfinished(self) -> int:
        """Number of tasks that wait or are being computed, including cancelled ones."""
        running = (chunk.task for assignment in self._assignments.values() for chunk in assignment.chunks)
        return len(self._tasks.union(running))

    @property
    def awaited(self) -> int:
        """Number of tasks that a request waits for."""
        return len(self._tasks)

    def backlog_s(self) -> float:
        """Return the estimated seconds until a task that arrives now would start."""
        return self._queue.remaining_s() / max(1, len(self.pool.foreground))

    def submit(self, task: Task) -> None:
        """Queue a task.

        Raises:
            RequestError: the task is quarantined.
        """
        self._quarantine.check(task)
        self._tasks.add(task)
        task.future.add_done_callback(lambda _: self._tasks.discard(task))
        self._queue.add(task)
        if not self._dispatch_scheduled:  # once for all tasks of this iteration of the event loop
            self._dispatch_scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def cancel(self, task: Task) -> bool:
        """Cancel a task; return whether any of it was still to be computed."""
        self._queue.remove(task)
        return task.future.cancel()

    def fail_pending(self) -> None:
        """Fail all unfinished tasks."""
        for task in list(self._tasks):
            self._fail(task, shutting_down())
        if self._timer is not None:
            self._timer.cancel()

    def is_awaited(self, worker: WorkerHandle) -> bool:
        """Whether a request waits for the current work of a worker."""
        assignment = self._assignments.get(worker)
        return assignment is None or not all(chunk.task.future.done() for chunk in assignment.chunks)

    def on_ready(self, worker: WorkerHandle) -> None:
        """Handle that a worker accepts work for the first time."""
        self._dispatch()

    def on_done(self, worker: WorkerHandle, work: WorkItem, result: WorkResult) -> None:
        """Handle that a worker finished its work."""
        assignment = self._settle(worker)
        if result.summary is not None:
            size_bytes = _MIN_SUMMARY_BYTES + len(assignment.chunks[0].task.document)
            self._records.put(work.problem_id, _ProblemRecord(result.summary, result.canonicalise_s), size_bytes)
        if result.error is not None:
            if work.merged and result.canonicalised:  # computed one by one, the failing request shows
                self._requeue(assignment.chunks, unmergeable=True)
            else:
                for chunk in assignment.chunks:
                    self._fail(chunk.task, result.error)
        elif result.result is not None:
            self._distribute(work, assignment, result, result.result)
        elif result.summary is not None:
            for chunk in assignment.chunks:
                self._queue.record_duration(chunk, result.canonicalise_s)
                chunk.task.set_summary(result.summary)
        self._dispatch()

    def on_exit(self, worker: WorkerHandle, work: WorkItem | None, reason: ExitReason) -> None:
        """Handle that a worker exited, with unfinished work or without."""
        if work is not None:
            assignment = self._settle(worker)
            for owner in assignment.owners:
                self._queue.charge(owner, _REPLACEMENT_COST_S)
            if reason == "preempted":
                self._requeue(assignment.chunks, slow=True)
            elif work.merged and reason != "requested":
                self._requeue(assignment.chunks, unmergeable=True)
            else:
                divisible = reason == "memory" and assignment.elements > 1  # fewer elements may fit into memory
                for chunk in assignment.chunks:
                    if not divisible and reason in ("crash", "killed", "memory"):
                        self._quarantine.record_strike(chunk.task, reason)
                    error = failure(reason, self._settings, canonicalising=work.request is None)
                    self._fail(chunk.task, error)
                self._fail_quarantined()
        self._dispatch()

    def _settle(self, worker: WorkerHandle) -> _Assignment:
        """Remove and return the assignment of a worker, and charge its owners the time that it took."""
        assignment = self._assignments.pop(worker)
        seconds, elements = time.monotonic() - assignment.started, assignment.elements
        for chunk, charged_s in assignment.charged:
            share_s = seconds * (chunk.size / elements if elements else 1 / len(assignment.charged))
            self._queue.charge(chunk.task.owner, share_s - charged_s)
            self._record_usage(chunk.task.owner, share_s)
        return assignment

    def _distribute(
        self, work: WorkItem, assignment: _Assignment, work_result: WorkResult, result: ComputeResult
    ) -> None:
        """Give each chunk its part of a result; requeue the chunks with elements that were stopped early."""
        element_s = work_result.compute_s / assignment.elements
        requests = [chunk.batched for chunk in assignment.chunks if chunk.batched is not None]
        results = split(result, requests) if work.merged else [result]
        stopped = []
        for chunk, own in zip(assignment.chunks, results, strict=True):
            self._queue.record_duration(chunk, element_s * chunk.size)
            self._quarantine.record_success(chunk.task)
            if work_result.stopped and str(Status.ITERATION_LIMIT) in own.status:
                stopped.append(chunk)
            else:
                chunk.task.succeed(chunk, own)
        self._requeue(stopped, unmergeable=True)

    def _requeue(self, chunks: list[Chunk], *, unmergeable: bool = False, slow: bool = False) -> None:
        for chunk in reversed(chunks):
            self._queue.requeue(chunk, unmergeable=unmergeable, slow=slow)

    def _fail(self, task: Task, error: Exception) -> None:
        self._queue.remove(task)
        task.fail(error)

    def _dispatch(self) -> None:
        """Start tasks on idle workers, as many as possible."""
        self._dispatch_scheduled = False
        self._next_dispatch = float("inf")
        while len(self._queue):
            choice = self._choose()
            if choice is not None:
                self._start(*choice)
            elif not self._relieve():
                break
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._next_dispatch < float("inf"):
            pause_s = max(0.0, self._next_dispatch - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._dispatch)

    def _choose(self) -> tuple[QueuedItem[Task], WorkerHandle] | None:
        """Return the first task, in the order of the queue, that a worker can compute now, and the worker."""
        foreground = self.pool.foreground
        busy = self._busy_workers(foreground)
        if any(worker.idle for worker in foreground) or self.pool.background_capacity:
            for item in self._queue.in_order():
                worker = self._worker_for(item.item, foreground, busy)
                if worker is not None:
                    return item, worker
        return None

    def _worker_for(self, task: Task, foreground: list[WorkerHandle], busy: Counter[str]) -> WorkerHandle | None:
        """Return the worker that should compute some of a task now, if any.

        Args:
            task: the task.
            foreground: the foreground workers.
            busy: number of them that compute for each owner.
        """
        if self._settings.workers != 0 and self._queue.is_slow(task):
            return self._background_worker_for(task)
        idle = [worker for worker in foreground if worker.idle]
        if not idle:
            return None
        if len(idle) == 1 and busy[task.owner] and self._queue.others_compute(task.owner, but=busy):
            return None  # the last idle worker is reserved for owners without one
        holders = [worker for worker in foreground if task.problem_id in worker.problems or _computes(worker, task)]
        if holders and not any(worker in idle for worker in holders):
            record = self._records.get(task.problem_id)
            patience_s = self._settings.canonicalise_limit_s if record is None else record.canonicalise_s
            if time.monotonic() < task.since + patience_s:
                self._next_dispatch = min(self._next_dispatch, task.since + patience_s)
                return None
        return _best(task, idle)

    def _background_worker_for(self, task: Task) -> WorkerHandle | None:
        pool = self.pool
        capacity = pool.background_capacity
        if not capacity or (capacity == 1 < pool.max_background and self._busy_workers(pool.background)[task.owner]):
            return None  # the last place is reserved for owners without one
        return _best(task, [worker for worker in pool.background if worker.idle]) or pool.move_standby_to_background()

    def _busy_workers(self, workers: list[WorkerHandle]) -> Counter[str]:
        """Return how many of some workers compute for each owner."""
        assignments = (self._assignments[worker] for worker in workers if worker in self._assignments)
        return Counter(owner for assignment in assignments for owner in assignment.owners)

    def _relieve(self) -> bool:
        """Move a worker with a slow task to the background, so that the standby can serve waiting owners.

        If the background is full, preempt a task instead. Return whether a worker was moved.
        """
        now, waiting = time.monotonic(), self._queue.owners()
        for worker in self.pool.foreground if self._settings.workers != 0 else ():
            assignment = self._assignments.get(worker)
            if assignment is None or worker.terminated_for is not None or not waiting - assignment.owners:
                continue
            if now < assignment.started + SLOW_S:
                self._next_dispatch = min(self._next_dispatch, assignment.started + SLOW_S)
                continue
            for chunk in assignment.chunks:
                self._queue.record_overrun(chunk, now - assignment.started)
            if self.pool.background_capacity:
                self.pool.move_to_background(worker)
                return True
            if not any(other.terminated_for for other in self.pool.background):  # else there will soon be room
                (self._worker_to_preempt(assignment.owners) or worker).terminate("preempted")
        return False

    def _worker_to_preempt(self, owners: Set[str]) -> WorkerHandle | None:
        """Return the background worker that started last for the owner with most of them.

        Only owners with more than one background worker, and not in ``owners``, are considered.
        """
        busy = self._busy_workers(self.pool.background)
        most = max((count for owner, count in busy.items() if owner not in owners), default=0)
        if most <= 1:
            return None
        largest = {owner for owner, count in busy.items() if count == most and owner not in owners}
        candidates = [
            worker
            for worker in self.pool.background
            if worker in self._assignments
            and worker.terminated_for is None
            and largest & self._assignments[worker].owners
        ]
        return max(candidates, key=lambda worker: self._assignments[worker].started, default=None)

    def _start(self, item: QueuedItem[Task], worker: WorkerHandle) -> None:
        """Send a worker the next chunk of a task, merged with others if possible."""
        charged = [self._queue.take(item)]
        first = charged[0][0]
        charged += self._queue.take_mergeable(first, worker.batches)
        chunks = [chunk for chunk, _ in charged]
        requests = [chunk.batched for chunk in chunks if chunk.batched is not None]
        merged = len(requests) > 1
        request = merge(requests) if merged else requests[0].request if requests else None
        if request is not None and not merged and first.solved_key in worker.batches:
            request = replace(request, state=first.solved_key)
        problem_id, document = first.task.problem_id, first.task.document
        unknown = problem_id not in worker.problems
        work = WorkItem(problem_id=problem_id, document=document if unknown else None, request=request, merged=merged)
        limit_s = self._settings.deadline_s if request else 0.0
        limit_s += self._settings.canonicalise_limit_s if unknown else 0.0
        self._assignments[worker] = _Assignment(charged, time.monotonic())
        size_bytes = sum(chunk.size_bytes * (chunk.size if merged else 1) for chunk in chunks)
        worker.start(work, limit_s=limit_s, size_bytes=size_bytes)

    def _fail_quarantined(self) -> None:
        """Fail the waiting tasks that are quarantined now."""
        for task in [task for task in self._tasks if task.waiting]:
            try:
                self._quarantine.check(task)
            except RequestError as error:
                self._fail(task, error)


def _best(task: Task, idle: list[WorkerHandle]) -> WorkerHandle | None:
    """Return the idle worker that caches most of what a task needs: its solved batch, then its problem."""
    key, problem_id = task.solved_key, task.problem_id
    return min(
        idle,
        key=lambda worker: (key not in worker.batches, problem_id not in worker.problems, len(worker.problems)),
        default=None,
    )


def _computes(worker: WorkerHandle, task: Task) -> bool:
    """Whether a worker computes for a task's problem, and so will hold it canonicalised."""
    return worker.work is not None and worker.work.problem_id == task.problem_id
