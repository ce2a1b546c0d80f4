"""Requests that are answered later."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest

from convexlayer_server import Settings, create_app, jobs
from convexlayer_server.engine import ComputeRequest, ComputeResult, EmbeddedEngine
from convexlayer_server.jobs import Jobs

from .conftest import VALUES, AppClient
from .engines import DOCUMENT, PARTS, request, with_engine
from .engines import VALUES as TWO

ASYNC = {"Prefer": "respond-async, wait=10"}


def started(client: AppClient, path: str, body: dict[str, Any]) -> str:
    response = client.request("POST", path, json=body, headers=ASYNC)
    assert response.status_code == 202, response.text
    assert response.headers["Preference-Applied"] == "respond-async"
    assert response.json()["status"] in ("waiting", "running")
    return str(response.headers["Location"])


def events(client: AppClient, job: str) -> list[tuple[str, dict[str, Any]]]:
    """All of them: the stream ends with the job."""
    response = client.get(f"{job}/events")
    assert response.headers["Content-Type"].startswith("text/event-stream")
    blocks = [block for block in response.text.split("\n\n") if block.startswith("event: ")]
    lines = [block.split("\n") for block in blocks]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data, *_ in lines]


def test_a_job_has_the_answer_of_its_request(client: AppClient, path: str) -> None:
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


def test_progress_is_told(client: AppClient, path: str) -> None:
    rng = np.random.default_rng(0)
    body = {"parameters": VALUES | {"b": rng.standard_normal((1500, 4)).tolist()}, "cotangents": {"x": [1.0, 0.0, 0.0]}}
    told = events(client, started(client, f"{path}/vjp", body))
    assert told[-1][0] == "done"
    assert {name for name, _ in told[:-1]} <= {"progress"}
    done = [data["done"] for _, data in told]
    assert done == sorted(done)
    assert told[-1][1]["done"] == told[-1][1]["total"] == 1500


def test_errors_come_with_the_result(client: AppClient, path: str) -> None:
    job = started(client, f"{path}/solve", {"parameters": VALUES, "options": {"solver": "nobody"}})
    assert events(client, job)[-1][0] == "done"
    result = client.get(f"{job}/result")
    assert result.status_code == 422
    assert result.json()["type"] == "urn:convexlayer:problem:solver"
    # what can be seen at once is told at once
    response = client.request("POST", f"{path}/solve", json={"parameters": {}}, headers=ASYNC)
    assert response.status_code == 422


@pytest.mark.parametrize("call", ["", "/result", "/events"])
def test_unknown_jobs(client: AppClient, call: str) -> None:
    assert client.get(f"/v1/jobs/j_unknown{call}").status_code == 404


class Bench:
    """Jobs of an engine, whose work waits until it is let go."""

    def __init__(self, engine: EmbeddedEngine, **settings: Any) -> None:
        self.jobs = Jobs(Settings(**settings), engine)
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


def test_jobs_are_their_owners() -> None:
    async def work(engine: EmbeddedEngine) -> None:
        bench = Bench(engine, max_jobs_per_key=2)
        bench.result = await engine.run(request(), DOCUMENT)
        first = bench.start(request("1", owner="a"))
        second = bench.start(request("2", owner="a"))
        other = bench.start(request("3", owner="b"))
        assert bench.jobs.all("a") == [first, second]
        assert bench.jobs.get("b", other.id) is other
        with pytest.raises(Exception, match="no job"):
            bench.jobs.get("b", first.id)
        with pytest.raises(Exception, match="as many as it may have"):
            bench.start(request("4", owner="a"))
        with pytest.raises(Exception, match="is waiting"):
            await first.result()
        bench.go.set()
        await asyncio.gather(first.task, second.task, other.task)
        third = bench.start(request("5", owner="a"))  # in place of the oldest, which is done
        assert bench.jobs.all("a") == [second, third]
        await bench.jobs.close()

    with_engine(work)


def test_results_are_kept_for_a_time_and_within_a_budget() -> None:
    async def work(engine: EmbeddedEngine) -> None:
        result = await engine.run(request(), DOCUMENT)
        for settings, left in (({"job_bytes": 2 * (result.size_bytes + jobs._AROUND_BYTES)}, 2), ({"job_s": 1e-9}, 0)):
            bench = Bench(engine, **settings)
            bench.result = result
            bench.go.set()
            started_jobs = [bench.start(request(str(i))) for i in range(3)]
            await asyncio.gather(*(job.task for job in started_jobs))
            assert bench.jobs.all("") == started_jobs[3 - left :]

    with_engine(work)


def test_cancelled_jobs_are_cancelled_in_the_engine() -> None:
    async def work(engine: EmbeddedEngine) -> None:
        kept = Jobs(Settings(), engine)
        large = request("large", parameters={"c": np.zeros(100_000)})

        async def respond(result: ComputeResult) -> Any:
            return httpx.Response(200)

        job = kept.start(large, lambda progress: engine.run(large, DOCUMENT, progress), respond)
        changes = job.changes()
        while job.status != "running":
            await anext(changes)
        await kept.cancel(job)
        assert job.status == "cancelled"
        with pytest.raises(Exception, match="was cancelled"):
            await job.result()
        assert [None async for _ in changes] == [None]
        with pytest.raises(asyncio.CancelledError):
            await job.task
        assert kept.all("") == []

    with_engine(work, merged_rows=64)


def test_a_job_outlives_its_connection() -> None:
    """The caller goes away before the answer that it is a job."""

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


def test_large_results_of_one_key_leave_those_of_others() -> None:
    async def work(engine: EmbeddedEngine) -> None:
        small = await engine.run(request(), DOCUMENT)
        large = await engine.run(request(parameters={"c": np.zeros(2000)}), DOCUMENT)
        size_bytes = large.size_bytes + jobs._AROUND_BYTES
        bench = Bench(engine, job_bytes=2 * size_bytes)
        bench.go.set()

        async def done(owner: str, result: ComputeResult) -> Any:
            bench.result = result
            job = bench.start(request(owner, owner=owner))
            await job.task
            return job

        others = await done("b", small)
        greedy = [await done("a", large) for _ in range(4)]
        assert bench.jobs.all("b") == [others]
        assert bench.jobs.expires_s(others) == pytest.approx(Settings().job_s, rel=0.5)
        assert bench.jobs.all("a") == greedy[-1:]

    with_engine(work)
