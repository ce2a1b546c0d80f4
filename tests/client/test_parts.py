"""Batches larger than the limits of a server are split; results equal those of one request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Container, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from convexlayer_client import (
    AsyncClient,
    Client,
    GoneError,
    InvalidError,
    JvpResult,
    Options,
    Problem,
    ShapeError,
    SolveResult,
    SplitState,
    TooLargeError,
    UnauthenticatedError,
    VjpResult,
    safetensors,
    wire,
)
from convexlayer_client.layer import RemoteConvexLayer
from convexlayer_client.parts import BatchSplitter, Limits
from convexlayer_server import Settings, create_app
from tests.client.conftest import serving
from tests.client.families import quadratic
from tests.client.test_client import DOCUMENT

BATCH = 20
RNG = np.random.default_rng(7)
THETA: dict[str, Any] = {"a": RNG.standard_normal((BATCH, 3)), "radius": 1.0}
COTANGENTS: dict[str, Any] = {
    "x": RNG.standard_normal((BATCH, 3)),
    "c1": RNG.standard_normal(BATCH),
    "objective": np.array(0.5),
}
TANGENTS: dict[str, Any] = {"a": RNG.standard_normal((BATCH, 3)), "radius": 0.5}
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}

Respond = Callable[[httpx.Request], Awaitable[httpx.Response]]


class RecordingTransport(httpx.AsyncBaseTransport):
    """Transport to the application in this process, which records requests and may replace responses.

    Attributes:
        app: The application; a test may replace it.
        seen: Method, last part of the path, and status of every request.
        bodies: Safetensors bodies of the requests.
        request_ids: Request ids.
        peak: Largest number of concurrent requests.
        intercept: Responds in place of the application, if set.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.seen: list[tuple[str, int]] = []
        self.bodies: list[dict[str, Any]] = []
        self.request_ids: list[str | None] = []
        self.peak = self._now = 0
        self.intercept: Callable[[httpx.Request, Respond], Awaitable[httpx.Response]] | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._now += 1
        self.peak = max(self.peak, self._now)
        try:
            answer = self._application if self.intercept is None else self._intercepted
            response = await answer(request)
        finally:
            self._now -= 1
        self.seen.append((request.url.path.rpartition("/")[2], response.status_code))
        self.request_ids.append(request.headers.get("X-Request-Id"))
        if request.headers.get("Content-Type") == safetensors.MEDIA_TYPE:
            self.bodies.append(safetensors.read(bytearray(request.content)))
        return response

    async def _application(self, request: httpx.Request) -> httpx.Response:
        return await httpx.ASGITransport(self.app).handle_async_request(request)

    async def _intercepted(self, request: httpx.Request) -> httpx.Response:
        assert self.intercept is not None
        return await self.intercept(request, self._application)

    def count(self, step: str, status: int = 200) -> int:
        """Count the requests of an operation with a status."""
        return self.seen.count((step, status))

    def forget(self) -> None:
        """Clear the records."""
        self.seen.clear()
        self.bodies.clear()
        self.request_ids.clear()


def limited(work: Callable[[AsyncClient, Problem, RecordingTransport], Awaitable[None]], **settings: Any) -> None:
    """Run ``work`` with these limits, which the client has not fetched yet."""

    async def run() -> None:
        app = create_app(Settings(workers=0, **settings))
        transport = RecordingTransport(app)
        async with (
            app.router.lifespan_context(app),
            AsyncClient("http://server", transport=transport, retry_s=5) as client,
        ):
            problem = await client.register(DOCUMENT)
            transport.forget()
            await work(client, problem, transport)

    asyncio.run(run())


@pytest.fixture(scope="module")
def unsplit(client: Client) -> tuple[SolveResult, VjpResult, JvpResult]:
    """Results of the batch in one request."""
    problem = client.register(DOCUMENT)
    return (
        client.solve(problem.id, THETA, duals=True),
        client.vjp(problem.id, COTANGENTS, THETA),
        client.jvp(problem.id, TANGENTS, THETA, duals=True),
    )


def same(ours: Any, theirs: Any) -> None:
    """Assert that results are equal, except for times and fields that were requested of only one of them."""
    assert type(ours) is type(theirs)
    assert ours.status == theirs.status
    assert ours.details == theirs.details
    for part in ("variables", "duals", "gradients", "tangents"):
        for name, value in getattr(theirs, part, {}).items():
            assert getattr(ours, part)[name].shape == value.shape
            np.testing.assert_allclose(getattr(ours, part)[name], value, **CLOSE)
    if hasattr(theirs, "objective"):
        np.testing.assert_allclose(ours.objective, theirs.objective, **CLOSE)
    for group in {"residuals", "report"} & set(vars(theirs)):
        for name, value in vars(getattr(theirs, group)).items():
            assert np.shape(getattr(getattr(ours, group), name)) == np.shape(value)
    if hasattr(theirs, "report"):
        assert ours.report.status == theirs.report.status
        np.testing.assert_allclose(ours.report.margin, theirs.report.margin, rtol=1e-5)
    for name in ("problem_id", "batch", "batched", "versions"):
        assert ours.meta[name] == theirs.meta[name]


@pytest.mark.parametrize(
    ("limits", "parts"),
    [
        ({"max_batch": 8}, {3}),
        ({"max_array_size": 24}, {3}),
        ({"max_body_bytes": 760}, range(2, 21)),
        ({"max_batch_size": 300}, {3}),
    ],
)
def test_a_split_batch_gives_the_results_of_one_request(
    limits: dict[str, int], parts: Container[int], unsplit: Any
) -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        await client.capabilities()
        solved = await client.solve(problem.id, THETA, duals=True)
        backward = await client.vjp(problem.id, COTANGENTS, THETA)
        forward = await client.jvp(problem.id, TANGENTS, THETA, duals=True)
        for ours, theirs in zip((solved, backward, forward), unsplit, strict=True):
            same(ours, theirs)
        assert {status for _, status in transport.seen} == {200}
        for step in ("solve", "vjp", "jvp"):
            assert transport.count(step) in parts
        assert transport.count("capabilities") == 1
        assert transport.peak == 2

    limited(work, **limits)


def test_a_batch_within_the_limits_is_one_request() -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        for _ in range(2):
            await client.solve(problem.id, THETA)
            await client.capabilities()
        assert [step for step, _ in transport.seen] == ["solve", "capabilities"] * 2

    limited(work)


def test_limits_are_fetched_once_and_again_after_they_changed(unsplit: Any) -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        same(await client.solve(problem.id, THETA, duals=True), unsplit[0])  # small, so limits were not fetched first
        assert transport.seen == [("solve", 422), ("capabilities", 200), *[("solve", 200)] * 3]
        transport.forget()
        solved = await client.solve(problem.id, THETA, duals=True, state=True)
        same(solved, unsplit[0])
        assert transport.seen == [("solve", 200)] * 3

        smaller = create_app(Settings(workers=0, max_batch=3))
        async with smaller.router.lifespan_context(smaller):
            transport.app = smaller
            await client.register(DOCUMENT)
            transport.forget()
            same(await client.vjp(problem.id, COTANGENTS, THETA), unsplit[1])
            assert 1 <= transport.count("vjp", 422) <= 2  # the two concurrent requests
            assert transport.count("capabilities") == 1
            assert transport.count("vjp") == 7
            transport.forget()
            same(
                await client.vjp(problem.id, COTANGENTS, THETA, state=solved.state), unsplit[1]
            )  # the parts of the state are too large
            assert transport.seen == [("vjp", 200)] * 7

    limited(work, max_batch=8)


def test_limits_are_fetched_before_a_large_batch_is_sent() -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        many: dict[str, Any] = {"a": np.tile(THETA["a"], (15, 1)), "radius": 1.0}
        assert (await client.solve(problem.id, many)).meta["batch"] == 300
        assert transport.seen == [("capabilities", 200), *[("solve", 200)] * 3]
        transport.forget()
        await client.with_options(retry_s=0).solve(problem.id, many)
        assert transport.seen == [("solve", 200)] * 3

    limited(work, max_batch=100)


def test_shapes_are_fetched_if_another_client_registered() -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        other = AsyncClient("http://server", transport=transport)
        assert (await other.solve(problem.id, THETA)).meta["batch"] == BATCH
        assert transport.seen[:3] == [("solve", 422), ("capabilities", 200), (problem.id, 200)]
        transport.forget()
        assert (await other.solve(problem.id, THETA)).meta["batch"] == BATCH
        assert transport.seen == [("solve", 200)] * 3

    limited(work, max_batch=8)


def test_errors_that_are_not_about_size_are_not_retried_in_parts() -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        for parameters in ({"a": THETA["a"]}, THETA | {"b": 1.0}, {"a": THETA["a"], "radius": np.ones(BATCH - 1)}):
            transport.forget()
            with pytest.raises(InvalidError):
                await client.solve(problem.id, parameters)
            assert transport.count("solve", 422) == 1
            assert len(transport.seen) <= 2
        transport.forget()
        with pytest.raises(InvalidError):
            await client.solve(problem.id, {"a": np.full(3, np.nan), "radius": np.ones(())})
        with pytest.raises(InvalidError):
            await client.solve(problem.id, THETA, solver="none-such")
        assert len(transport.seen) == 3  # three values could be a batch, so limits are fetched once

    limited(work)


def test_elements_keep_their_order() -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        radius = np.ones(BATCH)
        radius[3], radius[13] = np.nan, 0.1
        result = await client.solve(problem.id, {"a": THETA["a"], "radius": radius})
        assert [i for i, word in enumerate(result.status) if word != "optimal"] == [3, 13]
        assert result.status[3] == "invalid"
        assert list(result.details) == [3]
        radius[3], radius[16] = 1.0, np.nan
        backward = await client.vjp(problem.id, COTANGENTS, {"a": THETA["a"], "radius": radius})
        assert list(backward.details) == [16]
        assert backward.gradients["radius"].shape == (BATCH,)
        assert backward.gradients["radius"][16] == 0

    limited(work, max_batch=8)


def test_the_parts_of_a_batch_share_a_request_id() -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        await client.capabilities()
        transport.forget()
        result = await client.solve(problem.id, THETA)
        assert transport.request_ids == [result.request_id] * 3
        named = client.with_options(headers={"x-request-id": "night-7"})
        assert (await named.solve(problem.id, THETA)).request_id == "night-7"
        assert transport.request_ids[3:] == ["night-7"] * 3

    limited(work, max_batch=8)


@pytest.mark.parametrize("form", ["handle", "portable"])
def test_derivatives_use_the_states_of_parts(form: str, unsplit: Any) -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        solved = await client.solve(problem.id, THETA, state=form == "handle", portable=form == "portable")
        state = solved.state if form == "handle" else solved.portable
        assert isinstance(state, SplitState)
        assert state.rows == (6, 7, 7)
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
            problem.id, cotangents, THETA, state=SplitState(solved.state.rows, ("s_gone",) * len(solved.state.rows))
        )
        parts = len(solved.state.rows)
        assert parts > 2
        assert transport.count("vjp") == 3 * parts
        assert transport.count("vjp", 410) == parts
        assert len(transport.seen) == 4 * parts

    limited(work, max_body_bytes=2_000)


def test_the_first_failed_part_is_raised_and_the_others_are_cancelled() -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        cotangents = np.ones((BATCH, 3))
        cotangents[1] = np.inf
        await client.capabilities()
        transport.forget()
        cancelled = 0

        async def block_others(request: httpx.Request, respond: Respond) -> httpx.Response:
            nonlocal cancelled
            if not np.isinf(safetensors.read(bytearray(request.content))["cotangents"]["x"]).any():
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled += 1
                    raise
            return await respond(request)

        transport.intercept = block_others
        with pytest.raises(
            InvalidError, match=r"in the part of elements 0 to 1 of 20: .*element 1 is not finite"
        ) as caught:
            await client.vjp(problem.id, {"x": cotangents}, THETA)
        assert caught.value.errors[0].pointer == "/cotangents/x"
        assert transport.seen == [("vjp", 422)]
        assert cancelled == 1

    limited(work, max_batch=2)


def test_parts_are_retried_independently(unsplit: Any) -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        await client.capabilities()
        failures = iter([True, False, True, False, False, True])

        async def fail_some(request: httpx.Request, respond: Respond) -> httpx.Response:
            if next(failures, False):
                return httpx.Response(503, json={}, headers={"Retry-After": "0"})
            return await respond(request)

        transport.intercept = fail_some
        transport.forget()
        same(await client.solve(problem.id, THETA, duals=True), unsplit[0])
        assert transport.count("solve", 503) == 3
        assert transport.count("solve") == 5
        transport.intercept = None

    limited(work, max_batch=4)


def test_an_element_larger_than_the_limit_is_the_servers_error() -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        for _ in range(2):
            transport.forget()
            with pytest.raises(TooLargeError, match=r"in the part of elements (0 to 0|1 to 1) of 20"):
                await client.solve(problem.id, THETA)
        assert 1 <= transport.count("solve", 413) <= 2
        assert len(transport.seen) <= 3  # limits are fetched again once

    limited(work, max_body_bytes=250)


def test_batch_sizes_are_checked_before_splitting() -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        await client.capabilities()
        transport.forget()
        with pytest.raises(ShapeError, match="parameter 'a' has 200, parameter 'radius' has 100"):
            await client.solve(problem.id, {"a": np.ones((200, 3)), "radius": np.ones(100)})
        assert transport.seen == []

    limited(work, max_body_bytes=4_000)


def test_parts_are_smaller_if_the_server_requires_json(unsplit: Any) -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        async def plain(request: httpx.Request, respond: Respond) -> httpx.Response:
            refused = request.headers.get("Content-Type") == safetensors.MEDIA_TYPE
            return httpx.Response(415, json={}) if refused else await respond(request)

        transport.intercept = plain
        await client.capabilities()
        same(await client.solve(problem.id, THETA, duals=True), unsplit[0])
        transport.forget()
        same(await client.vjp(problem.id, COTANGENTS, THETA), unsplit[1])
        assert {status for _, status in transport.seen} == {200}

    limited(work, max_body_bytes=1_100)


def test_progress_counts_elements(capsys: pytest.CaptureFixture[str]) -> None:
    async def work(client: AsyncClient, problem: Problem, transport: RecordingTransport) -> None:
        await client.solve(problem.id, THETA, progress=True)
        await client.solve(problem.id, {"a": np.ones(3), "radius": 1.0}, progress=True)

    limited(work, max_batch=8)
    shown = capsys.readouterr().err
    assert "solve" in shown
    assert f"0/{BATCH}" in shown
    assert f"{BATCH}/{BATCH}" in shown
    assert "1/1" in shown


def test_parts_are_within_the_limits_and_cover_the_batch() -> None:
    """For random shapes, every body is within the limit or has one element."""
    rng = np.random.default_rng(3)
    for trial in range(300):
        shapes = {name: tuple(rng.integers(1, 6, rng.integers(0, 3))) for name in "abc"}
        sizes = dict(zip(("n", "m"), rng.integers(1, 30, 2).tolist(), strict=True))
        problem = Problem("p", shapes, {"x": (4,)}, {"c0": (2, 3)}, {"sizes": sizes})
        batch = int(rng.integers(2, 400))
        batched = rng.random(3) < 0.7
        batched[rng.integers(3)] = True
        values = {
            name: rng.standard_normal(((batch,) if has_axis else ()) + shape)
            for (name, shape), has_axis in zip(shapes.items(), batched, strict=True)
        }
        call: Any = (
            wire.solve("p", values, state=trial % 3 == 0, portable=trial % 2 == 0)
            if trial % 2
            else wire.vjp("p", {"x": rng.standard_normal((batch, 4))}, values, options=Options(tol=1e-6))
        )
        limits = Limits(
            batch=int(rng.integers(1, 300)),
            body_bytes=int(rng.integers(2_000, 60_000)),
            array_size=int(rng.integers(100, 2_000)),
            batch_size=int(rng.integers(1_000, 60_000)),
        )
        form: Any = "binary" if trial % 5 else "json"
        parts = BatchSplitter(call, problem, limits, form).parts()
        assert [part.batch_slice.start for part in parts[1:]] == [part.batch_slice.stop for part in parts[:-1]]
        assert (parts[0].batch_slice.start, parts[-1].batch_slice.stop) == (0, batch)
        for part in parts:
            content = part.request(form).content
            assert content is not None
            assert len(content) <= part.size_bytes(form)
            if form == "binary":
                assert len(content) == part.size_bytes(form)
            assert len(part.batch_slice) == 1 or (
                len(content) <= limits.body_bytes and len(part.batch_slice) <= limits.batch
            )
        for name, value in values.items():
            slices = [part.body["parameters"][name] for part in parts]
            joined = np.concatenate(slices) if value.ndim > len(shapes[name]) else slices[0]
            np.testing.assert_array_equal(joined, value)


# --- the synchronous client, on a separate server ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Iterator[Client]:
    with serving("--workers", "0", max_batch="8") as (url, _), Client(url) as client:
        yield client


def test_the_synchronous_client_splits_batches(small: Client, unsplit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    problem = small.register(DOCUMENT)
    solved = small.solve(problem.id, THETA, duals=True, state=True, portable=True, progress=True)
    same(solved, unsplit[0])
    assert f"{BATCH}/{BATCH}" in capsys.readouterr().err
    same(small.vjp(problem.id, COTANGENTS, state=solved.state), unsplit[1])
    same(small.vjp(problem.id, COTANGENTS, THETA, portable=solved.portable), unsplit[1])
    same(small.jvp(problem.id, TANGENTS, THETA, duals=True), unsplit[2])
    same(small.run(wire.jvp(problem.id, TANGENTS, THETA, state=solved.state, duals=True)), unsplit[2])


def test_the_synchronous_client_raises_the_error_of_a_part(small: Client) -> None:
    problem = small.register(DOCUMENT)
    cotangents = np.ones((BATCH, 3))
    cotangents[1] = np.inf
    with pytest.raises(InvalidError, match=r"in the part of elements 0 to 5 of 20: .*element 1 is not finite"):
        small.vjp(problem.id, {"x": cotangents}, THETA)


def test_an_error_cancels_the_retries_of_other_parts() -> None:
    """Of sixty parts one fails; the others would be retried for minutes."""
    seen: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("capabilities"):
            capabilities = {"versions": {}, "keys_required": False, "workers": 1, "limits": {"max_batch": 10}}
            return httpx.Response(200, json=capabilities | dict.fromkeys(("solvers", "functions", "documents"), ()))
        if request.method == "GET":
            leaves: dict[str, Any] = {"parameters": {"a": {"shape": []}}, "variables": {}, "duals": {}}
            return httpx.Response(200, json={"id": "p", **leaves, "sizes": {}})
        seen.append(request.headers["X-Request-Id"])
        first = safetensors.read(bytearray(request.content))["parameters"]["a"][0]
        return httpx.Response(401 if first == 10.0 else 503, json={}, headers={"Retry-After": "100"})

    before = set(threading.enumerate())
    with (
        Client("http://server", transport=httpx.MockTransport(respond), retry_s=600) as client,
        pytest.raises(UnauthenticatedError, match="in the part of elements 10 to 19 of 600"),
    ):
        client.solve("p", {"a": np.arange(600.0)})
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()
    assert len(set(seen)) == 1
    assert len(seen) <= 2


def test_a_remote_layer_splits_batches(small: Client, client: Client) -> None:
    family = quadratic()
    found = []
    for server in (small, client):
        for state in ("handle", "portable", "none"):
            layer = RemoteConvexLayer(family.problem, family.parameters, family.outputs, client=server, state=state)
            tensors = family.tensors(seed=3, batched=(False, True, True), batch=BATCH)
            outputs, report = layer.solve(*tensors)
            (sum(output.square().sum() for output in outputs) + report.objective.sum()).backward()
            found.append([*outputs, *(tensor.grad for tensor in tensors)])
    for other in found[:-1]:
        for ours, theirs in zip(other, found[-1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_batch_larger_than_the_default_limits(client: Client) -> None:
    """24 MB of parameters and 5,000 elements."""
    document = {
        "kind": "expression",
        "parameters": {"c": {"shape": [600]}, "limit": {}},
        "variables": {"x": {"shape": []}},
        "minimize": "square(x - sum(c))",
        "subject_to": ["x <= limit"],
    }
    problem = client.register(document)
    c = np.random.default_rng(0).standard_normal((5_000, 600))
    solved = client.solve(problem.id, {"c": c, "limit": 1.0}, state=True)
    assert isinstance(solved.state, SplitState)
    assert len(solved.status) == sum(solved.state.rows) == 5_000
    np.testing.assert_allclose(solved.variables["x"], np.minimum(c.sum(1), 1.0), atol=1e-6)
    gradients = client.vjp(problem.id, {"x": np.ones(5_000)}, state=solved.state).gradients
    free = c.sum(1) < 1.0
    np.testing.assert_allclose(gradients["c"], np.repeat(free[:, None], 600, 1), atol=1e-5)
    np.testing.assert_allclose(gradients["limit"], (~free).sum(), atol=1e-2)
