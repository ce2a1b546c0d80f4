"""Requests that run as jobs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest

from convexlayer_server import Settings, create_app
from convexlayer_server.compute import job_registry
from convexlayer_server.compute.job_registry import JobRegistry
from convexlayer_server.compute.local_backend import LocalBackend
from convexlayer_server.compute.protocol import ComputeRequest, ComputeResult

from .backends import DOCUMENT, PARTS, request, with_backend
from .backends import VALUES as TWO
from .conftest import VALUES, AppClient

ASYNC = {"Prefer": "respond-async, wait=10"}


def started(client: AppClient, path: str, body: dict[str, Any]) -> str:
    response = client.request("POST", path, json=body, headers=ASYNC)
    assert response.status_code == 202, response.text
    assert response.headers["Preference-Applied"] == "respond-async"
    assert response.json()["status"] in ("waiting", "running")
    return str(response.headers["Location"])


def events(client: AppClient, job: str) -> list[tuple[str, dict[str, Any]]]:
    """Read all events; the stream ends with the job."""
    response = client.get(f"{job}/events")
    assert response.headers["Content-Type"].startswith("text/event-stream")
    blocks = [block for block in response.text.split("\n\n") if block.startswith("event: ")]
    lines = [block.split("\n") for block in blocks]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data, *_ in lines]


def test_a_job_has_the_result_of_its_request(client: AppClient, path: str) -> None:
    body = {"parameters": VALUES, "return": ["variables", "duals"]}
    job = started(client, f"{path}/solve", body)
    name, last = events(client, job)[-1]
    assert (name, last["status"], last["done"], last["total"]) == ("done", "done", 1, 1)
    assert 0.0 < last["expires_s"] <= Settings().job_s
    result = client.get(f"{job}/result")
    assert result.status_code == 200
    assert result.json()["variables"] == client.post(f"{path}/solve", body).json()["variables"]
    assert client.get(job).json()["operation"] == "solve"
    assert job.rpartition("/")[2] in [entry["id"] for entry in client.get("/v1/jobs").json()["jobs"]]
    assert client.request("DELETE", job).status_code == 204
    assert client.get(job).status_code == 404
    assert client.get(f"{job}/events").status_code == 404


def test_progress_is_reported(client: AppClient, path: str) -> None:
    rng = np.random.default_rng(0)
    body = {"parameters": VALUES | {"b": rng.standard_normal((1500, 4)).tolist()}, "cotangents": {"x": [1.0, 0.0, 0.0]}}
    received = events(client, started(client, f"{path}/vjp", body))
    assert received[-1][0] == "done"
    assert {name for name, _ in received[:-1]} <= {"progress"}
    done = [data["done"] for _, data in received]
    assert done == sorted(done)
    assert received[-1][1]["done"] == received[-1][1]["total"] == 1500


def test_errors_are_results(client: AppClient, path: str) -> None:
    job = started(client, f"{path}/solve", {"parameters": VALUES, "options": {"solver": "nobody"}})
    assert events(client, job)[-1][0] == "done"
    result = client.get(f"{job}/result")
    assert result.status_code == 422
    assert result.json()["type"] == "urn:convexlayer:problem:solver"
    # invalid arrays are an error of the request itself
    response = client.request("POST", f"{path}/solve", json={"parameters": {}}, headers=ASYNC)
    assert response.status_code == 422


@pytest.mark.parametrize("call", ["", "/result", "/events"])
def test_unknown_jobs(client: AppClient, call: str) -> None:
    assert client.get(f"/v1/jobs/j_unknown{call}").status_code == 404


class BlockedJobs:
    """Jobs that wait until the test lets them continue."""

    def __init__(self, backend: LocalBackend, **settings: Any) -> None:
        self.jobs = JobRegistry(Settings(**settings), backend)
        self.go = asyncio.Event()
        self.result: ComputeResult | None = None

    def start(self, request: ComputeRequest) -> Any:
        async def work(progress: Any) -> ComputeResult:
            await self.go.wait()
            assert self.result is not None
            return self.result

        async def respond(result: ComputeResult) -> Any:
            return httpx.Response(200)

        return self.jobs.start(request, work, respond)


def test_jobs_belong_to_their_owners() -> None:
    async def work(backend: LocalBackend) -> None:
        blocked = BlockedJobs(backend, max_jobs_per_key=2)
        blocked.result = await backend.run(request(), DOCUMENT)
        first = blocked.start(request("1", owner="a"))
        second = blocked.start(request("2", owner="a"))
        other = blocked.start(request("3", owner="b"))
        assert blocked.jobs.all("a") == [first, second]
        assert blocked.jobs.get("b", other.id) is other
        with pytest.raises(Exception, match="there is no job"):
            blocked.jobs.get("b", first.id)
        with pytest.raises(Exception, match="which is the limit"):
            blocked.start(request("4", owner="a"))
        with pytest.raises(Exception, match="is waiting"):
            await first.response()
        blocked.go.set()
        await asyncio.gather(first.task, second.task, other.task)
        third = blocked.start(request("5", owner="a"))  # replaces the oldest, which is done
        assert blocked.jobs.all("a") == [second, third]
        await blocked.jobs.close()

    with_backend(work)


def test_results_expire_and_have_a_byte_budget() -> None:
    async def work(backend: LocalBackend) -> None:
        result = await backend.run(request(), DOCUMENT)
        for settings, left in (
            ({"job_bytes": 2 * (result.size_bytes + job_registry._OVERHEAD_BYTES)}, 2),
            ({"job_s": 1e-9}, 0),
        ):
            blocked = BlockedJobs(backend, **settings)
            blocked.result = result
            blocked.go.set()
            started_jobs = [blocked.start(request(str(i))) for i in range(3)]
            await asyncio.gather(*(job.task for job in started_jobs))
            assert blocked.jobs.all("") == started_jobs[3 - left :]

    with_backend(work)


def test_cancelling_a_job_cancels_its_request() -> None:
    async def work(backend: LocalBackend) -> None:
        registry = JobRegistry(Settings(), backend)
        large = request("large", parameters={"c": np.zeros(100_000)})

        async def respond(result: ComputeResult) -> Any:
            return httpx.Response(200)

        job = registry.start(large, lambda progress: backend.run(large, DOCUMENT, progress), respond)
        changes = job.changes()
        while job.status != "running":
            await anext(changes)
        await registry.cancel(job)
        assert str(job.status) == "cancelled"  # mypy still knows it as running
        with pytest.raises(Exception, match="was cancelled"):
            await job.response()
        assert [None async for _ in changes] == [None]
        with pytest.raises(asyncio.CancelledError):
            await job.task
        assert registry.all("") == []

    with_backend(work, merged_elements=64)


def test_a_job_outlives_its_connection() -> None:
    """The client disconnects after the job has started."""

    async def run() -> None:
        app = create_app(Settings(workers=0))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
                path = (await http.post("/v1/problems", json=PARTS)).headers["Location"]
                sent = http.post(f"{path}/solve", json={"parameters": {"c": TWO.tolist()}}, headers=ASYNC)
                location = (await sent).headers["Location"]
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
                await http.get(f"{location}/events")
                result = await http.get(f"{location}/result")
                assert result.json()["variables"]["x"] == pytest.approx([0.5, 1.0])

    asyncio.run(run())


def test_large_results_of_one_key_do_not_evict_those_of_others() -> None:
    async def work(backend: LocalBackend) -> None:
        small = await backend.run(request(), DOCUMENT)
        large = await backend.run(request(parameters={"c": np.zeros(2000)}), DOCUMENT)
        size_bytes = large.size_bytes + job_registry._OVERHEAD_BYTES
        blocked = BlockedJobs(backend, job_bytes=2 * size_bytes)
        blocked.go.set()

        async def done(owner: str, result: ComputeResult) -> Any:
            blocked.result = result
            job = blocked.start(request(owner, owner=owner))
            await job.task
            return job

        others = await done("b", small)
        greedy = [await done("a", large) for _ in range(4)]
        assert blocked.jobs.all("b") == [others]
        assert blocked.jobs.expires_s(others) == pytest.approx(Settings().job_s, rel=0.5)
        assert blocked.jobs.all("a") == greedy[-1:]

    with_backend(work)
