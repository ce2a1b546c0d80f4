"""States that the local backend keeps or sends, and problems that it evicts."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from convexlayer_server.compute import scheduler, states
from convexlayer_server.compute.local_backend import LocalBackend
from convexlayer_server.compute.protocol import ComputeResult
from convexlayer_server.errors import (
    GoneError,
    InvalidError,
)

from .backends import DOCUMENT, GRADIENT, SOLUTION, VALUES, document, gradient_request, request, with_backend


@pytest.mark.parametrize("form", ["handle", "portable", "recompute"])
@pytest.mark.parametrize("operation", ["vjp", "jvp"])
def test_the_result_does_not_depend_on_the_form_of_the_state(form: str, operation: str) -> None:
    infeasible = document(subject_to=["x <= 1", "x >= 0", "x + c <= 10"])
    values = np.array([0.5, 3.0, 50.0, 0.25])
    directions = {"x" if operation == "vjp" else "c": np.arange(1.0, 5.0)}

    async def work(backend: LocalBackend) -> ComputeResult:
        solved = await backend.run(request(parameters={"c": values}, keep=True, portable=True), infeasible)
        assert solved.status == ("optimal", "optimal", "infeasible", "optimal")
        assert solved.state is not None
        assert solved.portable is not None
        states = {"handle": solved.state, "portable": solved.portable, "recompute": None}
        result = await backend.run(
            request(
                "d",
                operation=operation,
                directions=directions,
                wrt=("c",),
                parameters={} if form == "handle" else {"c": values},
                state=states[form],
            ),
            infeasible,
        )
        if form == "handle":
            assert result.solver == solved.solver
        return result

    result = with_backend(work)
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

    async def work(backend: LocalBackend) -> list[ComputeResult]:
        solved = await backend.run(request(parameters=values, keep=True, portable=True), text)
        tangents = {"c": np.eye(3)}
        return [
            await backend.run(
                request(str(i), operation="jvp", parameters=given, state=state, directions=tangents), text
            )
            for i, (given, state) in enumerate([({}, solved.state), (values, solved.portable), (values, None)])
        ]

    for result in with_backend(work):
        np.testing.assert_allclose(result.arrays["x"], np.eye(3) - 1.0 / 3.0, atol=1e-8)


def test_handles_belong_to_an_owner_and_a_problem_and_expire() -> None:
    async def work(backend: LocalBackend) -> None:
        solved = await backend.run(request(keep=True, owner="a"), DOCUMENT)
        result = await backend.run(gradient_request(parameters={}, state=solved.state, owner="a"), DOCUMENT)
        np.testing.assert_allclose(result.arrays["c"], GRADIENT, atol=1e-8)
        for wrong in ({"owner": "b"}, {"owner": "a", "problem_id": "q"}, {"owner": "a", "state": "s_other"}):
            fields: dict[str, Any] = {"parameters": {}, "state": solved.state} | wrong
            with pytest.raises(GoneError):
                await backend.run(gradient_request(**fields), DOCUMENT)

    with_backend(work)

    async def too_late(backend: LocalBackend) -> None:
        solved = await backend.run(request(keep=True), DOCUMENT)
        await asyncio.sleep(0.01)
        with pytest.raises(GoneError):
            await backend.run(gradient_request(parameters={}, state=solved.state), DOCUMENT)

    with_backend(too_late, state_s=0.005)


def test_states_have_a_byte_budget() -> None:
    size = states._OVERHEAD_BYTES + 2 * states._ELEMENT_BYTES + 8 * (2 + 2 + 2 + 2)  # c, x, y and s, two elements each

    async def work(backend: LocalBackend) -> None:
        handles = [(await backend.run(request(str(i), keep=True), DOCUMENT)).state for i in range(3)]
        with pytest.raises(GoneError):
            await backend.run(gradient_request(parameters={}, state=handles[0]), DOCUMENT)
        for handle in handles[1:]:
            result = await backend.run(gradient_request(parameters={}, state=handle), DOCUMENT)
            np.testing.assert_allclose(result.arrays["c"], GRADIENT, atol=1e-8)
        large = await backend.run(request(parameters={"c": np.zeros(100)}, keep=True), DOCUMENT)
        assert large.state is None

    with_backend(work, state_bytes=2 * size)


def test_a_portable_state_is_bound_to_its_parameters() -> None:
    async def work(backend: LocalBackend) -> None:
        solved = await backend.run(request(portable=True), DOCUMENT)
        with pytest.raises(InvalidError, match="belongs to another problem or other parameters"):
            await backend.run(gradient_request(parameters={"c": VALUES + 0.1}, state=solved.portable), DOCUMENT)

    with_backend(work)


def test_evicted_problems_are_canonicalised_again() -> None:
    async def work(backend: LocalBackend) -> None:
        for name in ("p", "q", "p", "s"):
            assert (await backend.register(name, DOCUMENT))["id"] == name
        assert backend.health().cached_problems == 2
        result = await backend.run(request(problem_id="q"), DOCUMENT)
        np.testing.assert_allclose(result.arrays["x"], SOLUTION, atol=1e-8)
        names = [f"p{number % 3}" for number in range(12)]
        requests = [request(f"{number}", problem_id=name) for number, name in enumerate(names)]
        for result in await asyncio.gather(*(backend.run(each, DOCUMENT) for each in requests)):
            np.testing.assert_allclose(result.arrays["x"], SOLUTION, atol=1e-8)

    with_backend(work, cached_problems=2)


def test_problems_with_evicted_summaries_are_canonicalised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_MAX_SUMMARY_BYTES", 2 * (scheduler._MIN_SUMMARY_BYTES + len(DOCUMENT)))

    async def work(backend: LocalBackend) -> None:
        for name in ("p", "q", "s"):
            await backend.register(name, DOCUMENT)
        result = await backend.run(request(problem_id="p"), DOCUMENT)
        np.testing.assert_allclose(result.arrays["x"], SOLUTION, atol=1e-8)

    with_backend(work)


def test_problems_are_evicted_by_size() -> None:
    async def work(backend: LocalBackend) -> int:
        for name in "pqr":
            await backend.register(name, DOCUMENT)
        result = await backend.run(request(), DOCUMENT)
        assert result.status == ("optimal", "optimal")
        return backend.health().cached_problems

    size = 1 + 1 + 1 + 1 + 2  # n, m, P, A, and the map from c
    assert with_backend(work, max_cached_size=2 * size + 1) == 2
    assert with_backend(work, max_cached_size=1) == 1
