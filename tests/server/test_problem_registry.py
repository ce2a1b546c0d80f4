"""Problems that are deleted while they are read."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from convexlayer_server import Settings
from convexlayer_server.errors import NotFoundError
from convexlayer_server.problem_registry import ProblemRegistry, versions
from convexlayer_server.store import Store, StoredProblem


class SlowStore:
    """A store whose reads end when the test says so."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.reading, self.go = threading.Event(), threading.Event()

    def get(self, owner: str, problem_id: str) -> StoredProblem | None:
        found = self._store.get(owner, problem_id)
        self.reading.set()
        self.go.wait()
        return found

    def delete(self, owner: str, problem_id: str) -> bool:
        return self._store.delete(owner, problem_id)


def test_a_problem_that_is_deleted_while_it_is_read_is_not_cached() -> None:
    store = Store(Settings())
    store.put("", StoredProblem(b"{}", {"id": "p"}, str(dict(versions()))))
    slow: Any = SlowStore(store)
    unused: Any = None
    registry = ProblemRegistry(Settings(), slow, unused)

    async def scenario() -> None:
        reading = asyncio.create_task(registry.get("", "p"))
        await asyncio.to_thread(slow.reading.wait)
        await registry.delete("", "p")
        slow.go.set()
        await reading
        with pytest.raises(NotFoundError):
            await registry.get("", "p")

    asyncio.run(scenario())
    store.close()
