"""Local backends, requests to them, and the expected results."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np

from convexlayer_server.compute.local_backend import LocalBackend
from convexlayer_server.compute.protocol import ComputeRequest
from convexlayer_server.settings import Settings

T = TypeVar("T")

PARTS: dict[str, Any] = {
    "kind": "expression",
    "parameters": {"c": {}},
    "variables": {"x": {}},
    "minimize": "square(x - c)",
    "subject_to": ["x <= 1"],
}


def document(**parts: Any) -> bytes:
    """A document with other parts."""
    return json.dumps(PARTS | parts).encode()


DOCUMENT = document()
VALUES = np.array([0.5, 3.0])
SOLUTION = np.array([0.5, 1.0])
GRADIENT = np.array([1.0, 0.0])


def request(request_id: str = "r", **fields: Any) -> ComputeRequest:
    """A solve with two elements."""
    return ComputeRequest(
        **{"request_id": request_id, "problem_id": "p", "operation": "solve", "parameters": {"c": VALUES}} | fields
    )


def gradient_request(request_id: str = "g", **fields: Any) -> ComputeRequest:
    """A vjp: the gradient of the sum of x."""
    return request(request_id, **{"operation": "vjp", "directions": {"x": np.ones(2)}, "wrt": ("c",)} | fields)


@asynccontextmanager
async def open_backend(**settings: Any) -> AsyncIterator[LocalBackend]:
    """An open backend; by default its worker is a thread."""
    backend = LocalBackend(Settings(**{"workers": 0} | settings))
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


def with_backend(work: Callable[[LocalBackend], Awaitable[T]], **settings: Any) -> T:
    """Run a coroutine with an open backend, and return its result."""

    async def run() -> T:
        async with open_backend(**settings) as backend:
            return await work(backend)

    return asyncio.run(run())
