"""What the routes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from starlette.types import Scope

from .encoding import Readers
from .engine import Admission
from .jobs import Jobs
from .keys import Keyring
from .limits import Limits
from .memory import HeldBytes, HeldMemory
from .metrics import Metrics
from .registry import Registry
from .settings import Settings
from .store import Store
from .usage import Ledger

__all__ = ["Owner", "Service", "ServiceDependency", "held_for", "owner_of", "path_of", "service_of"]


@dataclass(frozen=True)
class Service:
    """The parts of a running service."""

    settings: Settings
    store: Store
    engine: Admission
    registry: Registry
    jobs: Jobs
    readers: Readers
    keyring: Keyring
    limits: Limits
    memory: HeldMemory
    ledger: Ledger
    metrics: Metrics


# Dependencies wait for nothing, but those that are no coroutines would each cost a thread.
async def _service(request: Request) -> Service:
    return service_of(request)


async def _owner(request: Request) -> str:
    return owner_of(request)


def service_of(request: Request) -> Service:
    """The service that a request was sent to."""
    service: Service = request.app.state.service
    return service


def path_of(scope: Scope) -> str:
    """The path of a request below the root path, which a proxy may have stripped or not."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def owner_of(request: Request) -> str:
    """The id of the caller's key; empty where nobody needs one."""
    return str(request.scope["state"].get("owner", ""))


ServiceDependency = Annotated[Service, Depends(_service)]
Owner = Annotated[str, Depends(_owner)]
"""Whose states and jobs a request may use."""


def held_for(request: Request) -> HeldBytes:
    """The account of what is held for a request, which the gate opened."""
    held: HeldBytes = request.state.held
    return held
