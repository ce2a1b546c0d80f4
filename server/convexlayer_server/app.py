"""The application: its parts, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, final

from fastapi import FastAPI

from . import problems as problem_responses
from .engine import EmbeddedEngine, Engine
from .jobs import Jobs
from .middleware import BodyLimit, RequestId
from .routes import compute, health, jobs, problems
from .routes.bodies import Problem
from .service import Service
from .settings import Settings
from .store import MemoryStore, Store

__all__ = ["create_app"]

_PROBLEM = {"$ref": "#/components/schemas/Problem"}


@final
class _Application(FastAPI):
    """FastAPI, describing errors by the media type that they have; its own choice is the one of the answers."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        schema = super().openapi()
        for path in schema["paths"].values():
            for operation in path.values():
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
    computing = EmbeddedEngine(chosen) if engine is None else engine
    service = Service(chosen, MemoryStore() if store is None else store, computing, Jobs(chosen, computing))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.engine.open()
        yield
        await service.jobs.close()
        await service.engine.close()
        service.store.close()

    errors: dict[int | str, dict[str, Any]] = {
        "4XX": {"model": Problem, "description": "The request cannot be served"},
        "5XX": {"model": Problem, "description": "The server failed"},
    }
    app = _Application(
        title="Convexlayer", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False, responses=errors
    )
    app.state.service = service
    for module in (health, problems, compute, jobs):
        app.include_router(module.router)
    problem_responses.install(app)
    app.add_middleware(BodyLimit, limit_bytes=chosen.max_body_bytes)
    app.add_middleware(RequestId)
    return app
