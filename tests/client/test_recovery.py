"""What becomes of a client's work when its server is started anew, forgets, or loses a worker."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from convexlayer_client import Client, GoneError, JobStatus, wire
from convexlayer_client.layer import RemoteConvexLayer
from tests.client.conftest import serving
from tests.client.families import quadratic
from tests.client.test_client import DOCUMENT, THETA, expected


def states_asked_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, bool]]:
    """Grows by what every vjp begins with: the handle and whether there is a portable state."""
    asked: list[tuple[str | None, bool]] = []
    vjp = client.vjp

    def watched(*arguments: Any, **keywords: Any) -> Any:
        asked.append((keywords["state"], keywords["portable"] is not None))
        return vjp(*arguments, **keywords)

    monkeypatch.setattr(client, "vjp", watched)
    return asked


def gradient(layer: RemoteConvexLayer, between: Callable[[], None] = lambda: None) -> torch.Tensor:
    """The gradient of a loss in the first parameter; something may happen between forward and backward."""
    tensors = quadratic().tensors(seed=1, batched=(True, True, True))
    (solution, *_) = layer(*tensors)
    between()
    solution.square().sum().backward()
    assert tensors[0].grad is not None
    return tensors[0].grad


@pytest.mark.parametrize("state", ["handle", "portable", "none"])
def test_backward_begins_with_the_state(state: Any, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    family = quadratic()
    asked = states_asked_for(client, monkeypatch)
    layer = RemoteConvexLayer(family.problem, family.parameters, family.outputs, client=client, state=state)
    exact = gradient(RemoteConvexLayer(family.problem, family.parameters, family.outputs, client=client, state="none"))
    asked.clear()
    torch.testing.assert_close(gradient(layer), exact, rtol=1e-9, atol=1e-9)
    ((handle, portable),) = asked
    assert (handle is not None, portable) == {
        "handle": (True, False),
        "portable": (True, True),
        "none": (False, False),
    }[state]


def test_without_gradients_no_state_is_kept(client: Client) -> None:
    family = quadratic()
    layer = RemoteConvexLayer(family.problem, family.parameters, family.outputs, client=client)
    with torch.no_grad():
        _, report = layer.solve(*family.tensors(seed=1))
    assert report.result.state is None
    _, report = layer.solve(*family.tensors(seed=1))
    assert report.result.state is not None


@pytest.mark.parametrize(("state", "forgotten"), [("handle", True), ("portable", False)])
def test_a_server_started_anew(state: Any, forgotten: bool, free_port: Callable[[], int], tmp_path: Path) -> None:
    """It has no states, and with another store no problems either: gradients are what they would have been."""
    port, family = free_port(), quadratic()
    places = [str(tmp_path / "first.sqlite"), str(tmp_path / ("second.sqlite" if forgotten else "first.sqlite"))]
    with serving("--workers", "0", port=port, store=places[0]) as (url, process):
        client = Client(url, retry_s=240)
        layer = RemoteConvexLayer(family.problem, family.parameters, family.outputs, client=client, state=state)
        exact = gradient(layer)

        with ThreadPoolExecutor(1) as pool:

            def restart() -> None:
                process.send_signal(signal.SIGKILL)
                process.wait()
                pool.submit(started.__enter__)  # meanwhile, the client tries again and again

            started = serving("--workers", "0", port=port, store=places[1])
            try:
                torch.testing.assert_close(gradient(layer, restart), exact, rtol=1e-9, atol=1e-9)
            finally:
                pool.shutdown()
                started.__exit__(None, None, None)


def worker_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The worker that has computed most."""
    return max(psutil.Process(process.pid).children(), key=lambda child: sum(child.cpu_times()[:2]))


@pytest.fixture(scope="module")
def server() -> Any:
    with serving("--workers", "1", state_s="600") as (url, process), Client(url, retry_s=120) as client:
        problem = client.register(DOCUMENT)
        client.solve(problem.id, THETA)
        yield client, process, problem.id


def test_a_killed_worker_costs_nothing(server: Any) -> None:
    client, process, problem = server
    solved = client.solve(problem, THETA, state=True)
    exact = client.vjp(problem, {"x": np.ones((2, 3))}, THETA)
    with ThreadPoolExecutor(4) as pool:  # 503 for those in work, which are sent again
        calls = [pool.submit(client.solve, problem, THETA) for _ in range(40)]
        for call in calls[:4]:
            call.result()
        os.kill(worker_of(process).pid, signal.SIGKILL)
        for call in calls:
            np.testing.assert_allclose(call.result().variables["x"], [expected(a) for a in THETA["a"]], atol=1e-7)
    kept = client.vjp(problem, {"x": np.ones((2, 3))}, state=solved.state)  # states are not the worker's
    np.testing.assert_allclose(kept.gradients["a"], exact.gradients["a"], atol=1e-9)


def test_a_job_is_followed_to_its_end(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    client, _, problem = server
    theta = {"a": np.random.default_rng(0).standard_normal((600, 3)), "radius": 1.0}
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


def test_an_unknown_state_is_gone(server: Any) -> None:
    client, _, problem = server
    with pytest.raises(GoneError):
        client.vjp(problem, {"x": np.ones((2, 3))}, state="s_unknown")
    assert client.vjp(problem, {"x": np.ones((2, 3))}, THETA, state="s_unknown").status == ("optimal", "optimal")
