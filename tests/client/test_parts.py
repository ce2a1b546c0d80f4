"""Batches larger than the limits of a server are split; results equal those of one request."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from typing import Any

import httpx
import numpy as np
import pytest

from convexlayer_client import (
    AsyncClient,
    InvalidError,
    Options,
    Problem,
    ShapeError,
    TooLargeError,
    safetensors,
    wire,
)
from convexlayer_client.parts import BatchSplitter, Limits
from convexlayer_server import Settings, create_app
from tests.client.example import DOCUMENT
from tests.client.splitting import (
    BATCH,
    COTANGENTS,
    TANGENTS,
    THETA,
    RecordingTransport,
    Respond,
    limited,
    same,
)


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
