"""The capabilities of the server, and the usage of the key."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from ..errors import RETRY_S, UnavailableError
from ..http.response_schemas import Capabilities, DayUsage, SolverCapability, UsageResponse
from ..problem_registry import versions
from .dependencies import Owner, ServiceDependency

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["account"])

_MAX_DAYS = 366
"""Days of usage that a request may ask for."""


@router.get("/capabilities")
async def capabilities(service: ServiceDependency) -> Capabilities:
    """Versions, solvers, functions and limits of this server; 503 until a worker is ready."""
    settings, health = service.settings, service.compute.health()
    found = health.capabilities
    if found is None:
        raise UnavailableError("no worker is ready yet", retry_after_s=RETRY_S)
    limits = settings.model_dump(include={name for name in type(settings).model_fields if name.startswith("max_")})
    return Capabilities(
        versions=dict(versions()),
        solvers=[SolverCapability(**vars(solver)) for solver in found.solvers if settings.allows(solver.name)],
        functions=list(found.functions),
        documents=["expression", "cone_program"],
        keys_required=service.keyring.required,
        workers=health.workers,
        kernels=found.kernels.path,
        kernels_reason=found.kernels.reason,
        limits=limits,
    )


@router.get("/usage")
async def usage(
    service: ServiceDependency, owner: Owner, days: Annotated[int, Query(ge=1, le=_MAX_DAYS)] = 31
) -> UsageResponse:
    """Usage of the key on each of the last days (UTC); that of the last second may be missing."""
    by_day = await run_in_threadpool(service.ledger.since, owner, days)
    return UsageResponse(
        key=owner or None,
        days=[
            DayUsage(day=day, requests=used.requests, elements=used.elements, seconds=used.seconds)
            for day, used in by_day.items()
        ],
    )
