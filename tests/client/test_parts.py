"""Batches beyond the limits of a server: the same answers as from one that takes them whole, and what was sent."""

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
THETA = {"a": RNG.standard_normal((BATCH, 3)), "radius": 1.0}
COTANGENTS = {"x": RNG.standard_normal((BATCH, 3)), "c1": RNG.standard_normal(BATCH), "objective": np.array(0.5)}
TANGENTS = {"a": RNG.standard_normal((BATCH, 3)), "radius": 0.5}
CLOSE = {"rtol": 1e-9, "atol": 1e-9}

Respond = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Wire(httpx.AsyncBaseTransport):
    """The application in this process; what was sent to it and how it answered; and what a test puts in between.

    Attributes:
        app: The application, which a test may exchange for another.
        seen: Method, last part of the path, and status of every request.
        bodies: What was sent.
        names: What requests were called.
        most: Requests that were in work at a time.
        between: Answers in place of the application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.seen: list[tuple[str, int]] = []
        self.bodies: list[dict[str, Any]] = []
        self.names: list[str | None] = []
        self.most = self._now = 0
        self.between: Callable[[httpx.Request, Respond], Awaitable[httpx.Response]] | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            answer = self._application if self.between is None else self._in_between
            response = await answer(request)
        finally:
            self._now -= 1
        self.seen.append((request.url.path.rpartition("/")[2], response.status_code))
        self.names.append(request.headers.get("X-Request-Id"))
        if request.headers.get("Content-Type") == safetensors.MEDIA_TYPE:
            self.bodies.append(safetensors.read(bytearray(request.content)))
        return response

    async def _application(self, request: httpx.Request) -> httpx.Response:
        return await httpx.ASGITransport(self.app).handle_async_request(request)

    async def _in_between(self, request: httpx.Request) -> httpx.Response:
        assert self.between is not None
        return await self.between(request, self._application)

    def count(self, step: str, status: int = 200) -> int:
        """How many requests of a kind were answered so."""
        return self.seen.count((step, status))

    def forget(self) -> None:
        """Begin to count anew."""
        self.seen.clear()
        self.bodies.clear()
        self.names.clear()


def limited(work: Callable[[AsyncClient, Problem, Wire], Awaitable[None]], **settings: Any) -> None:
    """Some work with the application under these limits, which the client has not asked for yet."""

    async def run() -> None:
        app = create_app(Settings(workers=0, **settings))
        wired = Wire(app)
        async with app.router.lifespan_context(app), AsyncClient("http://server", transport=wired, retry_s=5) as client:
            problem = await client.register(DOCUMENT)
            wired.forget()
            await work(client, problem, wired)

    asyncio.run(run())


@pytest.fixture(scope="module")
def whole(client: Client) -> tuple[SolveResult, VjpResult, JvpResult]:
    """What a server says that takes the batch in one request."""
    problem = client.register(DOCUMENT)
    return (
        client.solve(problem.id, THETA, duals=True),
        client.vjp(problem.id, COTANGENTS, THETA),
        client.jvp(problem.id, TANGENTS, THETA, duals=True),
    )


def same(ours: Any, theirs: Any) -> None:
    """Whether results are the same but for times, and what only one of them was asked for."""
    assert type(ours) is type(theirs)
    assert ours.status == theirs.status
    assert ours.details == theirs.details
    for part in ("variables", "duals", "gradients", "tangents"):
        for name, value in getattr(theirs, part, {}).items():
            assert getattr(ours, part)[name].shape == value.shape
            np.testing.assert_allclose(getattr(ours, part)[name], value, **CLOSE)
    if hasattr(theirs, "objective"):
        np.testing.assert_allclose(ours.objective, theirs.objective, **CLOSE)
    for account in {"residuals", "report"} & set(vars(theirs)):
        for name, value in vars(getattr(theirs, account)).items():
            assert np.shape(getattr(getattr(ours, account), name)) == np.shape(value)
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
def test_a_batch_beyond_a_limit_is_the_batch(limits: dict[str, int], parts: Container[int], whole: Any) -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        await client.capabilities()
        solved = await client.solve(problem.id, THETA, duals=True)
        pulled = await client.vjp(problem.id, COTANGENTS, THETA)
        pushed = await client.jvp(problem.id, TANGENTS, THETA, duals=True)
        for ours, theirs in zip((solved, pulled, pushed), whole, strict=True):
            same(ours, theirs)
        assert {status for _, status in wired.seen} == {200}
        for step in ("solve", "vjp", "jvp"):
            assert wired.count(step) in parts
        assert wired.count("capabilities") == 1
        assert wired.most == 2

    limited(work, **limits)


def test_what_a_server_takes_is_sent_as_it_is() -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        for _ in range(2):
            await client.solve(problem.id, THETA)
            await client.capabilities()
        assert [step for step, _ in wired.seen] == ["solve", "capabilities"] * 2

    limited(work)


def test_limits_are_asked_for_once_and_again_when_they_have_changed(whole: Any) -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        same(await client.solve(problem.id, THETA, duals=True), whole[0])  # small, so the limits were not asked for
        assert wired.seen == [("solve", 422), ("capabilities", 200), *[("solve", 200)] * 3]
        wired.forget()
        solved = await client.solve(problem.id, THETA, duals=True, state=True)
        same(solved, whole[0])
        assert wired.seen == [("solve", 200)] * 3

        smaller = create_app(Settings(workers=0, max_batch=3))
        async with smaller.router.lifespan_context(smaller):
            wired.app = smaller
            await client.register(DOCUMENT)
            wired.forget()
            same(await client.vjp(problem.id, COTANGENTS, THETA), whole[1])
            assert 1 <= wired.count("vjp", 422) <= 2  # the two that were sent
            assert wired.count("capabilities") == 1
            assert wired.count("vjp") == 7
            wired.forget()
            same(await client.vjp(problem.id, COTANGENTS, THETA, state=solved.state), whole[1])  # of too large parts
            assert wired.seen == [("vjp", 200)] * 7

    limited(work, max_batch=8)


def test_large_batches_ask_before_they_send() -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        many = {"a": np.tile(THETA["a"], (15, 1)), "radius": 1.0}
        assert (await client.solve(problem.id, many)).meta["batch"] == 300
        assert wired.seen == [("capabilities", 200), *[("solve", 200)] * 3]
        wired.forget()
        await client.with_options(retry_s=0).solve(problem.id, many)
        assert wired.seen == [("solve", 200)] * 3

    limited(work, max_batch=100)


def test_shapes_are_asked_for_where_another_client_registered() -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        other = AsyncClient("http://server", transport=wired)
        assert (await other.solve(problem.id, THETA)).meta["batch"] == BATCH
        assert wired.seen[:3] == [("solve", 422), ("capabilities", 200), (problem.id, 200)]
        wired.forget()
        assert (await other.solve(problem.id, THETA)).meta["batch"] == BATCH
        assert wired.seen == [("solve", 200)] * 3

    limited(work, max_batch=8)


def test_an_error_that_is_not_of_size_costs_no_more_than_a_look() -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        for parameters in ({"a": THETA["a"]}, THETA | {"b": 1.0}, {"a": THETA["a"], "radius": np.ones(BATCH - 1)}):
            wired.forget()
            with pytest.raises(InvalidError):
                await client.solve(problem.id, parameters)
            assert wired.count("solve", 422) == 1
            assert len(wired.seen) <= 2
        wired.forget()
        with pytest.raises(InvalidError):
            await client.solve(problem.id, {"a": np.full(3, np.nan), "radius": np.ones(())})
        with pytest.raises(InvalidError):
            await client.solve(problem.id, THETA, solver="none-such")
        assert len(wired.seen) == 3  # what is no batch is looked at for its three entries, what is no array is not

    limited(work)


def test_elements_keep_their_places() -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        radius = np.ones(BATCH)
        radius[3], radius[13] = np.nan, 0.1
        result = await client.solve(problem.id, {"a": THETA["a"], "radius": radius})
        assert [i for i, word in enumerate(result.status) if word != "optimal"] == [3, 13]
        assert result.status[3] == "invalid"
        assert list(result.details) == [3]
        radius[3], radius[16] = 1.0, np.nan
        pulled = await client.vjp(problem.id, COTANGENTS, {"a": THETA["a"], "radius": radius})
        assert list(pulled.details) == [16]
        assert pulled.gradients["radius"].shape == (BATCH,)
        assert pulled.gradients["radius"][16] == 0

    limited(work, max_batch=8)


def test_a_batch_has_one_name_in_the_servers_log() -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        await client.capabilities()
        wired.forget()
        result = await client.solve(problem.id, THETA)
        assert wired.names == [result.request_id] * 3
        named = client.with_options(headers={"x-request-id": "night-7"})
        assert (await named.solve(problem.id, THETA)).request_id == "night-7"
        assert wired.names[3:] == ["night-7"] * 3

    limited(work, max_batch=8)


@pytest.mark.parametrize("form", ["handle", "portable"])
def test_derivatives_begin_with_the_states_of_parts(form: str, whole: Any) -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        solved = await client.solve(problem.id, THETA, state=form == "handle", portable=form == "portable")
        state = solved.state if form == "handle" else solved.portable
        assert isinstance(state, SplitState)
        assert state.rows == (6, 7, 7)
        start = {"state": state} if form == "handle" else {"portable": state, "parameters": THETA}
        wired.forget()
        same(await client.vjp(problem.id, COTANGENTS, **start), whole[1])
        same(await client.jvp(problem.id, TANGENTS, **start, duals=True), whole[2])
        assert wired.seen == [("vjp", 200)] * 3 + [("jvp", 200)] * 3
        assert all("state" in body for body in wired.bodies)
        assert all(("parameters" in body) == (form == "portable") for body in wired.bodies)

    limited(work, max_batch=8)


def test_states_that_are_gone_are_replaced_part_by_part(whole: Any) -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        solved = await client.solve(problem.id, THETA, state=True)
        wired.forget()
        with pytest.raises(GoneError, match=r"in the part of elements \d+ to \d+ of 20"):
            await client.vjp(problem.id, COTANGENTS, state=solved.state)
        wired.forget()
        same(await client.vjp(problem.id, COTANGENTS, THETA, state=solved.state), whole[1])
        assert wired.count("vjp", 410) == 1
        assert wired.count("vjp") == 3
        assert sum("parameters" in body for body in wired.bodies) == 1

    limited(work, max_batch=8, state_bytes=17_000)


def test_a_state_that_a_server_cannot_keep_is_none() -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        solved = await client.solve(problem.id, THETA, state=True, portable=True)
        assert solved.state is None
        assert isinstance(solved.portable, SplitState)

    limited(work, max_batch=8, state_bytes=5_000)


def test_states_of_another_batch_are_refused_before_anything_is_sent() -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        solved = await client.solve(problem.id, THETA, state=True, portable=True)
        fewer = await client.solve(problem.id, {"a": THETA["a"][:9], "radius": 1.0}, portable=True)
        wired.forget()
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
        assert wired.seen == []

    limited(work, max_batch=8)


def test_one_element_stands_for_a_batch_of_directions() -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        theta = {"a": THETA["a"][0], "radius": 1.0}
        solved = await client.solve(problem.id, theta, state=True, portable=True)
        await client.capabilities()
        wired.forget()
        plain = await client.vjp(problem.id, COTANGENTS, theta)
        for start in ({"state": solved.state}, {"portable": solved.portable, "parameters": theta}):
            result = await client.vjp(problem.id, COTANGENTS, **start)
            np.testing.assert_allclose(result.gradients["a"], plain.gradients["a"], **CLOSE)
            assert result.gradients["a"].shape == (3,)
        assert wired.seen == [("vjp", 200)] * 9
        moved = await client.jvp(problem.id, {"a": TANGENTS["a"]}, state=solved.state)
        assert moved.tangents["x"].shape == (BATCH, 3)

    limited(work, max_batch=8)


def test_a_state_that_cannot_be_cut_is_left(whole: Any) -> None:
    """A handle of the whole batch, from a server that took more than this one does now."""

    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        await client.capabilities()
        wired.forget()
        same(await client.vjp(problem.id, COTANGENTS, THETA, state="s_of_the_whole"), whole[1])
        assert wired.seen == [("vjp", 200)] * 3

    limited(work, max_batch=8)


def test_derivatives_of_what_is_kept_fit_whatever_is_left_of_it() -> None:
    """Parts of a solve are so large that its cotangents, its parameters and its state go into one request."""

    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        await client.capabilities()
        solved = await client.solve(problem.id, THETA, state=True, portable=True)
        wired.forget()
        cotangents = {"x": np.ones((BATCH, 3)), "c0": np.ones(BATCH), "c1": np.ones(BATCH), "objective": np.ones(BATCH)}
        await client.vjp(problem.id, cotangents, THETA, portable=solved.portable)
        await client.vjp(problem.id, cotangents, THETA, state=solved.state)
        await client.vjp(
            problem.id, cotangents, THETA, state=SplitState(solved.state.rows, ("s_gone",) * len(solved.state.rows))
        )
        parts = len(solved.state.rows)
        assert parts > 2
        assert wired.count("vjp") == 3 * parts
        assert wired.count("vjp", 410) == parts
        assert len(wired.seen) == 4 * parts

    limited(work, max_body_bytes=2_000)


def test_a_failing_part_is_one_error_and_the_others_are_given_up() -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        cotangents = np.ones((BATCH, 3))
        cotangents[1] = np.inf
        await client.capabilities()
        wired.forget()
        given_up = 0

        async def only_the_first(request: httpx.Request, respond: Respond) -> httpx.Response:
            nonlocal given_up
            if not np.isinf(safetensors.read(bytearray(request.content))["cotangents"]["x"]).any():
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    given_up += 1
                    raise
            return await respond(request)

        wired.between = only_the_first
        with pytest.raises(
            InvalidError, match=r"in the part of elements 0 to 1 of 20: .*element 1 is not finite"
        ) as caught:
            await client.vjp(problem.id, {"x": cotangents}, THETA)
        assert caught.value.errors[0].pointer == "/cotangents/x"
        assert wired.seen == [("vjp", 422)]
        assert given_up == 1

    limited(work, max_batch=2)


def test_every_part_is_sent_again_on_its_own(whole: Any) -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        await client.capabilities()
        failures = iter([True, False, True, False, False, True])

        async def shaky(request: httpx.Request, respond: Respond) -> httpx.Response:
            if next(failures, False):
                return httpx.Response(503, json={}, headers={"Retry-After": "0"})
            return await respond(request)

        wired.between = shaky
        wired.forget()
        same(await client.solve(problem.id, THETA, duals=True), whole[0])
        assert wired.count("solve", 503) == 3
        assert wired.count("solve") == 5
        wired.between = None

    limited(work, max_batch=4)


def test_one_element_that_is_too_large_is_the_servers_error() -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        for _ in range(2):
            wired.forget()
            with pytest.raises(TooLargeError, match=r"in the part of elements (0 to 0|1 to 1) of 20"):
                await client.solve(problem.id, THETA)
        assert 1 <= wired.count("solve", 413) <= 2
        assert len(wired.seen) <= 3  # the limits are asked for once more

    limited(work, max_body_bytes=250)


def test_batches_that_differ_are_said_to_differ_where_they_are_too_large_to_be_sent() -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        await client.capabilities()
        wired.forget()
        with pytest.raises(ShapeError, match="parameter 'a' has 200, parameter 'radius' has 100"):
            await client.solve(problem.id, {"a": np.ones((200, 3)), "radius": np.ones(100)})
        assert wired.seen == []

    limited(work, max_body_bytes=4_000)


def test_the_form_without_binary_bodies_is_longer(whole: Any) -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        async def plain(request: httpx.Request, respond: Respond) -> httpx.Response:
            refused = request.headers.get("Content-Type") == safetensors.MEDIA_TYPE
            return httpx.Response(415, json={}) if refused else await respond(request)

        wired.between = plain
        await client.capabilities()
        same(await client.solve(problem.id, THETA, duals=True), whole[0])
        wired.forget()
        same(await client.vjp(problem.id, COTANGENTS, THETA), whole[1])
        assert {status for _, status in wired.seen} == {200}

    limited(work, max_body_bytes=1_100)


def test_progress_counts_elements(capsys: pytest.CaptureFixture[str]) -> None:
    async def work(client: AsyncClient, problem: Problem, wired: Wire) -> None:
        await client.solve(problem.id, THETA, progress=True)
        await client.solve(problem.id, {"a": np.ones(3), "radius": 1.0}, progress=True)

    limited(work, max_batch=8)
    shown = capsys.readouterr().err
    assert "solve" in shown
    assert f"0/{BATCH}" in shown
    assert f"{BATCH}/{BATCH}" in shown
    assert "1/1" in shown


def test_parts_are_within_limits_and_are_the_whole() -> None:
    """Of any shapes: every body is at most as large as the limit, or of one element, and large ones are not wasted."""
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
        assert [part.rows.start for part in parts[1:]] == [part.rows.stop for part in parts[:-1]]
        assert (parts[0].rows.start, parts[-1].rows.stop) == (0, batch)
        for part in parts:
            content = part.request(form).content
            assert content is not None
            assert len(content) <= part.size_bytes(form)
            if form == "binary":
                assert len(content) == part.size_bytes(form)
            assert len(part.rows) == 1 or (len(content) <= limits.body_bytes and len(part.rows) <= limits.batch)
        for name, value in values.items():
            pieces = [part.body["parameters"][name] for part in parts]
            joined = np.concatenate(pieces) if value.ndim > len(shapes[name]) else pieces[0]
            np.testing.assert_array_equal(joined, value)


# --- the synchronous client, on a server of its own -------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Iterator[Client]:
    with serving("--workers", "0", max_batch="8") as (url, _), Client(url) as client:
        yield client


def test_the_synchronous_client_cuts_too(small: Client, whole: Any, capsys: pytest.CaptureFixture[str]) -> None:
    problem = small.register(DOCUMENT)
    solved = small.solve(problem.id, THETA, duals=True, state=True, portable=True, progress=True)
    same(solved, whole[0])
    assert f"{BATCH}/{BATCH}" in capsys.readouterr().err
    same(small.vjp(problem.id, COTANGENTS, state=solved.state), whole[1])
    same(small.vjp(problem.id, COTANGENTS, THETA, portable=solved.portable), whole[1])
    same(small.jvp(problem.id, TANGENTS, THETA, duals=True), whole[2])
    same(small.run(wire.jvp(problem.id, TANGENTS, THETA, state=solved.state, duals=True)), whole[2])


def test_the_synchronous_client_gives_up_beside_an_error(small: Client) -> None:
    problem = small.register(DOCUMENT)
    cotangents = np.ones((BATCH, 3))
    cotangents[1] = np.inf
    with pytest.raises(InvalidError, match=r"in the part of elements 0 to 5 of 20: .*element 1 is not finite"):
        small.vjp(problem.id, {"x": cotangents}, THETA)


def test_what_failed_is_not_waited_for_by_others() -> None:
    """Sixty parts: one is refused for ever, the others would be sent again for minutes."""
    seen: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("capabilities"):
            told = {"versions": {}, "keys_required": False, "workers": 1, "limits": {"max_batch": 10}}
            return httpx.Response(200, json=told | dict.fromkeys(("solvers", "functions", "documents"), ()))
        if request.method == "GET":
            leaves = {"parameters": {"a": {"shape": []}}, "variables": {}, "duals": {}}
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


def test_a_remote_layer_has_no_largest_batch(small: Client, client: Client) -> None:
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


def test_more_bytes_and_more_elements_than_the_defaults_take(client: Client) -> None:
    """24 MB of parameters, and 5,000 elements."""
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
