"""Engines, requests to them, and what they should answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np

from convexlayer_server.engine import ComputeRequest, EmbeddedEngine
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
    """One with other parts."""
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
    """The gradient of the sum of x."""
    return request(request_id, **{"operation": "vjp", "directions": {"x": np.ones(2)}, "wrt": ("c",)} | fields)


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[EmbeddedEngine]:
    """An engine with one worker, a thread unless it is to be processes."""
    engine = EmbeddedEngine(Settings(**{"workers": 0} | settings))
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


def with_engine(work: Callable[[EmbeddedEngine], Awaitable[T]], **settings: Any) -> T:
    """What is returned by work with an engine that lives as long."""

    async def run() -> T:
        async with opened(**settings) as engine:
            return await work(engine)

    return asyncio.run(run())
