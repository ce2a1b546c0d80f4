"""Registered problems as the routes see them: read from the store off the event loop, some kept in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from typing import final

from starlette.concurrency import run_in_threadpool

import convexlayer

from .documents import Identified
from .engine import Admission
from .errors import NotFoundError
from .kept import LRUCache
from .settings import Settings
from .store import Store, StoredProblem

__all__ = ["Registry", "versions"]


@cache
def versions() -> Mapping[str, str]:
    """Versions of what a compiled form and its summary depend on."""
    return {"convexlayer": convexlayer.__version__, "cvxpy": version("cvxpy")}


@final
class Registry:
    """Problems by key and id. Registrations belong to a key; documents and compiled forms are shared.

    Args:
        settings: ``recent_bytes`` bounds what is kept in memory.
        store: where problems are kept.
        engine: what compiles them.
    """

    def __init__(self, settings: Settings, store: Store, engine: Admission) -> None:
        self._store = store
        self._engine = engine
        self._recent: LRUCache[tuple[str, str], StoredProblem] = LRUCache(settings.recent_bytes, keep_last=True)

    async def add(self, owner: str, document: Identified) -> tuple[StoredProblem, bool]:
        """Compile and register a problem; with whether it is new to the key.

        Raises:
            DocumentError: it cannot be compiled.
            QuotaError: the key has too many problems, or holds too much.
        """
        problem = await self.compiled(owner, document)
        return problem, await run_in_threadpool(self._store.put, owner, problem)

    async def compiled(self, owner: str, document: Identified) -> StoredProblem:
        """A problem as it would be registered.

        Raises:
            DocumentError: it cannot be compiled.
        """
        summary = await self._engine.register(document.id, document.text, owner)
        return StoredProblem(document.text, summary, str(dict(versions())))

    async def get(self, owner: str, problem_id: str) -> StoredProblem:
        """A problem of a key; compiled once more where other versions made its summary.

        Raises:
            NotFoundError: the key has none of this id; another's looks the same.
            DocumentError: these versions cannot compile it.
        """
        recent = self._recent.get((owner, problem_id))
        if recent is not None:
            return recent
        problem = await run_in_threadpool(self._store.get, owner, problem_id)
        if problem is None:
            raise NotFoundError(f"no problem {problem_id[:80]!r} is registered here; POST its document to /v1/problems")
        if problem.versions != str(dict(versions())):
            renewed, _ = await self.add(owner, Identified(problem_id, problem.document))
            problem = replace(renewed, size_bytes=problem.size_bytes)
        self._recent.put((owner, problem_id), problem, problem.size_bytes)
        return problem

    async def page(self, owner: str, after: int, limit: int) -> tuple[list[str], int | None]:
        """Summaries of problems of a key as JSON, oldest first, as ``Store.page`` gives them."""
        return await run_in_threadpool(self._store.page, owner, after, limit)

    async def delete(self, owner: str, problem_id: str) -> None:
        """End a key's registration.

        Raises:
            NotFoundError: there is none.
        """
        found = await run_in_threadpool(self._store.delete, owner, problem_id)
        self._recent.drop((owner, problem_id))
        if not found:
            raise NotFoundError(f"no problem {problem_id[:80]!r} is registered here")

    def forget(self) -> None:
        """Read everything from the store anew."""
        self._recent.clear()
