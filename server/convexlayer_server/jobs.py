"""Requests that outlive their connections: what they do, how far they are, and their answers for a time."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal, Protocol, final

from fastapi import Response

from .engine import ComputeRequest, ComputeResult, Progress
from .errors import ConflictError, GoneError, NotFoundError, RequestError, TooManyError
from .kept import Kept
from .settings import Settings

__all__ = ["Job", "Jobs"]

Respond = Callable[[ComputeResult], Awaitable[Response]]

_LOG = logging.getLogger(__name__)

_AROUND_BYTES = 5000
"""What a job takes beside the arrays of its answer."""

Status = Literal["waiting", "running", "done", "cancelled"]


@final
class Job:
    """One request in work, or its answer.

    Args:
        request: what is computed.
        respond: makes the response of what was computed.

    Attributes:
        id: its id; it begins with j_.
        owner: whose it is.
        request_id: that of the request, for the engine.
        started: when, by the monotonic clock.
        status: waiting, running, done (with an answer or an error) or cancelled.
        task: what performs it, once it has begun.
    """

    def __init__(self, request: ComputeRequest, respond: Respond) -> None:
        self.id = f"j_{secrets.token_urlsafe(16)}"
        self.owner = request.owner
        self.request_id = request.request_id
        self.status: Status = "waiting"
        self.task: asyncio.Task[None] | None = None
        self._described = {"id": self.id, "problem_id": request.problem_id, "operation": request.operation}
        self._elements = (0, 0)
        self.started = time.monotonic()
        self._ended: float | None = None
        self._respond = respond
        self._outcome: ComputeResult | Exception | None = None
        self._changed = asyncio.Event()

    @property
    def ended(self) -> float | None:
        """When it ended, by the monotonic clock."""
        return self._ended

    @property
    def size_bytes(self) -> int:
        """Bytes of its answer, about."""
        return _AROUND_BYTES + (self._outcome.size_bytes if isinstance(self._outcome, ComputeResult) else 0)

    def described(self, expires_s: float | None = None) -> dict[str, Any]:
        """Plain JSON; with the time for which the result will be kept, where it is there."""
        done, total = self._elements
        return {
            **self._described,
            "status": self.status,
            "done": done,
            "total": total,
            "seconds": round((self._ended or time.monotonic()) - self.started, 3),
            "expires_s": expires_s,
        }

    async def result(self) -> Response:
        """The answer as the request itself would have been given.

        Raises:
            ConflictError: it is not done.
            GoneError: it was cancelled.
            Exception: what the request would have raised.
        """
        if self.status == "cancelled":
            raise GoneError(f"job {self.id} was cancelled")
        if self._outcome is None:
            raise ConflictError(f"job {self.id} is {self.status}; its /events say when it is done", retry_after_s=1.0)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return await self._respond(self._outcome)

    def move(self, done: int, total: int) -> None:
        """Say how many elements are done, of how many."""
        self._elements = (done, total)
        if self._ended is None:
            self.status = "running" if done or total else "waiting"
        self._wake()

    def end(self, status: Status, outcome: ComputeResult | Exception | None = None) -> None:
        """Say that it is over, and with what."""
        if self._ended is None:
            if isinstance(outcome, Exception):
                outcome = outcome.with_traceback(None)  # its frames hold the arrays of the request
            self.status, self._outcome, self._ended = status, outcome, time.monotonic()
            self._wake()

    async def changes(self) -> AsyncIterator[None]:
        """Comes back at once, then after every change, to the end of the job."""
        while True:
            changed, over = self._changed, self._ended is not None
            yield
            if over:
                return
            await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Cancels(Protocol):
    """What gives up the work of a job."""

    async def cancel(self, request_id: str) -> bool:
        """Give up a request; whether any of it was still to be done."""


@final
class Jobs:
    """The jobs of all callers; every call comes from the event loop.

    Args:
        settings: ``max_jobs_per_key``, ``job_bytes`` and ``job_s``.
        engine: what the work is cancelled at.
    """

    def __init__(self, settings: Settings, engine: Cancels) -> None:
        self._settings = settings
        self._engine = engine
        self._in_work: dict[str, Job] = {}
        self._done: Kept[Job] = Kept(settings.job_bytes, settings.job_s)

    def start(
        self, request: ComputeRequest, work: Callable[[Progress], Awaitable[ComputeResult]], respond: Respond
    ) -> Job:
        """Begin a job.

        Args:
            request: what is computed.
            work: computes it.
            respond: makes the response, whenever the result is asked for.

        Raises:
            TooManyError: its owner has as many as one may have, and none of them is done.
        """
        mine = self.all(request.owner)
        if len(mine) >= self._settings.max_jobs_per_key:
            oldest = next((job for job in mine if job.ended is not None), None)
            if oldest is None:
                raise TooManyError(
                    f"{len(mine)} jobs of this key are in work, which is as many as it may have", retry_after_s=1.0
                )
            self._done.drop(oldest.id)
        job = Job(request, respond)
        self._in_work[job.id] = job
        job.task = asyncio.create_task(self._perform(job, work))
        return job

    def get(self, owner: str, job_id: str) -> Job:
        """A job of its owner.

        Raises:
            NotFoundError: there is none of this id, or it is another's.
        """
        job = self._in_work.get(job_id) or self._done.get(job_id, owner)
        if job is None or job.owner != owner:
            raise NotFoundError(f"no job {job_id[:80]!r} is here; results are kept for {self._settings.job_s:g} s")
        return job

    def all(self, owner: str) -> list[Job]:
        """The jobs of an owner, oldest first."""
        jobs = [*self._done.all(owner), *(job for job in self._in_work.values() if job.owner == owner)]
        return sorted(jobs, key=lambda job: job.started)

    def expires_s(self, job: Job) -> float | None:
        """For how long the result of a job will be kept; None while there is none."""
        return None if job.ended is None else self._done.left_s(job.id)

    async def cancel(self, job: Job) -> None:
        """Give a job up, and forget it."""
        self._forget(job)
        job.end("cancelled")
        await self._engine.cancel(job.request_id)
        if job.task is not None:
            job.task.cancel()

    async def close(self) -> None:
        """Give up what is still in work."""
        for job in list(self._in_work.values()):
            await self.cancel(job)

    async def _perform(self, job: Job, work: Callable[[Progress], Awaitable[ComputeResult]]) -> None:
        try:
            job.end("done", await work(job.move))
        except asyncio.CancelledError:
            job.end("cancelled")
            raise
        except RequestError as error:
            job.end("done", error)
        except Exception as error:  # a bug, which whoever asks for the result is told of as in a request
            _LOG.exception("job %s failed", job.id)
            job.end("done", error)
        finally:
            if self._in_work.pop(job.id, None) is not None:
                self._done.put(job.id, job.owner, job, job.size_bytes)

    def _forget(self, job: Job) -> None:
        self._in_work.pop(job.id, None)
        self._done.drop(job.id)
