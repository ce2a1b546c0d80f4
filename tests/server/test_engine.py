from __future__ import annotations

import asyncio
import pickle
import threading

import numpy as np
import pytest

from convexlayer_server.engine import ComputeOptions, ComputeRequest, ComputeResult, EmbeddedEngine
from convexlayer_server.engine.compiled import CompiledProblem
from convexlayer_server.errors import DocumentError, SolverChoiceError
from convexlayer_server.settings import Settings

DOCUMENT = {
    "kind": "expression",
    "parameters": {"c": {}},
    "variables": {"x": {}},
    "minimize": "square(x - c)",
    "subject_to": ["x <= 1"],
}


def request(request_id: str = "r", **fields: object) -> ComputeRequest:
    values = {"problem_id": "p", "operation": "solve", "parameters": {"c": np.array([0.5, 3.0])}} | fields
    return ComputeRequest(request_id=request_id, **values)  # type: ignore[arg-type]


def test_requests_and_results_travel() -> None:
    async def run() -> ComputeResult:
        engine = EmbeddedEngine(Settings())
        await engine.register("p", DOCUMENT)
        result = await engine.run(pickle.loads(pickle.dumps(request())), DOCUMENT)
        await engine.close()
        return pickle.loads(pickle.dumps(result))  # type: ignore[no-any-return]

    result = asyncio.run(run())
    np.testing.assert_allclose(result.arrays["x"], [0.5, 1.0], atol=1e-8)
    assert result.status == ("optimal", "optimal")


def test_errors() -> None:
    async def run() -> None:
        engine = EmbeddedEngine(Settings())
        wrong = DOCUMENT | {"minimize": "sqrt(x)"}
        with pytest.raises(DocumentError):
            await engine.run(request(), wrong)
        with pytest.raises(DocumentError):
            await engine.register("p", wrong)
        with pytest.raises(SolverChoiceError):
            await engine.run(request(options=ComputeOptions(solver="nobody")), DOCUMENT)
        await engine.close()
        assert not engine.health().ready

    asyncio.run(run())


def test_cancel_reaches_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    started, release = threading.Event(), threading.Event()

    def block(self: CompiledProblem, request: ComputeRequest) -> str:
        started.set()
        release.wait()
        return request.request_id

    monkeypatch.setattr(CompiledProblem, "compute", block)

    async def run() -> None:
        engine = EmbeddedEngine(Settings(solver_threads=1))
        await engine.register("p", DOCUMENT)
        first = asyncio.create_task(engine.run(request("first"), DOCUMENT))
        await asyncio.to_thread(started.wait)
        second = asyncio.create_task(engine.run(request("second"), DOCUMENT))
        while engine.health().running < 2:
            await asyncio.sleep(0)
        assert not await engine.cancel("first")
        assert await engine.cancel("second")
        assert not await engine.cancel("unknown")
        with pytest.raises(asyncio.CancelledError):
            await second
        release.set()
        assert await first == "first"  # type: ignore[comparison-overlap]
        assert engine.health().running == 0
        await engine.close()

    asyncio.run(run())


def test_least_recently_used_problem_is_dropped() -> None:
    async def run() -> None:
        engine = EmbeddedEngine(Settings(compiled_problems=2))
        for name in ("p", "q", "p", "s"):
            summary = await engine.register(name, DOCUMENT)
            assert summary["id"] == name
        assert engine.health().compiled == 2
        assert list(engine._compiled) == ["p", "s"]
        await engine.close()

    asyncio.run(run())


def test_problems_are_dropped_by_size() -> None:
    async def run() -> None:
        engine = EmbeddedEngine(Settings())
        await engine.register("p", DOCUMENT)
        size = engine._compiled["p"].size
        await engine.close()
        engine = EmbeddedEngine(Settings(max_compiled_size=2 * size))
        for name in "pqr":
            await engine.register(name, DOCUMENT)
        assert list(engine._compiled) == ["q", "r"]
        await engine.close()
        engine = EmbeddedEngine(Settings(max_compiled_size=1))
        result = await engine.run(request(), DOCUMENT)
        assert result.status == ("optimal", "optimal")
        assert engine.health().compiled == 1
        await engine.close()

    asyncio.run(run())


def test_a_problem_may_be_dropped_before_it_is_solved() -> None:
    async def run() -> list[ComputeResult]:
        engine = EmbeddedEngine(Settings(compiled_problems=1))
        names = [f"p{number % 3}" for number in range(12)]
        results = await asyncio.gather(*(engine.run(request(name, problem_id=name), DOCUMENT) for name in names))
        await engine.close()
        return results

    for result in asyncio.run(run()):
        np.testing.assert_allclose(result.arrays["x"], [0.5, 1.0], atol=1e-8)
