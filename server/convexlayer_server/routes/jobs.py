"""Jobs: solves, vjps and jvps that were requested with ``Prefer: respond-async``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ..compute.job_registry import Job
from ..http.response_schemas import JobList, JobResponse
from .dependencies import Owner, ServiceDependency, reservation_of

__all__ = ["router"]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


async def _job(job_id: str, service: ServiceDependency, owner: Owner) -> Job:
    return service.jobs.get(owner, job_id)


JobDependency = Annotated[Job, Depends(_job)]


@router.get("")
async def list_jobs(service: ServiceDependency, owner: Owner) -> JobList:
    """The jobs of the key, oldest first."""
    return JobList(jobs=[_describe(job, service) for job in service.jobs.all(owner)])


@router.get("/{job_id}")
async def get_job(job: JobDependency, service: ServiceDependency) -> JobResponse:
    """The progress of a job."""
    return _describe(job, service)


@router.get("/{job_id}/result", responses={409: {"description": "the job is not done"}})
async def get_result(http: Request, job: JobDependency) -> Response:
    """The response that the request would have received, possibly an error; 409 until the job is done."""
    reservation_of(http).reserve("result", job.size_bytes)  # the job may expire while its result is being sent
    response: Response = await job.response()
    return response


@router.get("/{job_id}/events", response_class=EventSourceResponse)
async def get_events(job: JobDependency, service: ServiceDependency) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: ``progress`` while the job runs, with the job as data, and a last one named by its status."""
    async for _ in job.changes():
        name = "progress" if job.ended is None else job.status
        yield ServerSentEvent(event=name, data=_describe(job, service))


@router.delete("/{job_id}", status_code=204)
async def delete_job(job: JobDependency, service: ServiceDependency) -> Response:
    """Cancel a running job, or drop its result."""
    await service.jobs.cancel(job)
    return Response(status_code=204)


def _describe(job: Job, service: ServiceDependency) -> JobResponse:
    return JobResponse(**job.describe(service.jobs.expires_s(job)))
