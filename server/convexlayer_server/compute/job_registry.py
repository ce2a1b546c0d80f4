"""Jobs: requests that outlive their connections, their progress, and their results for a limited time."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal, Protocol, final

from ..errors import MAX_QUOTED, RETRY_S, ConflictError, GoneError, NotFoundError, RequestError, TooManyError
from ..settings import Settings
from ..shared.caches import FairShareCache
from .protocol import ComputeRequest, ComputeResult, OnProgress

__all__ = ["Job", "JobRegistry"]

Respond = Callable[[ComputeResult], Awaitable[Any]]
"""Makes the response of a result, whenever the client asks for it."""

_LOG = logging.getLogger(__name__)

_OVERHEAD_BYTES = 5000
"""Overhead of a job in bytes, without the arrays of its result."""

Status = Literal["waiting", "running", "done", "cancelled"]


@final
class Job:
    """A request that runs in the background, or its result.

    Args:
        request: the request.
        respond: makes the response.

    Attributes:
        id: ID, which begins with ``j_``.
        owner: ID of the key that owns it.
        request_id: ID of the request in the compute backend.
        started: monotonic time of the start.
        status: waiting, running, done (with a result or an error) or cancelled.
        task: the asyncio task that performs it.
    """

    def __init__(self, request: ComputeRequest, respond: Respond) -> None:
        self.id = f"j_{secrets.token_urlsafe(16)}"
        self.owner = request.owner
        self.request_id = request.request_id
        self.status: Status = "waiting"
        self.task: asyncio.Task[None] | None = None
        self._description = {"id": self.id, "problem_id": request.problem_id, "operation": request.operation}
        self._elements = (0, 0)
        self.started = time.monotonic()
        self._ended: float | None = None
        self._respond = respond
        self._outcome: ComputeResult | Exception | None = None
        self._changed = asyncio.Event()

    @property
    def ended(self) -> float | None:
        """Monotonic time of the end; None until then."""
        return self._ended

    @property
    def size_bytes(self) -> int:
        """Approximate bytes of its result."""
        return _OVERHEAD_BYTES + (self._outcome.size_bytes if isinstance(self._outcome, ComputeResult) else 0)

    def describe(self, expires_s: float | None = None) -> dict[str, Any]:
        """Return its description as plain JSON, with the seconds until its result expires."""
        done, total = self._elements
        return {
            **self._description,
            "status": self.status,
            "done": done,
            "total": total,
            "seconds": round((self._ended or time.monotonic()) - self.started, 3),
            "expires_s": expires_s,
        }

    async def response(self) -> Any:
        """Return the response that the request itself would have received.

        Raises:
            ConflictError: the job is not done.
            GoneError: the job was cancelled.
            Exception: the error of the request.
        """
        if self.status == "cancelled":
            raise GoneError(f"job {self.id} was cancelled")
        if self._outcome is None:
            raise ConflictError(
                f"job {self.id} is {self.status}; its /events report when it is done", retry_after_s=RETRY_S
            )
        if isinstance(self._outcome, Exception):
            raise self._outcome.with_traceback(None)  # else each call would add its frames to the same error
        return await self._respond(self._outcome)

    def set_progress(self, done: int, total: int) -> None:
        """Set the number of computed elements, and of all elements."""
        self._elements = (done, total)
        if self._ended is None:
            self.status = "running" if done or total else "waiting"
        self._notify()

    def finish(self, status: Status, outcome: ComputeResult | Exception | None = None) -> None:
        """Set the final status and the outcome, unless it has ended before."""
        if self._ended is None:
            if isinstance(outcome, Exception):
                outcome = outcome.with_traceback(None)  # its frames hold the arrays of the request
            self.status, self._outcome, self._ended = status, outcome, time.monotonic()
            self._notify()

    async def changes(self) -> AsyncIterator[None]:
        """Yield at once, and then after every change until the job ends."""
        while True:
            changed, over = self._changed, self._ended is not None
            yield
            if over:
                return
            await changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class CancelsRequests(Protocol):
    """Cancels the request of a job."""

    async def cancel(self, request_id: str) -> bool:
        """Cancel a request; return whether any of it was still to be computed."""


@final
class JobRegistry:
    """The jobs of all owners; for use on the event loop.

    Args:
        settings: ``max_jobs_per_key``, ``job_bytes`` and ``job_s``.
        compute: the compute backend.
    """

    def __init__(self, settings: Settings, compute: CancelsRequests) -> None:
        self._settings = settings
        self._compute = compute
        self._running: dict[str, Job] = {}
        self._done: FairShareCache[Job] = FairShareCache(settings.job_bytes, settings.job_s)

    def start(
        self, request: ComputeRequest, run: Callable[[OnProgress], Awaitable[ComputeResult]], respond: Respond
    ) -> Job:
        """Start a job.

        Args:
            request: the request.
            run: computes it.
            respond: makes the response, whenever the client asks for it.

        Raises:
            TooManyError: its owner has the maximum number of jobs, and none of them is done.
        """
        own = self.all(request.owner)
        if len(own) >= self._settings.max_jobs_per_key:
            oldest = next((job for job in own if job.ended is not None), None)
            if oldest is None:
                raise TooManyError(
                    f"{len(own)} jobs of this key are running, which is the limit", retry_after_s=RETRY_S
                )
            self._done.drop(oldest.id)
        job = Job(request, respond)
        self._running[job.id] = job
        job.task = asyncio.create_task(self._perform(job, run))
        return job

    def get(self, owner: str, job_id: str) -> Job:
        """Return a job of an owner.

        Raises:
            NotFoundError: there is no job of this ID, or another key owns it.
        """
        job = self._running.get(job_id) or self._done.get(job_id, owner)
        if job is None or job.owner != owner:
            raise NotFoundError(
                f"there is no job {job_id[:MAX_QUOTED]!r}; results expire after {self._settings.job_s:g} s"
            )
        return job

    def all(self, owner: str) -> list[Job]:
        """Return the jobs of an owner, oldest first."""
        jobs = [*self._done.all(owner), *(job for job in self._running.values() if job.owner == owner)]
        return sorted(jobs, key=lambda job: job.started)

    def expires_s(self, job: Job) -> float | None:
        """Return the seconds until the result of a job expires; None until it is done."""
        return None if job.ended is None else self._done.left_s(job.id)

    async def cancel(self, job: Job) -> None:
        """Cancel a job, and drop it."""
        self._drop(job)
        job.finish("cancelled")
        await self._compute.cancel(job.request_id)
        if job.task is not None:
            job.task.cancel()

    async def close(self) -> None:
        """Cancel all running jobs."""
        for job in list(self._running.values()):
            await self.cancel(job)

    async def _perform(self, job: Job, run: Callable[[OnProgress], Awaitable[ComputeResult]]) -> None:
        try:
            job.finish("done", await run(job.set_progress))
        except asyncio.CancelledError:
            job.finish("cancelled")
            raise
        except RequestError as error:
            job.finish("done", error)
        except Exception as error:  # a bug; the client receives it with the result, as from a request
            _LOG.exception("job %s failed", job.id)
            job.finish("done", error)
        finally:
            if self._running.pop(job.id, None) is not None:
                self._done.put(job.id, job.owner, job, job.size_bytes)

    def _drop(self, job: Job) -> None:
        self._running.pop(job.id, None)
        self._done.drop(job.id)
