"""The application: it creates the parts of the service and connects them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, final

from fastapi import FastAPI

from . import routes
from .admission.admission_queue import AdmissionQueue
from .admission.gate import AdmissionControl, Gate
from .admission.keys import Keyring
from .admission.limits import Limits
from .admission.memory import MemoryBudget
from .admission.usage import UsageLedger
from .compute.job_registry import JobRegistry
from .compute.local_backend import LocalBackend
from .compute.protocol import ComputeBackend
from .http import problem_details
from .http.middleware import BodyLimit, RequestObserver
from .http.parser_pool import ParserPool
from .http.response_schemas import ProblemDetails
from .maintenance import Maintenance
from .observability.metrics import Metrics
from .observability.tracing import export_traces
from .problem_registry import ProblemRegistry
from .service import Service
from .settings import Settings
from .store import Store

__all__ = ["create_app"]

_PROBLEM_DETAILS = {"$ref": "#/components/schemas/ProblemDetails"}


@final
class _Application(FastAPI):
    """FastAPI, with errors described as application/problem+json; FastAPI itself would describe them as JSON."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        schema = super().openapi()
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}, {}]  # a server without keys requires none
        for path in schema["paths"].values():
            for operation in path.values():
                for content in operation.get("requestBody", {}).get("content", {}).values():
                    schema["components"]["schemas"] |= content["schema"].pop("$defs", {})
                for status in ("4XX", "5XX"):
                    described = operation["responses"][status]
                    described["content"] = {problem_details.MEDIA_TYPE: {"schema": _PROBLEM_DETAILS}}
        return schema


def create_app(
    settings: Settings | None = None, *, backend: ComputeBackend | None = None, store: Store | None = None
) -> FastAPI:
    """Create the service as an ASGI application.

    Args:
        settings: settings; by default those of the environment.
        backend: the compute backend; by default a ``LocalBackend``. The application closes it.
        store: the store; by default one in memory. The application closes it.
    """
    settings = Settings.from_environment() if settings is None else settings
    service = _service(
        settings,
        LocalBackend(settings) if backend is None else backend,
        Store(settings) if store is None else store,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as closing:  # in reverse order, whatever fails
            closing.callback(service.store.close)
            maintenance = Maintenance(service)
            await maintenance.start()
            closing.push_async_callback(maintenance.stop)
            await service.compute.open()
            closing.callback(asyncio.create_task(maintenance.run()).cancel)
            closing.push_async_callback(service.parsers.close)
            closing.push_async_callback(service.compute.close)
            closing.push_async_callback(service.jobs.close)
            yield

    errors: dict[int | str, dict[str, Any]] = {
        "4XX": {"model": ProblemDetails, "description": "The request cannot be served"},
        "5XX": {"model": ProblemDetails, "description": "The server failed"},
    }
    app = _Application(
        title="Convexlayer",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # the service has its own
        responses=errors,
    )
    app.state.service = service
    for name in routes.__all__:
        app.include_router(getattr(routes, name).router)
    problem_details.install(app)
    app.add_middleware(routes.operations.DirectDispatch)
    app.add_middleware(BodyLimit, limit_bytes=settings.max_body_bytes)
    control = AdmissionControl(
        keyring=service.keyring,
        limits=service.limits,
        queue=service.compute,
        memory=service.memory,
        ledger=service.ledger,
        metrics=service.metrics,
    )
    app.add_middleware(Gate, control=control)
    app.add_middleware(RequestObserver, metrics=service.metrics, root_path=settings.root_path)
    if settings.telemetry:
        export_traces(app)
    return app


def _service(settings: Settings, backend: ComputeBackend, store: Store) -> Service:
    metrics, ledger = Metrics(), UsageLedger(store)
    queue = AdmissionQueue(backend, settings, ledger, metrics)
    return Service(
        settings=settings,
        store=store,
        compute=queue,
        registry=ProblemRegistry(settings, store, queue),
        jobs=JobRegistry(settings, queue),
        parsers=ParserPool(settings),
        keyring=Keyring(),
        limits=Limits(settings, ledger),
        memory=MemoryBudget(settings),
        ledger=ledger,
        metrics=metrics,
    )
