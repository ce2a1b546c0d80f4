"""What jobs keep until their results expire, and what their results tell."""

from __future__ import annotations

import asyncio
import gc
import traceback
from typing import Any

import pytest

from convexlayer_server import Settings, create_app
from convexlayer_server.compute.job_registry import JobRegistry
from convexlayer_server.compute.protocol import ComputeResult
from convexlayer_server.errors import DerivativeError
from convexlayer_server.service import Service
from convexlayer_server.store import StoredProblem

from .backends import request
from .conftest import DOCUMENT, VALUES, AppClient
from .test_jobs import events, started


def test_the_error_of_a_job_does_not_grow_with_the_calls_for_it() -> None:
    async def scenario() -> None:
        unused: Any = None
        jobs = JobRegistry(Settings(), unused)

        async def fail(progress: Any) -> ComputeResult:
            raise DerivativeError("there is none")

        job: Any = jobs.start(request(), fail, unused)
        await job.task
        frames = []
        for _ in range(5):
            with pytest.raises(DerivativeError) as caught:
                await job.response()
            frames.append(len(traceback.extract_tb(caught.value.__traceback__)))
        assert frames == frames[:1] * 5

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("operation", "body"),
    [("solve", {}), ("vjp", {"cotangents": {"x": [1.0, 0.0, 0.0]}}), ("jvp", {"tangents": {"lam": 1.0}})],
)
def test_a_finished_job_keeps_no_document_and_tells_its_time_in_the_queue(operation: str, body: dict[str, Any]) -> None:
    app = create_app(Settings(workers=0))
    client = AppClient(app)
    service: Service = app.state.service
    try:
        job = started(client, f"{client.register(DOCUMENT)}/{operation}", {"parameters": VALUES} | body)
        assert events(client, job)[-1][0] == "done"
        service.registry.clear_cache()
        gc.collect()
        assert not [each for each in gc.get_objects() if type(each) is StoredProblem]
        result = client.get(f"{job}/result").json()
        assert result["status"] == ["optimal"]
        assert result["meta"]["seconds"]["queue"] > 0.0
    finally:
        client.close()


@pytest.mark.parametrize("headers", [["wait=10, respond-async"], ["wait=10", "Respond-Async"]])
def test_preferences_may_stand_in_several_headers(client: AppClient, path: str, headers: list[str]) -> None:
    response = client.request(
        "POST", f"{path}/solve", json={"parameters": VALUES}, headers=[("Prefer", header) for header in headers]
    )
    assert response.status_code == 202
