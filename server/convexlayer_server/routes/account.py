"""What this server can do, and what the caller has used of it."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool

from convexlayer.solvers.registry import available

from ..documents.atoms import ATOMS, CONSTRAINTS
from ..registry import versions
from ..service import Owner, ServiceDependency
from .bodies import Capabilities, DayUsage, SolverCapability, UsageAnswer

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["account"])

_MAX_DAYS = 366


@router.get("/capabilities")
async def capabilities(service: ServiceDependency) -> Capabilities:
    """Versions, solvers, functions and limits of this server."""
    settings, health = service.settings, service.engine.health()
    limits = settings.model_dump(include={name for name in type(settings).model_fields if name.startswith("max_")})
    return Capabilities(
        versions=dict(versions()),
        solvers=[found for found in await run_in_threadpool(_solvers) if settings.allows(found.name)],
        functions=sorted([*ATOMS, *CONSTRAINTS]),
        documents=["expression", "cone_program"],
        keys_required=service.keyring.required,
        workers=health.workers,
        kernels=None if health.kernels is None else health.kernels.path,
        kernels_reason=None if health.kernels is None else health.kernels.reason,
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


@cache
def _solvers() -> list[SolverCapability]:
    return [
        SolverCapability(name=info.name, quadratic=info.quadratic, cones=sorted(info.cones))
        for info in available()
        if info.installed
    ]
