"""A batch to be split, its results in one request, and a transport that records what is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np

from convexlayer_client import (
    AsyncClient,
    Problem,
    safetensors,
)
from convexlayer_server import Settings, create_app
from tests.client.example import DOCUMENT

BATCH = 20


RNG = np.random.default_rng(7)


THETA: dict[str, Any] = {"a": RNG.standard_normal((BATCH, 3)), "radius": 1.0}


COTANGENTS: dict[str, Any] = {
    "x": RNG.standard_normal((BATCH, 3)),
    "c1": RNG.standard_normal(BATCH),
    "objective": np.array(0.5),
}


TANGENTS: dict[str, Any] = {"a": RNG.standard_normal((BATCH, 3)), "radius": 0.5}


CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


Respond = Callable[[httpx.Request], Awaitable[httpx.Response]]


class RecordingTransport(httpx.AsyncBaseTransport):
    """Transport to the application in this process, which records requests and may replace responses.

    Attributes:
        app: The application; a test may replace it.
        seen: Method, last part of the path, and status of every request.
        bodies: Safetensors bodies of the requests.
        request_ids: Request ids.
        peak: Largest number of concurrent requests.
        intercept: Responds in place of the application, if set.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.seen: list[tuple[str, int]] = []
        self.bodies: list[dict[str, Any]] = []
        self.request_ids: list[str | None] = []
        self.peak = self._now = 0
        self.intercept: Callable[[httpx.Request, Respond], Awaitable[httpx.Response]] | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._now += 1
        self.peak = max(self.peak, self._now)
        try:
            answer = self._application if self.intercept is None else self._intercepted
            response = await answer(request)
        finally:
            self._now -= 1
        self.seen.append((request.url.path.rpartition("/")[2], response.status_code))
        self.request_ids.append(request.headers.get("X-Request-Id"))
        if request.headers.get("Content-Type") == safetensors.MEDIA_TYPE:
            self.bodies.append(safetensors.read(bytearray(request.content)))
        return response

    async def _application(self, request: httpx.Request) -> httpx.Response:
        return await httpx.ASGITransport(self.app).handle_async_request(request)

    async def _intercepted(self, request: httpx.Request) -> httpx.Response:
        assert self.intercept is not None
        return await self.intercept(request, self._application)

    def count(self, step: str, status: int = 200) -> int:
        """Count the requests of an operation with a status."""
        return self.seen.count((step, status))

    def forget(self) -> None:
        """Clear the records."""
        self.seen.clear()
        self.bodies.clear()
        self.request_ids.clear()


def limited(work: Callable[[AsyncClient, Problem, RecordingTransport], Awaitable[None]], **settings: Any) -> None:
    """Run ``work`` with these limits, which the client has not fetched yet."""

    async def run() -> None:
        app = create_app(Settings(workers=0, **settings))
        transport = RecordingTransport(app)
        async with (
            app.router.lifespan_context(app),
            AsyncClient("http://server", transport=transport, retry_s=5) as client,
        ):
            problem = await client.register(DOCUMENT)
            transport.forget()
            await work(client, problem, transport)

    asyncio.run(run())


def same(ours: Any, theirs: Any) -> None:
    """Assert that results are equal, except for times and fields that were requested of only one of them."""
    assert type(ours) is type(theirs)
    assert ours.status == theirs.status
    assert ours.details == theirs.details
    for part in ("variables", "duals", "gradients", "tangents"):
        for name, value in getattr(theirs, part, {}).items():
            assert getattr(ours, part)[name].shape == value.shape
            np.testing.assert_allclose(getattr(ours, part)[name], value, **CLOSE)
    if hasattr(theirs, "objective"):
        np.testing.assert_allclose(ours.objective, theirs.objective, **CLOSE)
    for group in {"residuals", "report"} & set(vars(theirs)):
        for name, value in vars(getattr(theirs, group)).items():
            assert np.shape(getattr(getattr(ours, group), name)) == np.shape(value)
    if hasattr(theirs, "report"):
        assert ours.report.status == theirs.report.status
        np.testing.assert_allclose(ours.report.margin, theirs.report.margin, rtol=1e-5)
    for name in ("problem_id", "batch", "batched", "versions"):
        assert ours.meta[name] == theirs.meta[name]
