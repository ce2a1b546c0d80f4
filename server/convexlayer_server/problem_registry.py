"""Registered problems: read from the store off the event loop, and cached in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from typing import final

from starlette.concurrency import run_in_threadpool

import convexlayer

from .admission.admission_queue import AdmissionQueue
from .documents import IdentifiedDocument
from .errors import MAX_QUOTED, NotFoundError
from .settings import Settings
from .shared.caches import LRUCache
from .store import Store, StoredProblem

__all__ = ["ProblemRegistry", "versions"]


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of the packages that determine the standard form of a problem, and its summary."""
    return {"convexlayer": convexlayer.__version__, "cvxpy": version("cvxpy")}


@final
class ProblemRegistry:
    """Problems by key and ID. A registration belongs to one key; documents and standard forms are shared.

    Args:
        settings: ``recent_bytes`` bounds the cache.
        store: the store.
        compute: the compute backend, which canonicalises documents.
    """

    def __init__(self, settings: Settings, store: Store, compute: AdmissionQueue) -> None:
        self._store = store
        self._compute = compute
        self._recent: LRUCache[tuple[str, str], StoredProblem] = LRUCache(settings.recent_bytes, keep_last=True)
        self._deletions = 0

    async def add(self, owner: str, document: IdentifiedDocument) -> tuple[StoredProblem, bool]:
        """Canonicalise and register a problem; return it, and whether it is new to the key.

        Raises:
            DocumentError: the document cannot be canonicalised.
            QuotaError: the key has too many problems, or too many bytes of them.
        """
        problem = await self.canonicalise(owner, document)
        return problem, await run_in_threadpool(self._store.put, owner, problem)

    async def canonicalise(self, owner: str, document: IdentifiedDocument) -> StoredProblem:
        """Canonicalise a problem without registering it.

        Raises:
            DocumentError: the document cannot be canonicalised.
        """
        summary = await self._compute.register(document.id, document.text, owner)
        return StoredProblem(document.text, summary, str(dict(versions())))

    async def get(self, owner: str, problem_id: str) -> StoredProblem:
        """Return a problem of a key. If other versions made its summary, canonicalise it again.

        Raises:
            NotFoundError: the key has no problem of this ID; the error does not tell whether another key has one.
            DocumentError: the present versions cannot canonicalise it.
        """
        recent = self._recent.get((owner, problem_id))
        if recent is not None:
            return recent
        deletions = self._deletions
        problem = await run_in_threadpool(self._store.get, owner, problem_id)
        if problem is None:
            raise NotFoundError(
                f"no problem {problem_id[:MAX_QUOTED]!r} is registered; POST its document to /v1/problems"
            )
        if problem.versions != str(dict(versions())):
            renewed, _ = await self.add(owner, IdentifiedDocument(problem_id, problem.document))
            problem = replace(renewed, size_bytes=problem.size_bytes)
        if deletions == self._deletions:  # else it may have been deleted since it was read
            self._recent.put((owner, problem_id), problem, problem.size_bytes)
        return problem

    async def page(self, owner: str, after: int, limit: int) -> tuple[list[str], int | None]:
        """Return a page of summaries of a key's problems as JSON, oldest first; see ``Store.page``."""
        return await run_in_threadpool(self._store.page, owner, after, limit)

    async def delete(self, owner: str, problem_id: str) -> None:
        """Delete a key's registration.

        Raises:
            NotFoundError: there is none.
        """
        found = await run_in_threadpool(self._store.delete, owner, problem_id)
        self._deletions += 1
        self._recent.drop((owner, problem_id))
        if not found:
            raise NotFoundError(f"no problem {problem_id[:MAX_QUOTED]!r} is registered")

    def clear_cache(self) -> None:
        """Clear the cache, so that every problem is read from the store again."""
        self._deletions += 1
        self._recent.clear()
