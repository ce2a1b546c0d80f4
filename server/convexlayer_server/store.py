"""What is registered."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final

__all__ = ["MemoryStore", "Store", "StoredProblem"]


@dataclass(frozen=True)
class StoredProblem:
    """A registered problem.

    Attributes:
        document: the normalised document, plain JSON.
        summary: what the engine said of it, plain JSON; it holds the ``id``.
    """

    document: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The problem's id."""
        return str(self.summary["id"])


class Store(Protocol):
    """Keeps registered problems by id. Calls come from several threads."""

    def put(self, problem: StoredProblem) -> bool:
        """Keep a problem; whether it is new."""

    def get(self, problem_id: str) -> StoredProblem | None:
        """The problem of an id, or None."""

    def all(self) -> list[StoredProblem]:
        """Every problem, in the order of registration."""

    def delete(self, problem_id: str) -> bool:
        """Forget a problem; whether there was one."""

    def close(self) -> None:
        """Release what the store holds open."""


@final
class MemoryStore:
    """A store that lives as long as the process."""

    def __init__(self) -> None:
        self._problems: dict[str, StoredProblem] = {}
        self._lock = threading.Lock()

    def put(self, problem: StoredProblem) -> bool:
        """Keep a problem; whether it is new."""
        with self._lock:
            return self._problems.setdefault(problem.id, problem) is problem

    def get(self, problem_id: str) -> StoredProblem | None:
        """The problem of an id, or None."""
        with self._lock:
            return self._problems.get(problem_id)

    def all(self) -> list[StoredProblem]:
        """Every problem, in the order of registration."""
        with self._lock:
            return list(self._problems.values())

    def delete(self, problem_id: str) -> bool:
        """Forget a problem; whether there was one."""
        with self._lock:
            return self._problems.pop(problem_id, None) is not None

    def close(self) -> None:
        """Nothing is held open."""
