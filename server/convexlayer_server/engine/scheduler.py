"""Who computes what, and when.

Tasks are handed out piece by piece, as their turn comes. The last free worker is kept for those who have nothing in
work. What takes long, where others compute, is done by workers in the background, at a lower priority, so that it keeps
nobody waiting who is quick. What is seen to take long only when it is in work takes its worker there with it, and the
one that stands by takes the place; if there is no more room in the background, it is stopped, and done again when there
is.

A problem stays with the workers that have it compiled. When all of those are busy it waits for them as long as
compiling took, then another worker compiles it too: so waiting never costs more than twice the better choice.

Work that a worker took along when it ended is blamed if it was alone, and done again on its own if it was not.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

from convexlayer.status import Status

from ..errors import DeadlineError, DocumentError, InvalidError, RequestError, UnavailableError
from ..fair_queue import Turn
from ..kept import LRUCache
from ..settings import Settings
from .crew import Crew, Worker
from .estimates import LONG_S
from .merging import merged, split
from .protocol import Charge, ComputeResult
from .quarantine import Quarantine
from .task import Piece, Task
from .turns import Turns
from .work import Done, Ending, Work

__all__ = ["Scheduler"]

_REPLACED_S = 0.5
"""What an owner is charged for a worker that had to be ended for it."""

_RETRY_S = 1.0
_KNOWN_BYTES = 2**25
"""Of the documents whose summaries and times of compiling are remembered; a summary is seldom larger."""

_LEAST_BYTES = 2**11
"""That a summary takes at the least."""


class _Known(NamedTuple):
    """What is remembered of a problem that was compiled."""

    summary: Mapping[str, Any]
    compile_s: float


@dataclass(frozen=True, eq=False)
class _InWork:
    """What a worker does.

    Attributes:
        taken: pieces, and what their owners were charged for them beforehand.
        started: when, by the monotonic clock.
    """

    taken: list[tuple[Piece, float]]
    started: float

    @property
    def pieces(self) -> list[Piece]:
        """What it is of."""
        return [piece for piece, _ in self.taken]

    @property
    def owners(self) -> set[str]:
        """Whose it is."""
        return {piece.task.owner for piece in self.pieces}

    @property
    def elements(self) -> int:
        """Of all pieces."""
        return sum(piece.rows for piece in self.pieces)


@final
class Scheduler:
    """Has tasks done by a crew of workers; for use on the event loop.

    Args:
        settings: ``workers``, ``background_workers``, ``batching``, ``merged_rows`` and the limits of workers.
        charge: told of the seconds of a worker that an owner used.

    Attributes:
        crew: the workers.
    """

    def __init__(self, settings: Settings, charge: Charge) -> None:
        self._settings = settings
        self._charge = charge
        self.crew = Crew(settings, self)
        self._turns = Turns(settings)
        self._tasks: set[Task] = set()
        self._in_work: dict[Worker, _InWork] = {}
        self._quarantine = Quarantine(settings.quarantine_s)
        self._known: LRUCache[str, _Known] = LRUCache(_KNOWN_BYTES)
        self._soon = False
        self._look_again_at = float("inf")
        self._later: asyncio.TimerHandle | None = None

    def summary(self, problem_id: str) -> Mapping[str, Any] | None:
        """What is known of a problem that was compiled at any time."""
        known = self._known.get(problem_id)
        return None if known is None else known.summary

    @property
    def problems(self) -> set[str]:
        """Ids of the problems that any worker has compiled."""
        return set().union(*(worker.problems for worker in self.crew.all_workers))

    @property
    def unfinished(self) -> int:
        """Tasks that wait or are in work, those that nobody waits for any more included."""
        return len(self._tasks.union(piece.task for work in self._in_work.values() for piece in work.pieces))

    @property
    def awaited(self) -> int:
        """Tasks whose outcome is waited for."""
        return len(self._tasks)

    def backlog_s(self) -> float:
        """Estimated seconds until what came now would begin."""
        return self._turns.left_s() / max(1, len(self.crew.workers))

    def submit(self, task: Task) -> None:
        """Have a task done.

        Raises:
            RequestError: it is quarantined.
        """
        self._quarantine.check(task)
        self._tasks.add(task)
        task.future.add_done_callback(lambda _: self._tasks.discard(task))
        self._turns.add(task)
        if not self._soon:  # once for all that are submitted in this turn of the loop
            self._soon = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def withdraw(self, task: Task) -> bool:
        """Have a task not done; whether any of it was still to be done."""
        self._turns.remove(task)
        return task.future.cancel()

    def give_up(self) -> None:
        """Fail what is not done."""
        for task in list(self._tasks):
            self._fail(task, UnavailableError("the server is shutting down", retry_after_s=_RETRY_S))
        if self._later is not None:
            self._later.cancel()

    def is_waited_for(self, worker: Worker) -> bool:
        """Whether anybody waits for what it has in work."""
        work = self._in_work.get(worker)
        return work is None or not all(piece.task.future.done() for piece in work.pieces)

    def on_ready(self, worker: Worker) -> None:
        """It takes work."""
        self._dispatch()

    def on_done(self, worker: Worker, work: Work, done: Done) -> None:
        """It has done work, and takes more."""
        in_work = self._settled(worker)
        if done.summary is not None:
            size_bytes = _LEAST_BYTES + len(in_work.pieces[0].task.document)
            self._known.put(work.problem_id, _Known(done.summary, done.compile_s), size_bytes)
        if done.error is not None:
            if work.merged and done.compiled:  # whose it is shows when they are done one by one
                self._put_back(in_work.pieces, alone=True)
            else:
                for piece in in_work.pieces:
                    self._fail(piece.task, done.error)
        elif done.result is not None:
            self._answer(work, in_work, done, done.result)
        elif done.summary is not None:
            for piece in in_work.pieces:
                self._turns.learn(piece, done.compile_s)
                piece.task.compiled(done.summary)
        self._dispatch()

    def on_gone(self, worker: Worker, work: Work | None, ending: Ending) -> None:
        """It has ended, with work in its hands or without."""
        if work is not None:
            in_work = self._settled(worker)
            for owner in in_work.owners:
                self._turns.charge(owner, _REPLACED_S)
            if ending == "stopped":
                self._put_back(in_work.pieces, long=True)
            elif work.merged and ending != "asked":
                self._put_back(in_work.pieces, alone=True)
            else:
                large = ending == "memory" and in_work.elements > 1  # fewer elements may well do
                for piece in in_work.pieces:
                    if not large and ending in ("crash", "killed", "memory"):
                        self._quarantine.strike(piece.task, ending)
                    self._fail(piece.task, self._error(ending, compiling=work.request is None))
                self._fail_quarantined()
        self._dispatch()

    def _settled(self, worker: Worker) -> _InWork:
        """What a worker had in work, its owners charged for what it took."""
        work = self._in_work.pop(worker)
        seconds, elements = time.monotonic() - work.started, work.elements
        for piece, cost in work.taken:
            share_s = seconds * (piece.rows / elements if elements else 1 / len(work.taken))
            self._turns.charge(piece.task.owner, share_s - cost)
            self._charge(piece.task.owner, share_s)
        return work

    def _answer(self, work: Work, in_work: _InWork, done: Done, result: ComputeResult) -> None:
        each_s = done.compute_s / in_work.elements
        members = [piece.member for piece in in_work.pieces if piece.member is not None]
        results = split(result, members) if work.merged else [result]
        slow = []
        for piece, own in zip(in_work.pieces, results, strict=True):
            self._turns.learn(piece, each_s * piece.rows)
            self._quarantine.forgive(piece.task)
            if done.stopped and str(Status.ITERATION_LIMIT) in own.status:
                slow.append(piece)
            else:
                piece.task.succeed(piece, own)
        self._put_back(slow, alone=True)

    def _put_back(self, pieces: list[Piece], *, alone: bool = False, long: bool = False) -> None:
        for piece in reversed(pieces):
            self._turns.put_back(piece, alone=alone, long=long)

    def _fail(self, task: Task, error: Exception) -> None:
        self._turns.remove(task)
        task.fail(error)

    def _dispatch(self) -> None:
        """Give work to those that are free."""
        self._soon = False
        self._look_again_at = float("inf")
        while len(self._turns):
            found = self._next_start()
            if found is not None:
                self._start(*found)
            elif not self._relieved():
                break
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._look_again_at < float("inf"):
            pause_s = max(0.0, self._look_again_at - time.monotonic())
            self._later = asyncio.get_running_loop().call_later(pause_s, self._dispatch)

    def _next_start(self) -> tuple[Turn[Task], Worker] | None:
        """The first task in order that a worker can begin or go on with now, and the worker."""
        front = self.crew.workers
        at_work = self._at_work(front)
        if any(worker.idle for worker in front) or self.crew.room:
            for turn in self._turns.in_order():
                worker = self._worker_for(turn.item, front, at_work)
                if worker is not None:
                    return turn, worker
        return None

    def _worker_for(self, task: Task, front: list[Worker], at_work: Counter[str]) -> Worker | None:
        """Who is to do some of a task now, of those in front that are idle or of those in the background.

        Args:
            task: the task.
            front: the workers in front.
            at_work: how many of them are at something of each owner.
        """
        if self._settings.workers != 0 and self._turns.is_long(task):
            return self._background_worker_for(task)
        idle = [worker for worker in front if worker.idle]
        if not idle:
            return None
        if len(idle) == 1 and at_work[task.owner] and self._turns.is_shared(task.owner, but=at_work):
            return None  # the last one is for those who have none
        having = [worker for worker in front if task.problem_id in worker.problems or _is_at(worker, task)]
        if having and not any(worker in idle for worker in having):
            known = self._known.get(task.problem_id)
            patience_s = self._settings.compile_limit_s if known is None else known.compile_s
            if time.monotonic() < task.since + patience_s:
                self._look_again_at = min(self._look_again_at, task.since + patience_s)
                return None
        return _best(task, idle)

    def _background_worker_for(self, task: Task) -> Worker | None:
        crew = self.crew
        if not crew.room or (crew.room == 1 < crew.most_in_background and self._at_work(crew.background)[task.owner]):
            return None  # the last place is for those who have none
        return _best(task, [worker for worker in crew.background if worker.idle]) or crew.recruit()

    def _at_work(self, workers: list[Worker]) -> Counter[str]:
        """How many of some workers are at something of each owner."""
        return Counter(owner for worker in workers if worker in self._in_work for owner in self._in_work[worker].owners)

    def _relieved(self) -> bool:
        """Whether a worker that takes long was let go to the background, for one that stands by to take its place."""
        now, waiting = time.monotonic(), self._turns.owners()
        for worker in self.crew.workers if self._settings.workers != 0 else ():
            work = self._in_work.get(worker)
            if work is None or worker.ending is not None or not waiting - work.owners:
                continue
            if now < work.started + LONG_S:
                self._look_again_at = min(self._look_again_at, work.started + LONG_S)
                continue
            for piece in work.pieces:
                self._turns.is_late(piece, now - work.started)
            if self.crew.room:
                self.crew.let_go(worker)
                return True
            if not any(other.ending for other in self.crew.background):  # else there soon is
                greedy = self._greedy_worker(work.owners)
                (worker if greedy is None else greedy).end("stopped")
        return False

    def _greedy_worker(self, owners: Set[str]) -> Worker | None:
        """The last to begin in the background for whoever has most there, more than one and none of these."""
        at_work = self._at_work(self.crew.background)
        most = max((count for owner, count in at_work.items() if owner not in owners), default=0)
        greedy = {owner for owner, count in at_work.items() if count == most and owner not in owners}
        found = [worker for worker in self.crew.background if worker in self._in_work and worker.ending is None]
        found = [worker for worker in found if greedy & self._in_work[worker].owners] if most > 1 else []
        return max(found, key=lambda worker: self._in_work[worker].started, default=None)

    def _start(self, turn: Turn[Task], worker: Worker) -> None:
        """Hand a worker the next piece of a task, and what goes with it."""
        taken = [self._turns.take(turn)]
        first = taken[0][0]
        taken += self._turns.take_alike(first, worker.batches)
        pieces = [piece for piece, _ in taken]
        members = [piece.member for piece in pieces if piece.member is not None]
        together = len(members) > 1
        request = merged(members) if together else members[0].request if members else None
        if request is not None and not together and first.home in worker.batches:
            request = replace(request, state=first.home)
        problem_id, document = first.task.problem_id, first.task.document
        unknown = problem_id not in worker.problems
        work = Work(problem_id=problem_id, document=document if unknown else None, request=request, merged=together)
        limit_s = (self._settings.deadline_s if request else 0.0) + (self._settings.compile_limit_s if unknown else 0.0)
        self._in_work[worker] = _InWork(taken, time.monotonic())
        size_bytes = sum(piece.size_bytes * (piece.rows if together else 1) for piece in pieces)
        worker.start(work, limit_s=limit_s, size_bytes=size_bytes)

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

    def _fail_quarantined(self) -> None:
        """Fail what waits of that which is quarantined now."""
        for task in [task for task in self._tasks if task.waiting]:
            try:
                self._quarantine.check(task)
            except RequestError as error:
                self._fail(task, error)


def _best(task: Task, idle: list[Worker]) -> Worker | None:
    """The one that has most of what a task needs."""
    home, problem_id = task.home, task.problem_id
    return min(
        idle,
        key=lambda worker: (home not in worker.batches, problem_id not in worker.problems, len(worker.problems)),
        default=None,
    )


def _is_at(worker: Worker, task: Task) -> bool:
    """Whether a worker has work of a task's problem, and so will have it compiled."""
    return worker.work is not None and worker.work.problem_id == task.problem_id
