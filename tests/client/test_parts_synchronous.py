"""The synchronous client and the remote layer split batches, on a separate server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from convexlayer_client import (
    Client,
    InvalidError,
    SplitState,
    UnauthenticatedError,
    safetensors,
    wire,
)
from tests.client.example import DOCUMENT
from tests.client.layers import remote
from tests.client.splitting import (
    BATCH,
    COTANGENTS,
    TANGENTS,
    THETA,
    same,
)
from tests.families import family
from tests.server.running import running


@pytest.fixture(scope="module")
def small() -> Iterator[Client]:
    with running(max_batch=8) as server, Client(server.url) as client:
        yield client


def test_the_synchronous_client_splits_batches(small: Client, unsplit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    problem = small.register(DOCUMENT)
    solved = small.solve(problem.id, THETA, duals=True, state=True, portable=True, progress=True)
    same(solved, unsplit[0])
    assert f"{BATCH}/{BATCH}" in capsys.readouterr().err
    same(small.vjp(problem.id, COTANGENTS, state=solved.state), unsplit[1])
    same(small.vjp(problem.id, COTANGENTS, THETA, portable=solved.portable), unsplit[1])
    same(small.jvp(problem.id, TANGENTS, THETA, duals=True), unsplit[2])
    same(small.run(wire.jvp(problem.id, TANGENTS, THETA, state=solved.state, duals=True)), unsplit[2])


def test_the_synchronous_client_raises_the_error_of_a_part(small: Client) -> None:
    problem = small.register(DOCUMENT)
    cotangents = np.ones((BATCH, 3))
    cotangents[1] = np.inf
    with pytest.raises(InvalidError, match=r"in the part of elements 0 to 5 of 20: .*element 1 is not finite"):
        small.vjp(problem.id, {"x": cotangents}, THETA)


def test_an_error_cancels_the_retries_of_other_parts() -> None:
    """Of sixty parts one fails; the others would be retried for minutes."""
    seen: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("capabilities"):
            capabilities = {"versions": {}, "keys_required": False, "workers": 1, "limits": {"max_batch": 10}}
            return httpx.Response(200, json=capabilities | dict.fromkeys(("solvers", "functions", "documents"), ()))
        if request.method == "GET":
            leaves: dict[str, Any] = {"parameters": {"a": {"shape": []}}, "variables": {}, "duals": {}}
            return httpx.Response(200, json={"id": "p", **leaves, "sizes": {}})
        seen.append(request.headers["X-Request-Id"])
        first = safetensors.read(bytearray(request.content))["parameters"]["a"][0]
        return httpx.Response(401 if first == 10.0 else 503, json={}, headers={"Retry-After": "100"})

    before = set(threading.enumerate())
    with (
        Client("http://server", transport=httpx.MockTransport(respond), retry_s=600) as client,
        pytest.raises(UnauthenticatedError, match="in the part of elements 10 to 19 of 600"),
    ):
        client.solve("p", {"a": np.arange(600.0)})
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()
    assert len(set(seen)) == 1
    assert len(seen) <= 2


def test_a_remote_layer_splits_batches(small: Client, client: Client) -> None:
    case = family("least_norm")
    found = []
    for server in (small, client):
        for state in ("handle", "portable", "none"):
            layer = remote(case, server, state=state)
            tensors = case.tensors(BATCH, seed=3, batched=(False, True, True))
            outputs, report = layer.solve(*tensors)
            (sum(output.square().sum() for output in outputs) + report.objective.sum()).backward()
            found.append([*outputs, *(tensor.grad for tensor in tensors)])
    for other in found[:-1]:
        for ours, theirs in zip(other, found[-1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_batch_larger_than_the_default_limits(client: Client) -> None:
    """24 MB of parameters and 5,000 elements."""
    document = {
        "kind": "expression",
        "parameters": {"c": {"shape": [600]}, "limit": {}},
        "variables": {"x": {"shape": []}},
        "minimize": "square(x - sum(c))",
        "subject_to": ["x <= limit"],
    }
    problem = client.register(document)
    c = np.random.default_rng(0).standard_normal((5_000, 600))
    solved = client.solve(problem.id, {"c": c, "limit": 1.0}, state=True)
    assert isinstance(solved.state, SplitState)
    assert len(solved.status) == sum(solved.state.sizes) == 5_000
    np.testing.assert_allclose(solved.variables["x"], np.minimum(c.sum(1), 1.0), atol=1e-6)
    gradients = client.vjp(problem.id, {"x": np.ones(5_000)}, state=solved.state).gradients
    free = c.sum(1) < 1.0
    np.testing.assert_allclose(gradients["c"], np.repeat(free[:, None], 600, 1), atol=1e-5)
    np.testing.assert_allclose(gradients["limit"], (~free).sum(), atol=1e-2)
