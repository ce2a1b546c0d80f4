"""What the routes share: settings, store, engine, and the steps that take all three."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, HTTPException, Request

from .engine import Engine
from .errors import NotFoundError
from .jobs import Jobs
from .settings import Settings
from .store import Store, StoredProblem

__all__ = ["JsonBody", "Owner", "Service", "ServiceDependency"]


@dataclass(frozen=True)
class Service:
    """The parts of a running service."""

    settings: Settings
    store: Store
    engine: Engine
    jobs: Jobs

    def problem(self, problem_id: str) -> StoredProblem:
        """The registered problem of an id.

        Raises:
            NotFoundError: there is none.
        """
        problem = self.store.get(problem_id)
        if problem is None:
            raise NotFoundError(f"no problem {problem_id[:80]!r} is registered here; POST its document to /v1/problems")
        return problem


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _owner(request: Request) -> str:
    """The id of the caller's key; empty where nobody needs one."""
    return str(getattr(request.state, "owner", ""))


def _json_body(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, f"expected application/json, got {media_type[:80]!r}")


ServiceDependency = Annotated[Service, Depends(_service)]
Owner = Annotated[str, Depends(_owner)]
"""Whose states and jobs a request may use."""
JsonBody = Depends(_json_body)
"""Dependency of routes that read a body: any media type but JSON is refused."""
