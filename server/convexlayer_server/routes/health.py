"""Liveness, readiness, metrics, and a page for people."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool

from ..metrics import CONTENT_TYPE
from ..service import ServiceDependency

__all__ = ["router"]

router = APIRouter(tags=["health"])

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Convexlayer</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem}
td{padding:.2rem 1.5rem .2rem 0;vertical-align:top}code{white-space:nowrap}</style></head>
<body><h1>Convexlayer</h1>
<p>Solves parametrised convex problems in batches and differentiates their solutions.</p>
<table>
<tr><td><code>POST /v1/problems</code></td>
<td>register a problem, or check it with <code>?validate_only=true</code></td></tr>
<tr><td><code>GET /v1/problems</code></td><td>what is registered</td></tr>
<tr><td><code>GET, DELETE /v1/problems/{id}</code></td><td>one problem</td></tr>
<tr><td><code>POST /v1/problems/{id}/solve</code></td><td>parameters to solutions</td></tr>
<tr><td><code>POST /v1/problems/{id}/vjp</code></td><td>cotangents to gradients</td></tr>
<tr><td><code>POST /v1/problems/{id}/jvp</code></td><td>tangents to tangents</td></tr>
<tr><td><code>Prefer: respond-async</code></td><td>makes any of these three a job</td></tr>
<tr><td><code>GET, DELETE /v1/jobs/{id}</code></td><td>one job; <code>GET /v1/jobs</code> lists them</td></tr>
<tr><td><code>GET /v1/jobs/{id}/result</code></td><td>its answer, once it is done</td></tr>
<tr><td><code>GET /v1/jobs/{id}/events</code></td><td>its progress, as server-sent events</td></tr>
<tr><td><a href="v1/usage"><code>GET /v1/usage</code></a></td><td>what you have used, by day</td></tr>
<tr><td><a href="v1/capabilities"><code>GET /v1/capabilities</code></a></td>
<td>solvers, functions and limits</td></tr>
<tr><td><a href="healthz"><code>GET /healthz</code></a></td><td>whether the process lives</td></tr>
<tr><td><a href="readyz"><code>GET /readyz</code></a></td><td>whether it takes requests</td></tr>
<tr><td><a href="metrics"><code>GET /metrics</code></a></td><td>metrics for Prometheus</td></tr>
<tr><td><a href="openapi.json"><code>GET /openapi.json</code></a></td><td>every field of every body</td></tr>
</table></body></html>
"""


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
def page() -> HTMLResponse:
    """What there is to call."""
    return HTMLResponse(_PAGE)


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """200 while the process answers."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"description": "not ready"}})
async def readyz(service: ServiceDependency, response: Response) -> dict[str, Any]:
    """200 while the engine takes requests, else 503."""
    health = service.engine.health()
    kernels = None if health.abilities is None else health.abilities.kernels
    response.status_code = 200 if health.ready else 503
    return {
        "status": "ready" if health.ready else "not ready",
        "compiled": health.compiled,
        "running": health.running,
        "workers": health.workers,
        "kernels": None if kernels is None else kernels.path,
        "kernels_reason": None if kernels is None else kernels.reason,
    }


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: ServiceDependency) -> Response:
    """Counters, gauges and histograms for Prometheus; where keys are needed, one is needed here too."""
    health, found = service.engine.health(), service.metrics
    found.held.set(service.memory.total)
    found.waiting.set(service.engine.waiting)
    found.unread.set(service.readers.waiting)
    found.running.set(health.running)
    found.compiled.set(health.compiled)
    found.workers.set(health.workers)
    found.replaced.set(health.replaced)
    found.portable.set(health.abilities is not None and health.abilities.kernels.path == "portable")
    return Response(await run_in_threadpool(found.written), media_type=CONTENT_TYPE)
