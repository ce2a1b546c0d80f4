"""Facts that a request's path and headers state."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import Scope

__all__ = ["path_of", "prefers_async"]


def path_of(scope: Scope) -> str:
    """Return the path below the root path, which a reverse proxy may or may not strip."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def prefers_async(headers: Iterable[str]) -> bool:
    """Whether a request with these ``Prefer`` headers asks for ``respond-async`` (RFC 7240)."""
    preferences = ",".join(headers).split(",")
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in preferences)
