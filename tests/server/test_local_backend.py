from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import numpy as np
import psutil
import pytest

from convexlayer_server.compute import task_queue
from convexlayer_server.compute.local_backend import LocalBackend
from convexlayer_server.compute.problem_solver import ProblemSolver
from convexlayer_server.compute.protocol import ComputeOptions, ComputeRequest, ComputeResult
from convexlayer_server.errors import (
    DocumentError,
    InvalidError,
    RequestError,
    SolverChoiceError,
    UnavailableError,
)

from .backends import DOCUMENT, GRADIENT, SOLUTION, document, gradient_request, request, with_backend


class Gate:
    """Blocks one computation until the test opens the gate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.sizes: list[int] = []
        compute = ProblemSolver.compute

        def gated(solver: ProblemSolver, request: ComputeRequest, *arguments: Any, **keywords: Any) -> Any:
            self.sizes.append(max(map(len, request.parameters.values())))
            self.entered.set()
            self.open.wait()
            return compute(solver, request, *arguments, **keywords)

        monkeypatch.setattr(ProblemSolver, "compute", gated)
        monkeypatch.setattr(task_queue, "_MAX_MERGED_S", float("inf"))  # the blocked request seems slow

    async def occupied(self, backend: LocalBackend) -> asyncio.Task[ComputeResult]:
        """Start a request that is computed until the gate opens."""
        await backend.register("p", DOCUMENT)
        task = asyncio.create_task(backend.run(request("first"), DOCUMENT))
        await asyncio.to_thread(self.entered.wait)
        return task


async def waiting(backend: LocalBackend, count: int) -> None:
    while backend.health().running < count:
        await asyncio.sleep(0)


def test_requests_and_results_can_be_pickled() -> None:
    async def work(backend: LocalBackend) -> ComputeResult:
        return await backend.run(pickle.loads(pickle.dumps(request())), DOCUMENT)

    result = pickle.loads(pickle.dumps(with_backend(work)))
    np.testing.assert_allclose(result.arrays["x"], SOLUTION, atol=1e-8)
    assert result.status == ("optimal", "optimal")
    assert result.seconds["solve"] > 0.0


def test_errors() -> None:
    async def work(backend: LocalBackend) -> None:
        wrong = document(minimize="sqrt(x)")
        with pytest.raises(DocumentError):
            await backend.run(request(), wrong)
        with pytest.raises(DocumentError):
            await backend.register("p", wrong)
        with pytest.raises(SolverChoiceError):
            await backend.run(request(options=ComputeOptions(solver="nobody")), DOCUMENT)
        with pytest.raises(InvalidError, match="has 3 elements, but the parameters have 2"):
            await backend.run(gradient_request(directions={"x": np.ones(3)}), DOCUMENT)

    with_backend(work)


def test_errors_can_be_pickled() -> None:
    error = UnavailableError("later", retry_after_s=3.0)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.detail, copy.retry_after_s) == (UnavailableError, "later", 3.0)
    wrong = pickle.loads(pickle.dumps(InvalidError.at("/x", "no")))
    assert (wrong.detail, wrong.errors[0].pointer) == ("/x: no", "/x")


def test_a_closed_backend_refuses_requests() -> None:
    async def work(backend: LocalBackend) -> None:
        await backend.run(request(), DOCUMENT)
        await backend.close()
        assert not backend.health().ready
        with pytest.raises(UnavailableError):
            await backend.run(request(), DOCUMENT)
        with pytest.raises(UnavailableError):
            await backend.register("q", DOCUMENT)

    with_backend(work)


def test_running_requests_finish_at_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    async def work(backend: LocalBackend) -> None:
        first = await gate.occupied(backend)
        second = asyncio.create_task(backend.run(request("second"), DOCUMENT))
        await waiting(backend, 2)
        closing = asyncio.create_task(backend.close())
        await asyncio.sleep(0)
        gate.open.set()
        await closing
        for task in (first, second):
            np.testing.assert_allclose((await task).arrays["x"], SOLUTION, atol=1e-8)

    with_backend(work)


def test_requests_fail_after_the_drain_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    async def work(backend: LocalBackend) -> None:
        first = await gate.occupied(backend)
        second = asyncio.create_task(backend.run(request("second"), DOCUMENT))
        await waiting(backend, 2)
        await backend.close()
        for task in (first, second):
            with pytest.raises(UnavailableError, match="shutting down"):
                await task
        gate.open.set()

    with_backend(work, drain_s=0.01)


def test_merged_requests_fail_after_the_drain_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    async def work(backend: LocalBackend) -> None:
        first = await gate.occupied(backend)
        others = [asyncio.create_task(backend.run(request(str(number)), DOCUMENT)) for number in range(3)]
        await waiting(backend, 4)
        before, gate.open = gate.open, threading.Event()
        gate.entered.clear()
        before.set()
        await first
        await asyncio.to_thread(gate.entered.wait)
        await backend.close()
        for task in others:
            with pytest.raises(UnavailableError, match="shutting down"):
                await task
        gate.open.set()

    with_backend(work, drain_s=0.01)
    assert gate.sizes == [2, 6]


def test_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    async def work(backend: LocalBackend) -> None:
        first = await gate.occupied(backend)
        second = asyncio.create_task(backend.run(request("second"), DOCUMENT))
        third = asyncio.create_task(backend.run(request("third"), DOCUMENT))
        await waiting(backend, 3)
        assert await backend.cancel("first")
        assert await backend.cancel("second")
        assert not await backend.cancel("unknown")
        third.cancel()
        gate.open.set()
        for task in (first, second, third):
            with pytest.raises(asyncio.CancelledError):
                await task
        while backend.health().running:
            await asyncio.sleep(0)
        assert not await backend.cancel("first")

    with_backend(work)
    assert gate.sizes == [2], "requests that were cancelled in the queue must not be computed"


def test_waiting_requests_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    values = [np.array([0.1 * number, 2.0 + number]) for number in range(6)]

    async def work(backend: LocalBackend) -> list[ComputeResult]:
        first = await gate.occupied(backend)
        others = [
            asyncio.create_task(backend.run(request(f"{number}", parameters={"c": value}), DOCUMENT))
            for number, value in enumerate(values)
        ]
        single = asyncio.create_task(backend.run(request("single", parameters={"c": np.array(0.25)}), DOCUMENT))
        await waiting(backend, 8)
        gate.open.set()
        await first
        return [*await asyncio.gather(*others), await single]

    *results, single = with_backend(work)
    assert gate.sizes == [2, 13]
    for value, result in zip(values, results, strict=True):
        np.testing.assert_allclose(result.arrays["x"], np.minimum(value, 1.0), atol=1e-8)
        assert result.residuals["primal"].shape == (2,)
        assert result.batched
    np.testing.assert_allclose(single.arrays["x"], [0.25], atol=1e-8)
    assert not single.batched


def test_merging_is_limited_and_can_be_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, sizes in (({"merged_elements": 4}, [2, 4, 2]), ({"batching": False}, [2, 2, 2, 2])):
        with monkeypatch.context() as patch:
            gate = Gate(patch)

            async def work(backend: LocalBackend, gate: Gate = gate) -> None:
                first = await gate.occupied(backend)
                others = [asyncio.create_task(backend.run(request(str(i)), DOCUMENT)) for i in range(3)]
                await waiting(backend, 4)
                gate.open.set()
                await asyncio.gather(first, *others)

            with_backend(work, **settings)
            assert gate.sizes == sizes


def test_an_invalid_request_does_not_fail_merged_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    bad = np.array([1.0, np.nan])

    async def work(backend: LocalBackend) -> list[ComputeResult | BaseException]:
        first = await gate.occupied(backend)
        requests = [gradient_request(str(i), directions={"x": bad if i == 1 else np.ones(2)}) for i in range(3)]
        others = [asyncio.create_task(backend.run(each, DOCUMENT)) for each in requests]
        await waiting(backend, 4)
        gate.open.set()
        await first
        return await asyncio.gather(*others, return_exceptions=True)

    good, wrong, other = with_backend(work)
    assert gate.sizes == [2, 6, 2, 2, 2]
    assert isinstance(wrong, InvalidError)
    for result in (good, other):
        assert isinstance(result, ComputeResult)
        np.testing.assert_allclose(result.arrays["c"], GRADIENT, atol=1e-8)


def test_a_slow_merged_request_is_computed_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of a merged solve is 64 iterations; with this first-order method, the second request needs more."""
    pair = {"shape": [2]}
    text = document(parameters={"c": pair}, variables={"x": pair}, minimize="sum_squares(x - c)")
    values = [np.array([[0.5, 0.5]]), np.array([[1e4, -1e4]]), np.array([[0.1, 0.0]])]
    options = ComputeOptions(solver="scs")

    async def alone(backend: LocalBackend) -> list[ComputeResult]:
        return [
            await backend.run(request(str(i), parameters={"c": value}, options=options), text)
            for i, value in enumerate(values)
        ]

    expected = with_backend(alone)
    slow = [max(result.iterations) > 64 for result in expected]
    assert slow == [False, True, False]
    gate = Gate(monkeypatch)

    async def together(backend: LocalBackend) -> list[ComputeResult]:
        await backend.register("q", text)
        first = await gate.occupied(backend)
        tasks = [
            asyncio.create_task(
                backend.run(request(str(i), problem_id="q", parameters={"c": value}, options=options), text)
            )
            for i, value in enumerate(values)
        ]
        await waiting(backend, 4)
        gate.open.set()
        await first
        return await asyncio.gather(*tasks)

    results = with_backend(together)
    assert gate.sizes == [2, 3, 1]
    for result, reference in zip(results, expected, strict=True):
        assert result.status == reference.status
        np.testing.assert_allclose(result.arrays["x"], reference.arrays["x"], atol=1e-6)


def test_a_large_batch_is_computed_in_chunks() -> None:
    values = np.linspace(-1.0, 2.0, 3000)
    steps: list[tuple[int, int]] = []

    async def work(backend: LocalBackend) -> tuple[ComputeResult, ComputeResult]:
        solved = await backend.run(
            request(parameters={"c": values}, keep=True), DOCUMENT, lambda *step: steps.append(step)
        )
        shared = document(parameters={"c": {}, "d": {}}, minimize="square(x - c - d)")
        gradients = await backend.run(
            gradient_request(
                problem_id="q",
                parameters={"c": values, "d": np.array(0.0)},
                directions={"x": np.array(1.0)},
                wrt=("c", "d"),
            ),
            shared,
        )
        return solved, gradients

    solved, gradients = with_backend(work)
    assert len(steps) > 2
    assert steps[0] == (0, 3000)
    assert steps[-1] == (3000, 3000)
    np.testing.assert_allclose(solved.arrays["x"], np.minimum(values, 1.0), atol=1e-7)
    assert len(solved.status) == len(solved.iterations) == len(solved.residuals["gap"]) == 3000
    np.testing.assert_allclose(gradients.arrays["c"], values < 1.0, atol=1e-6)
    np.testing.assert_allclose(gradients.arrays["d"], np.sum(values < 1.0), atol=1e-4)
    assert gradients.report is not None
    assert len(gradients.report["status"]) == 3000


def test_concurrent_registrations_canonicalise_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(backend: LocalBackend) -> list[Any]:
        return await asyncio.gather(*(backend.register("p", DOCUMENT) for _ in range(5)), return_exceptions=True)

    summaries = with_backend(work)
    assert not any(isinstance(summary, RequestError) for summary in summaries)
    assert all(summary is summaries[1] for summary in summaries[2:])


def test_closing_releases_all_resources() -> None:
    process = psutil.Process()

    async def work(backend: LocalBackend) -> None:
        await backend.run(request(keep=True), DOCUMENT)

    with_backend(work)
    before = process.num_fds() if hasattr(process, "num_fds") else 0, threading.active_count()
    for _ in range(5):
        with_backend(work)
    assert (process.num_fds() if hasattr(process, "num_fds") else 0) <= before[0]
    assert threading.active_count() <= before[1]
