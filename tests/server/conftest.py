"""A client of the application in this process, over ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from convexlayer_server import Settings, create_app

DOCUMENT: dict[str, Any] = {
    "kind": "expression",
    "parameters": {"A": {"shape": [4, 3]}, "b": {"shape": [4]}, "lam": {"nonneg": True}},
    "variables": {"x": {"shape": [3]}},
    "let": {"r": "A @ x - b"},
    "minimize": "sum_squares(r) + lam * norm1(x)",
    "subject_to": ["x >= -1", "sum(x) == 1"],
}
VALUES: dict[str, Any] = {
    "A": [[1.0, 0.2, 0.0], [0.0, 2.0, 0.1], [0.3, 0.0, 1.5], [0.5, 0.5, 0.5]],
    "b": [1.0, 2.0, 0.5, -1.0],
    "lam": 0.1,
}


class AppClient:
    """Sends requests to an application, one after another, on its own event loop."""

    def __init__(self, app: FastAPI) -> None:
        self._runner = asyncio.Runner()
        self._lifespan = app.router.lifespan_context(app)
        self._runner.run(self._lifespan.__aenter__())
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://server")

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._runner.run(self._http.request(method, path, **options))

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def post(self, path: str, json: Any) -> httpx.Response:
        return self.request("POST", path, json=json)

    def register(self, document: dict[str, Any]) -> str:
        """Register a problem, and return its path."""
        response = self.post("/v1/problems", document)
        assert response.is_success, response.text
        return str(response.headers["Location"])

    def together(self, *requests: tuple[str, str, Any], headers: dict[str, str] | None = None) -> list[httpx.Response]:
        """Send requests (method, path, body) concurrently, and return their responses."""

        async def send() -> list[httpx.Response]:
            return await asyncio.gather(
                *(self._http.request(m, path, json=body, headers=headers) for m, path, body in requests)
            )

        return self._runner.run(send())

    def close(self) -> None:
        self._runner.run(self._http.aclose())
        self._runner.run(self._lifespan.__aexit__(None, None, None))
        self._runner.close()


def problem_details(response: Any, status: int, slug: str) -> dict[str, Any]:
    """Check the form of problem details, and return them."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"type", "title", "status", "detail", "errors", "request_id"}
    assert body["type"] == f"urn:convexlayer:problem:{slug}"
    assert body["status"] == status
    assert body["request_id"] == response.headers["X-Request-Id"]
    return body


@pytest.fixture(scope="module")
def client() -> Iterator[AppClient]:
    client = AppClient(create_app(Settings(workers=0)))
    yield client
    client.close()


@pytest.fixture(scope="module")
def path(client: AppClient) -> str:
    return client.register(DOCUMENT)
