from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import numpy as np
import psutil
import pytest

from convexlayer_server.engine import (
    ComputeOptions,
    ComputeRequest,
    ComputeResult,
    EmbeddedEngine,
    scheduler,
    states,
    turns,
)
from convexlayer_server.engine.computation import Computation
from convexlayer_server.errors import (
    DocumentError,
    GoneError,
    InvalidError,
    RequestError,
    SolverChoiceError,
    UnavailableError,
)

from .engines import DOCUMENT, GRADIENT, SOLUTION, VALUES, document, gradient_request, request, with_engine


class Gate:
    """Lets one computation wait until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.rows: list[int] = []
        compute = Computation.result

        def gated(computation: Computation, request: ComputeRequest, *arguments: Any, **keywords: Any) -> Any:
            self.rows.append(max(map(len, request.parameters.values())))
            self.entered.set()
            self.open.wait()
            return compute(computation, request, *arguments, **keywords)

        monkeypatch.setattr(Computation, "result", gated)
        monkeypatch.setattr(turns, "_MERGED_S", float("inf"))  # what waits at the gate seems to take long

    async def occupied(self, engine: EmbeddedEngine) -> asyncio.Task[ComputeResult]:
        """A request that is being computed, and will be until the gate opens."""
        await engine.register("p", DOCUMENT)
        task = asyncio.create_task(engine.run(request("first"), DOCUMENT))
        await asyncio.to_thread(self.entered.wait)
        return task


async def waiting(engine: EmbeddedEngine, count: int) -> None:
    while engine.health().running < count:
        await asyncio.sleep(0)


def test_requests_and_results_travel() -> None:
    async def work(engine: EmbeddedEngine) -> ComputeResult:
        return await engine.run(pickle.loads(pickle.dumps(request())), DOCUMENT)

    result = pickle.loads(pickle.dumps(with_engine(work)))
    np.testing.assert_allclose(result.arrays["x"], SOLUTION, atol=1e-8)
    assert result.status == ("optimal", "optimal")
    assert result.seconds["solve"] > 0.0


def test_errors() -> None:
    async def work(engine: EmbeddedEngine) -> None:
        wrong = document(minimize="sqrt(x)")
        with pytest.raises(DocumentError):
            await engine.run(request(), wrong)
        with pytest.raises(DocumentError):
            await engine.register("p", wrong)
        with pytest.raises(SolverChoiceError):
            await engine.run(request(options=ComputeOptions(solver="nobody")), DOCUMENT)
        with pytest.raises(InvalidError, match="has 3 elements, but the parameters have 2"):
            await engine.run(gradient_request(directions={"x": np.ones(3)}), DOCUMENT)

    with_engine(work)


def test_errors_keep_what_they_say_on_their_way() -> None:
    error = UnavailableError("later", retry_after_s=3.0)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.detail, copy.retry_after_s) == (UnavailableError, "later", 3.0)
    wrong = pickle.loads(pickle.dumps(InvalidError.at("/x", "no")))
    assert (wrong.detail, wrong.errors[0].pointer) == ("/x: no", "/x")


def test_a_closed_engine_takes_nothing() -> None:
    async def work(engine: EmbeddedEngine) -> None:
        await engine.run(request(), DOCUMENT)
        await engine.close()
        assert not engine.health().ready
        with pytest.raises(UnavailableError):
            await engine.run(request(), DOCUMENT)
        with pytest.raises(UnavailableError):
            await engine.register("q", DOCUMENT)

    with_engine(work)


def test_what_is_in_work_comes_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    async def work(engine: EmbeddedEngine) -> None:
        first = await gate.occupied(engine)
        second = asyncio.create_task(engine.run(request("second"), DOCUMENT))
        await waiting(engine, 2)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        gate.open.set()
        await closing
        for task in (first, second):
            np.testing.assert_allclose((await task).arrays["x"], SOLUTION, atol=1e-8)

    with_engine(work)


def test_what_is_not_done_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    async def work(engine: EmbeddedEngine) -> None:
        first = await gate.occupied(engine)
        second = asyncio.create_task(engine.run(request("second"), DOCUMENT))
        await waiting(engine, 2)
        await engine.close()
        for task in (first, second):
            with pytest.raises(UnavailableError, match="shutting down"):
                await task
        gate.open.set()

    with_engine(work, drain_s=0.01)


def test_what_was_merged_is_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    async def work(engine: EmbeddedEngine) -> None:
        first = await gate.occupied(engine)
        others = [asyncio.create_task(engine.run(request(str(number)), DOCUMENT)) for number in range(3)]
        await waiting(engine, 4)
        before, gate.open = gate.open, threading.Event()
        gate.entered.clear()
        before.set()
        await first
        await asyncio.to_thread(gate.entered.wait)
        await engine.close()
        for task in others:
            with pytest.raises(UnavailableError, match="shutting down"):
                await task
        gate.open.set()

    with_engine(work, drain_s=0.01)
    assert gate.rows == [2, 6]


def test_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    async def work(engine: EmbeddedEngine) -> None:
        first = await gate.occupied(engine)
        second = asyncio.create_task(engine.run(request("second"), DOCUMENT))
        third = asyncio.create_task(engine.run(request("third"), DOCUMENT))
        await waiting(engine, 3)
        assert await engine.cancel("first")
        assert await engine.cancel("second")
        assert not await engine.cancel("unknown")
        third.cancel()
        gate.open.set()
        for task in (first, second, third):
            with pytest.raises(asyncio.CancelledError):
                await task
        while engine.health().running:
            await asyncio.sleep(0)
        assert not await engine.cancel("first")

    with_engine(work)
    assert gate.rows == [2], "what is cancelled while it waits is not computed"


def test_those_that_wait_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    values = [np.array([0.1 * number, 2.0 + number]) for number in range(6)]

    async def work(engine: EmbeddedEngine) -> list[ComputeResult]:
        first = await gate.occupied(engine)
        others = [
            asyncio.create_task(engine.run(request(f"{number}", parameters={"c": value}), DOCUMENT))
            for number, value in enumerate(values)
        ]
        single = asyncio.create_task(engine.run(request("single", parameters={"c": np.array(0.25)}), DOCUMENT))
        await waiting(engine, 8)
        gate.open.set()
        await first
        return [*await asyncio.gather(*others), await single]

    *results, single = with_engine(work)
    assert gate.rows == [2, 13]
    for value, result in zip(values, results, strict=True):
        np.testing.assert_allclose(result.arrays["x"], np.minimum(value, 1.0), atol=1e-8)
        assert result.residuals["primal"].shape == (2,)
        assert result.batched
    np.testing.assert_allclose(single.arrays["x"], [0.25], atol=1e-8)
    assert not single.batched


def test_merging_has_its_bounds_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, rows in (({"merged_rows": 4}, [2, 4, 2]), ({"batching": False}, [2, 2, 2, 2])):
        with monkeypatch.context() as patch:
            gate = Gate(patch)

            async def work(engine: EmbeddedEngine, gate: Gate = gate) -> None:
                first = await gate.occupied(engine)
                others = [asyncio.create_task(engine.run(request(str(i)), DOCUMENT)) for i in range(3)]
                await waiting(engine, 4)
                gate.open.set()
                await asyncio.gather(first, *others)

            with_engine(work, **settings)
            assert gate.rows == rows


def test_a_wrong_request_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    bad = np.array([1.0, np.nan])

    async def work(engine: EmbeddedEngine) -> list[ComputeResult | BaseException]:
        first = await gate.occupied(engine)
        requests = [gradient_request(str(i), directions={"x": bad if i == 1 else np.ones(2)}) for i in range(3)]
        others = [asyncio.create_task(engine.run(each, DOCUMENT)) for each in requests]
        await waiting(engine, 4)
        gate.open.set()
        await first
        return await asyncio.gather(*others, return_exceptions=True)

    good, wrong, other = with_engine(work)
    assert gate.rows == [2, 6, 2, 2, 2]
    assert isinstance(wrong, InvalidError)
    for result in (good, other):
        assert isinstance(result, ComputeResult)
        np.testing.assert_allclose(result.arrays["c"], GRADIENT, atol=1e-8)


def test_a_slow_row_is_computed_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged, this first-order method is stopped at 64 iterations; the second of these needs more."""
    pair = {"shape": [2]}
    text = document(parameters={"c": pair}, variables={"x": pair}, minimize="sum_squares(x - c)")
    values = [np.array([[0.5, 0.5]]), np.array([[1e4, -1e4]]), np.array([[0.1, 0.0]])]
    options = ComputeOptions(solver="scs")

    async def alone(engine: EmbeddedEngine) -> list[ComputeResult]:
        return [
            await engine.run(request(str(i), parameters={"c": value}, options=options), text)
            for i, value in enumerate(values)
        ]

    expected = with_engine(alone)
    slow = [max(result.iterations) > 64 for result in expected]
    assert slow == [False, True, False]
    gate = Gate(monkeypatch)

    async def together(engine: EmbeddedEngine) -> list[ComputeResult]:
        await engine.register("q", text)
        first = await gate.occupied(engine)
        tasks = [
            asyncio.create_task(
                engine.run(request(str(i), problem_id="q", parameters={"c": value}, options=options), text)
            )
            for i, value in enumerate(values)
        ]
        await waiting(engine, 4)
        gate.open.set()
        await first
        return await asyncio.gather(*tasks)

    results = with_engine(together)
    assert gate.rows == [2, 3, 1]
    for result, reference in zip(results, expected, strict=True):
        assert result.status == reference.status
        np.testing.assert_allclose(result.arrays["x"], reference.arrays["x"], atol=1e-6)


def test_a_large_batch_is_cut_and_put_together() -> None:
    values = np.linspace(-1.0, 2.0, 3000)
    steps: list[tuple[int, int]] = []

    async def work(engine: EmbeddedEngine) -> tuple[ComputeResult, ComputeResult]:
        solved = await engine.run(
            request(parameters={"c": values}, keep=True), DOCUMENT, lambda *step: steps.append(step)
        )
        shared = document(parameters={"c": {}, "d": {}}, minimize="square(x - c - d)")
        gradients = await engine.run(
            gradient_request(
                problem_id="q",
                parameters={"c": values, "d": np.array(0.0)},
                directions={"x": np.array(1.0)},
                wrt=("c", "d"),
            ),
            shared,
        )
        return solved, gradients

    solved, gradients = with_engine(work)
    assert len(steps) > 2
    assert steps[0] == (0, 3000)
    assert steps[-1] == (3000, 3000)
    np.testing.assert_allclose(solved.arrays["x"], np.minimum(values, 1.0), atol=1e-7)
    assert len(solved.status) == len(solved.iterations) == len(solved.residuals["gap"]) == 3000
    np.testing.assert_allclose(gradients.arrays["c"], values < 1.0, atol=1e-6)
    np.testing.assert_allclose(gradients.arrays["d"], np.sum(values < 1.0), atol=1e-4)
    assert gradients.report is not None
    assert len(gradients.report["status"]) == 3000


@pytest.mark.parametrize("level", ["handle", "portable", "recompute"])
@pytest.mark.parametrize("operation", ["vjp", "jvp"])
def test_the_answer_does_not_depend_on_the_state(level: str, operation: str) -> None:
    infeasible = document(subject_to=["x <= 1", "x >= 0", "x + c <= 10"])
    values = np.array([0.5, 3.0, 50.0, 0.25])
    directions = {"x" if operation == "vjp" else "c": np.arange(1.0, 5.0)}

    async def work(engine: EmbeddedEngine) -> ComputeResult:
        solved = await engine.run(request(parameters={"c": values}, keep=True, portable=True), infeasible)
        assert solved.status == ("optimal", "optimal", "infeasible", "optimal")
        assert solved.state is not None
        assert solved.portable is not None
        states = {"handle": solved.state, "portable": solved.portable, "recompute": None}
        result = await engine.run(
            request(
                "d",
                operation=operation,
                directions=directions,
                wrt=("c",),
                parameters={} if level == "handle" else {"c": values},
                state=states[level],
            ),
            infeasible,
        )
        if level == "handle":
            assert result.solver == solved.solver
        return result

    result = with_engine(work)
    free = np.array([1.0, 0.0, 0.0 if operation == "vjp" else np.nan, 1.0])
    np.testing.assert_allclose(result.arrays["c" if operation == "vjp" else "x"], free * np.arange(1.0, 5.0), atol=1e-8)
    assert result.status == ("optimal", "optimal", "infeasible", "optimal")
    assert result.report is not None
    assert result.report["status"] == ["ok", "ok", "failed", "ok"]


def test_one_state_serves_many_directions() -> None:
    three = {"shape": [3]}
    text = document(
        parameters={"c": three}, variables={"x": three}, minimize="sum_squares(x - c)", subject_to=["sum(x) == 1"]
    )
    values = {"c": np.array([1.0, 2.0, 3.0])}

    async def work(engine: EmbeddedEngine) -> list[ComputeResult]:
        solved = await engine.run(request(parameters=values, keep=True, portable=True), text)
        tangents = {"c": np.eye(3)}
        return [
            await engine.run(request(str(i), operation="jvp", parameters=given, state=state, directions=tangents), text)
            for i, (given, state) in enumerate([({}, solved.state), (values, solved.portable), (values, None)])
        ]

    for result in with_engine(work):
        np.testing.assert_allclose(result.arrays["x"], np.eye(3) - 1.0 / 3.0, atol=1e-8)


def test_handles_serve_their_owner_and_problem_for_a_time() -> None:
    async def work(engine: EmbeddedEngine) -> None:
        solved = await engine.run(request(keep=True, owner="a"), DOCUMENT)
        result = await engine.run(gradient_request(parameters={}, state=solved.state, owner="a"), DOCUMENT)
        np.testing.assert_allclose(result.arrays["c"], GRADIENT, atol=1e-8)
        for wrong in ({"owner": "b"}, {"owner": "a", "problem_id": "q"}, {"owner": "a", "state": "s_other"}):
            fields = {"parameters": {}, "state": solved.state} | wrong
            with pytest.raises(GoneError):
                await engine.run(gradient_request(**fields), DOCUMENT)

    with_engine(work)

    async def too_late(engine: EmbeddedEngine) -> None:
        solved = await engine.run(request(keep=True), DOCUMENT)
        await asyncio.sleep(0.01)
        with pytest.raises(GoneError):
            await engine.run(gradient_request(parameters={}, state=solved.state), DOCUMENT)

    with_engine(too_late, state_s=0.005)


def test_states_are_kept_within_a_budget() -> None:
    size = states._AROUND_BYTES + 2 * states._ROW_BYTES + 8 * (2 + 2 + 2 + 2)  # c, x, y and s, two elements each

    async def work(engine: EmbeddedEngine) -> None:
        handles = [(await engine.run(request(str(i), keep=True), DOCUMENT)).state for i in range(3)]
        with pytest.raises(GoneError):
            await engine.run(gradient_request(parameters={}, state=handles[0]), DOCUMENT)
        for handle in handles[1:]:
            result = await engine.run(gradient_request(parameters={}, state=handle), DOCUMENT)
            np.testing.assert_allclose(result.arrays["c"], GRADIENT, atol=1e-8)
        large = await engine.run(request(parameters={"c": np.zeros(100)}, keep=True), DOCUMENT)
        assert large.state is None

    with_engine(work, state_bytes=2 * size)


def test_a_portable_state_is_bound_to_its_parameters() -> None:
    async def work(engine: EmbeddedEngine) -> None:
        solved = await engine.run(request(portable=True), DOCUMENT)
        with pytest.raises(InvalidError, match="belongs to another problem or to other parameters"):
            await engine.run(gradient_request(parameters={"c": VALUES + 0.1}, state=solved.portable), DOCUMENT)

    with_engine(work)


def test_problems_are_dropped_and_compiled_again() -> None:
    async def work(engine: EmbeddedEngine) -> None:
        for name in ("p", "q", "p", "s"):
            assert (await engine.register(name, DOCUMENT))["id"] == name
        assert engine.health().compiled == 2
        result = await engine.run(request(problem_id="q"), DOCUMENT)
        np.testing.assert_allclose(result.arrays["x"], SOLUTION, atol=1e-8)
        names = [f"p{number % 3}" for number in range(12)]
        requests = [request(f"{number}", problem_id=name) for number, name in enumerate(names)]
        for result in await asyncio.gather(*(engine.run(each, DOCUMENT) for each in requests)):
            np.testing.assert_allclose(result.arrays["x"], SOLUTION, atol=1e-8)

    with_engine(work, compiled_problems=2)


def test_a_problem_of_which_too_many_others_were_compiled_since_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_KNOWN_BYTES", 2 * (scheduler._LEAST_BYTES + len(DOCUMENT)))

    async def work(engine: EmbeddedEngine) -> None:
        for name in ("p", "q", "s"):
            await engine.register(name, DOCUMENT)
        result = await engine.run(request(problem_id="p"), DOCUMENT)
        np.testing.assert_allclose(result.arrays["x"], SOLUTION, atol=1e-8)

    with_engine(work)


def test_problems_are_dropped_by_size() -> None:
    async def work(engine: EmbeddedEngine) -> int:
        for name in "pqr":
            await engine.register(name, DOCUMENT)
        result = await engine.run(request(), DOCUMENT)
        assert result.status == ("optimal", "optimal")
        return engine.health().compiled

    size = 1 + 1 + 1 + 1 + 2  # n, m, P, A, and the map from c
    assert with_engine(work, max_compiled_size=2 * size + 1) == 2
    assert with_engine(work, max_compiled_size=1) == 1


def test_registering_at_the_same_time_compiles_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(engine: EmbeddedEngine) -> list[Any]:
        return await asyncio.gather(*(engine.register("p", DOCUMENT) for _ in range(5)), return_exceptions=True)

    summaries = with_engine(work)
    assert not any(isinstance(summary, RequestError) for summary in summaries)
    assert all(summary is summaries[1] for summary in summaries[2:])


def test_nothing_is_left_behind() -> None:
    process = psutil.Process()

    async def work(engine: EmbeddedEngine) -> None:
        await engine.run(request(keep=True), DOCUMENT)

    with_engine(work)
    before = process.num_fds() if hasattr(process, "num_fds") else 0, threading.active_count()
    for _ in range(5):
        with_engine(work)
    assert (process.num_fds() if hasattr(process, "num_fds") else 0) <= before[0]
    assert threading.active_count() <= before[1]
