"""Recovery of the client when its server restarts, loses its states, or loses a worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convexlayer import ConvexLayer
from convexlayer_client import Client, GoneError, JobStatus, wire
from convexlayer_server import Settings
from convexlayer_server.compute.local_backend import LocalBackend
from convexlayer_server.store import Store
from tests.client.example import DOCUMENT, THETA, expected
from tests.client.layers import remote
from tests.families import family
from tests.server.running import running


def record_states(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, bool]]:
    """Record, for every vjp, the handle and whether there is a portable state."""
    states: list[tuple[str | None, bool]] = []
    vjp = client.vjp

    def watched(*arguments: Any, **keywords: Any) -> Any:
        states.append((keywords["state"], keywords["portable"] is not None))
        return vjp(*arguments, **keywords)

    monkeypatch.setattr(client, "vjp", watched)
    return states


def gradient(layer: ConvexLayer, between: Callable[[], None] = lambda: None) -> torch.Tensor:
    """Compute the gradient in the first parameter; ``between`` is called between forward and backward."""
    tensors = family("least_norm").tensors(3, seed=1)
    (solution, *_) = layer(*tensors)
    between()
    solution.square().sum().backward()
    assert tensors[0].grad is not None
    return tensors[0].grad


@pytest.mark.parametrize("state", ["handle", "portable", "none"])
def test_backward_uses_the_state(state: Any, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    case = family("least_norm")
    states = record_states(client, monkeypatch)
    layer = remote(case, client, state=state)
    exact = gradient(remote(case, client, state="none"))
    states.clear()
    torch.testing.assert_close(gradient(layer), exact, rtol=1e-9, atol=1e-9)
    ((handle, portable),) = states
    assert (handle is not None, portable) == {
        "handle": (True, False),
        "portable": (True, True),
        "none": (False, False),
    }[state]


def test_no_state_is_requested_without_gradients(client: Client) -> None:
    case = family("least_norm")
    layer = remote(case, client)
    with torch.no_grad():
        _, report = layer.solve(*case.tensors(seed=1))
    assert report.result.state is None
    _, report = layer.solve(*case.tensors(seed=1))
    assert report.result.state is not None


@pytest.mark.parametrize(("state", "new_store"), [("handle", True), ("portable", False)])
def test_a_restarted_server(state: Any, new_store: bool, free_port: Callable[[], int], tmp_path: Path) -> None:
    """Gradients are unchanged though states, and with a new store also problems, are lost."""
    port, case, settings = free_port(), family("least_norm"), Settings()
    files = [tmp_path / "first.sqlite", tmp_path / ("second.sqlite" if new_store else "first.sqlite")]
    with ExitStack() as servers, ThreadPoolExecutor(1) as pool:
        first = servers.enter_context(running(store=Store(settings, files[0]), port=port))
        client = servers.enter_context(Client(first.url, retry_s=240))
        layer = remote(case, client, state=state)
        exact = gradient(layer)

        def restart() -> None:
            first.close()  # the client retries until the next server listens
            pool.submit(lambda: servers.enter_context(running(store=Store(settings, files[1]), port=port)))

        torch.testing.assert_close(gradient(layer, restart), exact, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def server() -> Any:
    """A client, the backend of its server, which has one worker process, and a problem."""
    backend = LocalBackend(Settings(workers=1, state_s=600))
    with running(backend, state_s=600) as server, Client(server.url, retry_s=120) as client:
        problem = client.register(DOCUMENT)
        client.solve(problem.id, THETA)
        yield client, backend, problem.id


def test_a_killed_worker_fails_no_call(server: Any) -> None:
    client, backend, problem = server
    solved = client.solve(problem, THETA, state=True)
    exact = client.vjp(problem, {"x": np.ones((2, 3))}, THETA)
    with ThreadPoolExecutor(4) as pool:  # requests on the killed worker get 503 and are retried
        calls = [pool.submit(client.solve, problem, THETA) for _ in range(40)]
        for call in calls[:4]:
            call.result()
        worker = backend._scheduler.pool.foreground[0]
        os.kill(worker.pid, signal.SIGKILL)
        for call in calls:
            np.testing.assert_allclose(call.result().variables["x"], [expected(a) for a in THETA["a"]], atol=1e-7)
    assert backend.health().replaced == 1
    kept = client.vjp(problem, {"x": np.ones((2, 3))}, state=solved.state)  # states are not in the worker
    np.testing.assert_allclose(kept.gradients["a"], exact.gradients["a"], atol=1e-9)


def test_events_of_a_job_until_it_is_done(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    client, _, problem = server
    theta: dict[str, Any] = {"a": np.random.default_rng(0).standard_normal((600, 3)), "radius": 1.0}
    job = client.submit(wire.solve(problem, theta, state=True))
    seen: list[JobStatus] = list(client.events(job))
    assert seen[-1].status == "done"
    assert seen[-1].done == seen[-1].total == 600
    assert [status.done for status in seen] == sorted(status.done for status in seen)
    result = client.result(job, progress=True)
    assert "600/600" in capsys.readouterr().err
    np.testing.assert_allclose(result.variables["x"], [expected(a) for a in theta["a"]], atol=1e-7)
    cotangents = {"x": np.ones((600, 3))}
    gradients = client.result(client.submit(wire.vjp(problem, cotangents, state=result.state))).gradients
    np.testing.assert_allclose(gradients["a"], client.vjp(problem, cotangents, theta).gradients["a"], atol=1e-9)
    client.cancel(job)
    assert job.id not in [status.id for status in client.jobs()]


def test_an_unknown_state_is_a_gone_error(server: Any) -> None:
    client, _, problem = server
    with pytest.raises(GoneError):
        client.vjp(problem, {"x": np.ones((2, 3))}, state="s_unknown")
    assert client.vjp(problem, {"x": np.ones((2, 3))}, THETA, state="s_unknown").status == ("optimal", "optimal")
