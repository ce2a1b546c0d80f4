"""What this server can do, and what the caller has used of it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from ..errors import UnavailableError
from ..registry import versions
from ..service import Owner, ServiceDependency
from .bodies import Capabilities, DayUsage, SolverCapability, UsageAnswer

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["account"])

_MAX_DAYS = 366


@router.get("/capabilities")
async def capabilities(service: ServiceDependency) -> Capabilities:
    """Versions, solvers, functions and limits of this server; 503 while no worker is ready."""
    settings, health = service.settings, service.engine.health()
    able = health.abilities
    if able is None:
        raise UnavailableError("no worker is ready yet", retry_after_s=1.0)
    limits = settings.model_dump(include={name for name in type(settings).model_fields if name.startswith("max_")})
    return Capabilities(
        versions=dict(versions()),
        solvers=[SolverCapability(**vars(solver)) for solver in able.solvers if settings.allows(solver.name)],
        functions=list(able.functions),
        documents=["expression", "cone_program"],
        keys_required=service.keyring.required,
        workers=health.workers,
        kernels=able.kernels.path,
        kernels_reason=able.kernels.reason,
        limits=limits,
    )


@router.get("/usage")
async def usage(
    service: ServiceDependency, owner: Owner, days: Annotated[int, Query(ge=1, le=_MAX_DAYS)] = 31
) -> UsageAnswer:
    """What the caller used on each of the last days (UTC); what was used in the last second may be missing."""
    found = await run_in_threadpool(service.ledger.since, owner, days)
    return UsageAnswer(
        key=owner or None,
        days=[
            DayUsage(day=day, requests=used.requests, elements=used.elements, seconds=used.seconds)
            for day, used in found.items()
        ],
    )
