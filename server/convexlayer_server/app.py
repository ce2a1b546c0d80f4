"""The application: its parts, put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, final

from fastapi import FastAPI

from . import problems as problem_responses
from . import telemetry
from .encoding import Readers
from .engine import Admission, EmbeddedEngine, Engine
from .gate import Gate
from .jobs import Jobs
from .keys import Keyring
from .limits import Limits
from .memory import HeldMemory
from .metrics import Metrics
from .middleware import BodyLimit, Observation
from .registry import Registry
from .routes import account, compute, health, jobs, problems
from .routes.bodies import Problem
from .service import Service
from .settings import Settings
from .store import Store
from .upkeep import Upkeep
from .usage import Ledger

__all__ = ["create_app"]

_PROBLEM = {"$ref": "#/components/schemas/Problem"}


@final
class _Application(FastAPI):
    """FastAPI, describing errors by the media type that they have; its own choice is the one of the answers."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        schema = super().openapi()
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}, {}]  # the server asks for none where there are none
        for path in schema["paths"].values():
            for operation in path.values():
                for content in operation.get("requestBody", {}).get("content", {}).values():
                    schema["components"]["schemas"] |= content["schema"].pop("$defs", {})
                for status in ("4XX", "5XX"):
                    described = operation["responses"][status]
                    described["content"] = {problem_responses.MEDIA_TYPE: {"schema": _PROBLEM}}
        return schema


def create_app(
    settings: Settings | None = None, *, engine: Engine | None = None, store: Store | None = None
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: limits; read from the environment unless given.
        engine: what computes; threads of this process unless given. The application closes it.
        store: where problems are kept; in memory unless given. The application closes it.
    """
    chosen = Settings.from_environment() if settings is None else settings
    kept = Store(chosen) if store is None else store
    service = _service(chosen, EmbeddedEngine(chosen) if engine is None else engine, kept)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        upkeep = Upkeep(service)
        await upkeep.begin()
        await service.engine.open()
        upkeeping = asyncio.create_task(upkeep.go_on())
        yield
        await service.jobs.close()
        await service.engine.close()
        await service.readers.close()
        upkeeping.cancel()
        await upkeep.end()
        service.store.close()

    errors: dict[int | str, dict[str, Any]] = {
        "4XX": {"model": Problem, "description": "The request cannot be served"},
        "5XX": {"model": Problem, "description": "The server failed"},
    }
    app = _Application(
        title="Convexlayer",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # where it is asked for it is ours
        responses=errors,
    )
    app.state.service = service
    for module in (compute, health, account, problems, jobs):
        app.include_router(module.router)
    problem_responses.install(app)
    app.add_middleware(compute.Directly)
    app.add_middleware(BodyLimit, limit_bytes=chosen.max_body_bytes)
    app.add_middleware(Gate, service=service)
    app.add_middleware(Observation, metrics=service.metrics, root_path=chosen.root_path)
    if chosen.telemetry:
        telemetry.install(app)
    return app


def _service(settings: Settings, engine: Engine, store: Store) -> Service:
    metrics, ledger = Metrics(), Ledger(store)
    fair = Admission(engine, settings, ledger, metrics)
    return Service(
        settings=settings,
        store=store,
        engine=fair,
        registry=Registry(settings, store, fair),
        jobs=Jobs(settings, fair),
        readers=Readers(settings),
        keyring=Keyring(),
        limits=Limits(settings, ledger),
        memory=HeldMemory(settings),
        ledger=ledger,
        metrics=metrics,
    )
