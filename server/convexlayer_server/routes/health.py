"""Liveness, readiness, metrics, and an index page for browsers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool

from ..observability.metrics import CONTENT_TYPE
from .dependencies import ServiceDependency

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
<tr><td><code>GET /v1/problems</code></td><td>list the registered problems</td></tr>
<tr><td><code>GET, DELETE /v1/problems/{id}</code></td><td>show or delete a problem</td></tr>
<tr><td><code>POST /v1/problems/{id}/solve</code></td><td>solve for a batch of parameters</td></tr>
<tr><td><code>POST /v1/problems/{id}/vjp</code></td><td>vector-Jacobian products: gradients</td></tr>
<tr><td><code>POST /v1/problems/{id}/jvp</code></td><td>Jacobian-vector products: tangents</td></tr>
<tr><td><code>Prefer: respond-async</code></td><td>runs any of these three as a job</td></tr>
<tr><td><code>GET, DELETE /v1/jobs/{id}</code></td><td>show or cancel a job; <code>GET /v1/jobs</code> lists
them</td></tr> <tr><td><code>GET /v1/jobs/{id}/result</code></td><td>its response, once it is done</td></tr>
<tr><td><code>GET /v1/jobs/{id}/events</code></td><td>its progress, as server-sent events</td></tr>
<tr><td><a href="v1/usage"><code>GET /v1/usage</code></a></td><td>usage by day</td></tr>
<tr><td><a href="v1/capabilities"><code>GET /v1/capabilities</code></a></td>
<td>solvers, functions and limits</td></tr>
<tr><td><a href="healthz"><code>GET /healthz</code></a></td><td>liveness</td></tr>
<tr><td><a href="readyz"><code>GET /readyz</code></a></td><td>readiness</td></tr>
<tr><td><a href="metrics"><code>GET /metrics</code></a></td><td>Prometheus metrics</td></tr>
<tr><td><a href="openapi.json"><code>GET /openapi.json</code></a></td><td>the OpenAPI document</td></tr>
</table></body></html>
"""


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> HTMLResponse:
    """The index page."""
    return HTMLResponse(_PAGE)


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Liveness: 200 as long as the process responds."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"description": "not ready"}})
async def readyz(service: ServiceDependency, response: Response) -> dict[str, Any]:
    """Readiness: 200 while the compute backend accepts requests, else 503."""
    health = service.compute.health()
    kernels = None if health.capabilities is None else health.capabilities.kernels
    response.status_code = 200 if health.ready else 503
    return {
        "status": "ready" if health.ready else "not ready",
        "cached_problems": health.cached_problems,
        "running": health.running,
        "workers": health.workers,
        "kernels": None if kernels is None else kernels.path,
        "kernels_reason": None if kernels is None else kernels.reason,
    }


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: ServiceDependency) -> Response:
    """Prometheus metrics; if the server requires keys, this endpoint does too."""
    health, gauges = service.compute.health(), service.metrics
    gauges.held.set(service.memory.total)
    gauges.waiting.set(service.compute.waiting)
    gauges.waiting_bodies.set(service.parsers.waiting)
    gauges.running.set(health.running)
    gauges.cached_problems.set(health.cached_problems)
    gauges.workers.set(health.workers)
    gauges.replaced.set(health.replaced)
    gauges.portable.set(health.capabilities is not None and health.capabilities.kernels.path == "portable")
    return Response(await run_in_threadpool(gauges.exposition), media_type=CONTENT_TYPE)
