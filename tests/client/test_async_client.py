"""AsyncClient has the methods of Client; tested on the application in this process."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest

from convexlayer_client import (
    AsyncClient,
    Client,
    InvalidError,
    NotFoundError,
    TooManyRequestsError,
    TransportError,
    wire,
)
from convexlayer_server import Settings, create_app
from tests.client.example import DOCUMENT, THETA, expected

T = TypeVar("T")


def with_app(work: Callable[[AsyncClient], Awaitable[T]], retry_s: float = 30.0, **settings: Any) -> T:
    """Run ``work`` with a client of the application in this process."""

    async def run() -> T:
        app = create_app(Settings(workers=0, **settings))
        client = AsyncClient("http://server", transport=httpx.ASGITransport(app), retry_s=retry_s)
        async with app.router.lifespan_context(app), client:
            return await work(client)

    return asyncio.run(run())


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[inspect.Parameter]]:
        return {
            name: list(inspect.signature(method).parameters.values())
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert methods(AsyncClient) == methods(Client)


def test_every_call() -> None:
    async def work(client: AsyncClient) -> None:
        problem = await client.register(DOCUMENT)
        assert [listed.id for listed in await client.problems()] == [problem.id]
        assert (await client.get(problem.id)).parameters == problem.parameters
        solved, again = await asyncio.gather(
            client.solve(problem.id, THETA, state=True, portable=True), client.solve(problem.id, THETA)
        )
        np.testing.assert_allclose(solved.variables["x"], [expected(a) for a in THETA["a"]], atol=1e-7)
        np.testing.assert_allclose(again.variables["x"], solved.variables["x"], atol=1e-9)
        assert solved.state is not None
        assert solved.portable is not None
        cotangents = {"x": np.ones((2, 3))}
        plain = await client.vjp(problem.id, cotangents, THETA)
        from_handle = await client.vjp(problem.id, cotangents, state=solved.state)
        from_arrays = await client.vjp(problem.id, cotangents, THETA, portable=solved.portable)
        from_nothing = await client.vjp(problem.id, cotangents, THETA, state="s_gone", portable=solved.portable)
        for result in (from_handle, from_arrays, from_nothing):
            np.testing.assert_allclose(result.gradients["a"], plain.gradients["a"], atol=1e-9)
        tangents = {"a": np.ones((2, 3))}
        moved = await client.jvp(problem.id, tangents, state=solved.state)
        np.testing.assert_allclose(
            moved.tangents["x"], (await client.jvp(problem.id, tangents, THETA)).tangents["x"], atol=1e-9
        )
        with pytest.raises(InvalidError):
            await client.solve(problem.id, {"a": THETA["a"]})
        await client.delete(problem.id)
        with pytest.raises(NotFoundError):
            await client.get(problem.id)
        assert (await client.health())["status"] == "ok"

    with_app(work)


def test_a_job() -> None:
    async def work(client: AsyncClient) -> None:
        problem = await client.register(DOCUMENT)
        job = await client.submit(wire.solve(problem.id, THETA))
        result = await client.result(job)
        np.testing.assert_allclose(result.variables["x"], [expected(a) for a in THETA["a"]], atol=1e-7)
        assert [status.status async for status in client.events(job)] == ["done"]
        assert [status.id for status in await client.jobs()] == [job.id]
        await client.cancel(job)
        with pytest.raises(NotFoundError):
            await client.status(job)

    with_app(work)


def test_a_rate_limit_error_has_a_retry_after() -> None:
    async def work(client: AsyncClient) -> None:
        for _ in range(50):
            await client.problems()

    with pytest.raises(TooManyRequestsError) as caught:
        with_app(work, retry_s=0, requests_per_minute=6)
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s <= 60


def test_a_closed_client_is_a_transport_error() -> None:
    async def work() -> None:
        client = AsyncClient("http://server")
        await client.close()
        await client.health()

    with pytest.raises(TransportError, match="closed"):
        asyncio.run(work())
