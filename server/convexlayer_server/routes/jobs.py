"""Jobs: solves, vjps and jvps that were asked for with ``Prefer: respond-async``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ..jobs import Job
from ..service import Owner, ServiceDependency, held_for
from .bodies import JobAnswer, JobList

__all__ = ["router"]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


async def _job(job_id: str, service: ServiceDependency, owner: Owner) -> Job:
    return service.jobs.get(owner, job_id)


JobDependency = Annotated[Job, Depends(_job)]


@router.get("")
async def list_jobs(service: ServiceDependency, owner: Owner) -> JobList:
    """The caller's jobs, oldest first."""
    return JobList(jobs=[_answer(job, service) for job in service.jobs.all(owner)])


@router.get("/{job_id}")
async def get_job(job: JobDependency, service: ServiceDependency) -> JobAnswer:
    """How far a job is."""
    return _answer(job, service)


@router.get("/{job_id}/result", responses={409: {"description": "it is not done"}})
async def get_result(http: Request, job: JobDependency) -> Response:
    """The answer that the request would have been given, an error included; 409 until the job is done."""
    held_for(http).reserve("result", job.size_bytes)  # it may be forgotten while it is being sent
    return await job.result()


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def get_events(job: JobDependency, service: ServiceDependency) -> AsyncIterator[ServerSentEvent]:
    """Events ``progress`` while the job is in work, each with the job as its data, and one named for how it ended."""
    async for _ in job.changes():
        name = "progress" if job.ended is None else job.status
        yield ServerSentEvent(event=name, data=_answer(job, service))


@router.delete("/{job_id}", status_code=204)
async def delete_job(job: JobDependency, service: ServiceDependency) -> Response:
    """Cancel a job that is in work, or forget its result."""
    await service.jobs.cancel(job)
    return Response(status_code=204)


def _answer(job: Job, service: ServiceDependency) -> JobAnswer:
    return JobAnswer(**job.described(service.jobs.expires_s(job)))
