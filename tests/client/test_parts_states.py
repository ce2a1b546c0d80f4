"""States of batches that are split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convexlayer_client import (
    AsyncClient,
    GoneError,
    Problem,
    ShapeError,
    SplitState,
    wire,
)
from tests.client.splitting import (
    BATCH,
    CLOSE,
    COTANGENTS,
    TANGENTS,
    THETA,
    RecordingTransport,
    limited,
    same,
)


@pytest.mark.parametrize("form", ["handle", "portable"])
def test_derivatives_use_the_states_of_parts(form: str, unsplit: Any) -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        solved = await client.solve(problem.id, THETA, state=form == "handle", portable=form == "portable")
        state = solved.state if form == "handle" else solved.portable
        assert isinstance(state, SplitState)
        assert state.sizes == (6, 7, 7)
        start = {"state": state} if form == "handle" else {"portable": state, "parameters": THETA}
        transport.forget()
        same(await client.vjp(problem.id, COTANGENTS, **start), unsplit[1])
        same(await client.jvp(problem.id, TANGENTS, **start, duals=True), unsplit[2])
        assert transport.seen == [("vjp", 200)] * 3 + [("jvp", 200)] * 3
        assert all("state" in body for body in transport.bodies)
        assert all(("parameters" in body) == (form == "portable") for body in transport.bodies)

    limited(work, max_batch=8)


def test_parts_with_expired_states_are_sent_with_parameters(unsplit: Any) -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        solved = await client.solve(problem.id, THETA, state=True)
        transport.forget()
        with pytest.raises(GoneError, match=r"in the part of elements \d+ to \d+ of 20"):
            await client.vjp(problem.id, COTANGENTS, state=solved.state)
        transport.forget()
        same(await client.vjp(problem.id, COTANGENTS, THETA, state=solved.state), unsplit[1])
        assert transport.count("vjp", 410) == 1
        assert transport.count("vjp") == 3
        assert sum("parameters" in body for body in transport.bodies) == 1

    limited(work, max_batch=8, state_bytes=17_000)


def test_a_state_that_exceeds_the_servers_memory_is_none() -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        solved = await client.solve(problem.id, THETA, state=True, portable=True)
        assert solved.state is None
        assert isinstance(solved.portable, SplitState)

    limited(work, max_batch=8, state_bytes=5_000)


def test_states_of_another_batch_are_rejected_before_sending() -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        solved = await client.solve(problem.id, THETA, state=True, portable=True)
        fewer = await client.solve(problem.id, {"a": THETA["a"][:9], "radius": 1.0}, portable=True)
        transport.forget()
        with pytest.raises(ShapeError, match="cotangent 'x' has 19 elements, but the state has 20"):
            await client.vjp(problem.id, {"x": np.ones((19, 3))}, state=solved.state)
        with pytest.raises(ShapeError, match="parameter 'a' has 9 elements, but the state has 20"):
            await client.vjp(problem.id, {"x": np.ones(3)}, {"a": THETA["a"][:9], "radius": 1.0}, state=solved.state)
        with pytest.raises(ShapeError, match="no parameter has a batch axis, but the state has 20"):
            await client.jvp(problem.id, TANGENTS, {"a": np.ones(3), "radius": 1.0}, state=solved.state)
        with pytest.raises(ShapeError, match="not of the same solve"):
            await client.vjp(problem.id, COTANGENTS, THETA, state=solved.state, portable=fewer.portable)
        with pytest.raises(ValueError, match="a job is one request"):
            await client.submit(wire.vjp(problem.id, COTANGENTS, state=solved.state))
        assert transport.seen == []

    limited(work, max_batch=8)


def test_a_batch_of_directions_for_one_element_is_split() -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        theta = {"a": THETA["a"][0], "radius": 1.0}
        solved = await client.solve(problem.id, theta, state=True, portable=True)
        await client.capabilities()
        transport.forget()
        plain = await client.vjp(problem.id, COTANGENTS, theta)
        for start in ({"state": solved.state}, {"portable": solved.portable, "parameters": theta}):
            result = await client.vjp(problem.id, COTANGENTS, **start)
            np.testing.assert_allclose(result.gradients["a"], plain.gradients["a"], **CLOSE)
            assert result.gradients["a"].shape == (3,)
        assert transport.seen == [("vjp", 200)] * 9
        moved = await client.jvp(problem.id, {"a": TANGENTS["a"]}, state=solved.state)
        assert moved.tangents["x"].shape == (BATCH, 3)

    limited(work, max_batch=8)


def test_a_handle_of_the_whole_batch_is_dropped_when_split(unsplit: Any) -> None:
    """The handle is from a server with larger limits; the parameters are sent instead."""

    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        await client.capabilities()
        transport.forget()
        same(await client.vjp(problem.id, COTANGENTS, THETA, state="s_of_the_whole"), unsplit[1])
        assert transport.seen == [("vjp", 200)] * 3

    limited(work, max_batch=8)


def test_parts_of_a_state_leave_room_for_parameters_and_cotangents() -> None:
    """Parts of a solve are small enough that cotangents, parameters and state fit into one request."""

    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        await client.capabilities()
        solved = await client.solve(problem.id, THETA, state=True, portable=True)
        transport.forget()
        cotangents = {"x": np.ones((BATCH, 3)), "c0": np.ones(BATCH), "c1": np.ones(BATCH), "objective": np.ones(BATCH)}
        await client.vjp(problem.id, cotangents, THETA, portable=solved.portable)
        assert isinstance(solved.state, SplitState)
        await client.vjp(problem.id, cotangents, THETA, state=solved.state)
        await client.vjp(
            problem.id, cotangents, THETA, state=SplitState(solved.state.sizes, ("s_gone",) * len(solved.state.sizes))
        )
        parts = len(solved.state.sizes)
        assert parts > 2
        assert transport.count("vjp") == 3 * parts
        assert transport.count("vjp", 410) == parts
        assert len(transport.seen) == 4 * parts

    limited(work, max_body_bytes=2_000)
