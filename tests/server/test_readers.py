"""The processes that read large bodies: who is read when, and what becomes of those whose process ends."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from convexlayer_server import Settings, create_app
from convexlayer_server.encoding import Readers, packed
from convexlayer_server.encoding import readers as readers_module
from convexlayer_server.errors import MalformedError, TooManyError, UnavailableError

MODERATE = json.dumps({"a": list(range(1000))}).encode()
LARGE = MODERATE + b" " * 2**20

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[Readers]:
    readers = Readers(Settings(**settings))
    try:
        yield readers
    finally:
        await readers.close()


def run(work: Callable[[Readers], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def run() -> None:
        async with opened(**settings) as readers:
            await work(readers)

    asyncio.run(run())


def processes(readers: Readers) -> list[Any]:
    return [process._process for process in readers._processes]


async def started(readers: Readers) -> tuple[Any, Any]:
    """The process for bodies of moderate size, and the one for all, each after its first."""
    await asyncio.gather(readers.read("", packed, MODERATE), readers.read("", packed, LARGE))
    moderate, large = processes(readers)
    return moderate, large


def reading(readers: Readers, owner: str, body: bytes, done: list[str] | None = None) -> asyncio.Task[Any]:
    """A task that reads, and tells when it has."""

    async def read() -> Any:
        value = await readers.read(owner, packed, body)
        if done is not None:
            done.append(owner)
        return value

    return asyncio.create_task(read())


def test_bodies_are_read_and_errors_come_back() -> None:
    async def work(readers: Readers) -> None:
        for body in (MODERATE, LARGE):
            np.testing.assert_array_equal((await readers.read("", packed, body))["a"], np.arange(1000))
            with pytest.raises(MalformedError, match=f"at byte {len(body)}"):
                await readers.read("", packed, body.replace(b"}", b" "))
            with pytest.raises(MalformedError, match="too deep"):
                await readers.read("", packed, b"[" * len(body))
        with pytest.raises(RuntimeError, match="TypeError"):
            await readers.read("", chr, MODERATE)

    run(work)


def test_processes_are_started_when_they_are_needed_and_ended() -> None:
    async def run() -> None:
        async with opened(readers=3) as readers:
            assert processes(readers) == [None] * 3
            for _ in range(3):
                await readers.read("", packed, MODERATE)
            assert [process is None for process in processes(readers)] == [False, True, True]
            await asyncio.gather(*(readers.read("", packed, LARGE) for _ in range(2)))
            ended = processes(readers)
            ended[1].send_signal(signal.SIGSTOP)
            ended[2].send_signal(signal.SIGSTOP)
            lost = [reading(readers, "", LARGE) for _ in range(4)]  # two are read, two wait
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*lost, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 4
        with pytest.raises(UnavailableError):
            await readers.read("", packed, LARGE)
        assert [process.poll() for process in ended] == [-signal.SIGKILL] * 3

    asyncio.run(run())


def test_bodies_of_moderate_size_do_not_wait_for_large_ones() -> None:
    async def work(readers: Readers) -> None:
        _, large = await started(readers)
        large.send_signal(signal.SIGSTOP)
        waiting = [reading(readers, "a", LARGE) for _ in range(5)]
        await asyncio.sleep(0)
        for _ in range(3):
            await readers.read("a", packed, MODERATE)
        assert not any(task.done() for task in waiting)
        large.send_signal(signal.SIGCONT)
        await asyncio.gather(*waiting)

    run(work)


def test_large_bodies_wait_for_one_of_moderate_size_at_most() -> None:
    async def work(readers: Readers) -> None:
        pair = await started(readers)
        for process in pair:
            process.send_signal(signal.SIGSTOP)
        done: list[str] = []
        tasks = [reading(readers, "moderate", MODERATE, done) for _ in range(4)]
        await asyncio.sleep(0)
        tasks.append(reading(readers, "large", LARGE, done))
        await asyncio.sleep(0)
        assert readers.waiting == 3
        pair[1].send_signal(signal.SIGCONT)
        await tasks[-1]
        assert done == ["moderate", "large"]
        pair[0].send_signal(signal.SIGCONT)
        await asyncio.gather(*tasks)

    run(work)


@pytest.mark.parametrize("body", [MODERATE, LARGE])
def test_each_key_has_its_turn(body: bytes) -> None:
    async def work(readers: Readers) -> None:
        pair = await started(readers)
        for process in pair:
            process.send_signal(signal.SIGSTOP)
        held = [reading(readers, "", MODERATE), reading(readers, "", LARGE)]
        done: list[str] = []
        tasks = [reading(readers, "a", body, done) for _ in range(4)]
        await asyncio.sleep(0)
        tasks += [reading(readers, "b", body, done) for _ in range(2)]
        await asyncio.sleep(0)
        pair[1].send_signal(signal.SIGCONT)
        await asyncio.gather(*tasks)
        assert done == ["a", "b", "a", "b", "a", "a"]
        pair[0].send_signal(signal.SIGCONT)
        await asyncio.gather(*held)

    run(work)


def test_a_caller_who_leaves_takes_its_body_out_of_the_line() -> None:
    async def work(readers: Readers) -> None:
        _, large = await started(readers)
        large.send_signal(signal.SIGSTOP)
        done: list[str] = []
        first, second, third = (reading(readers, owner, LARGE, done) for owner in "abc")
        await asyncio.sleep(0)
        assert readers.waiting == 2
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert readers.waiting == 1
        first.cancel()  # it is being read, which goes on
        await asyncio.gather(first, return_exceptions=True)
        large.send_signal(signal.SIGCONT)
        np.testing.assert_array_equal((await third)["a"], np.arange(1000))
        assert done == ["c"]
        assert processes(readers)[1] is large

    run(work)


def test_a_process_that_ends_is_replaced() -> None:
    async def work(readers: Readers) -> None:
        before = await started(readers)
        for process in before:  # while nothing is read: nobody notices
            process.kill()
            process.wait()
        moderate, large = await started(readers)
        assert moderate is not before[0]
        large.send_signal(signal.SIGSTOP)
        lost, waits = reading(readers, "a", LARGE), reading(readers, "b", LARGE)
        await asyncio.sleep(0)
        large.kill()
        with pytest.raises(UnavailableError) as failed:
            await lost
        assert failed.value.retry_after_s is not None
        np.testing.assert_array_equal((await waits)["a"], np.arange(1000))
        assert processes(readers)[0] is moderate
        assert processes(readers)[1] is not large

    run(work)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of objects takes 25 times as much; the process that was not given it goes on."""
    monkeypatch.setattr(readers_module, "_MAX_MEMORY_BYTES", 700 * 2**20)

    async def work(readers: Readers) -> None:
        _, large = await started(readers)
        with pytest.raises(MalformedError, match="more memory than this server gives"):
            await readers.read("", packed, b"[" + b"{}," * 8_000_000 + b"{}]")
        assert len((await readers.read("", packed, LARGE))["a"]) == 1000
        assert processes(readers)[1] is large

    run(work)


def test_no_more_wait_than_there_may() -> None:
    async def work(readers: Readers) -> None:
        _, large = await started(readers)
        large.send_signal(signal.SIGSTOP)
        tasks = [reading(readers, "a", LARGE) for _ in range(4)]  # one is read, three wait
        await asyncio.sleep(0)
        with pytest.raises(TooManyError, match="3 bodies wait"):
            await readers.read("a", packed, LARGE)
        tasks.append(reading(readers, "b", LARGE))
        with pytest.raises(TooManyError):
            await tasks[3]  # the last of the key with most
        assert readers.waiting == 3
        large.send_signal(signal.SIGCONT)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(outcome, TooManyError) for outcome in outcomes] == [False, False, False, True, False]

    run(work, max_waiting=3)


def test_a_body_that_waits_for_too_long_gives_up() -> None:
    async def work(readers: Readers) -> None:
        _, large = await started(readers)
        large.send_signal(signal.SIGSTOP)
        first = reading(readers, "a", LARGE)
        await asyncio.sleep(0)
        with pytest.raises(TooManyError):
            await readers.read("b", packed, LARGE)
        assert readers.waiting == 0
        assert not first.done()  # what is being read does not wait any more
        large.send_signal(signal.SIGCONT)
        await first

    run(work, max_wait_s=0.01)


def test_others_are_served_while_a_large_body_is_read() -> None:
    """For as long as it takes: the process that reads it is stopped meanwhile."""
    text = json.dumps({"parameters": {"a": np.random.default_rng(2).standard_normal((1000, 400)).tolist()}})
    app = create_app(Settings(workers=0))

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        http = httpx.AsyncClient(transport=transport, base_url="http://server")
        async with app.router.lifespan_context(app), http as client:

            async def read() -> int:
                headers = {"Content-Type": "application/json"}
                path = "/v1/problems/p_unknown/solve"
                return (await client.post(path, content=text, headers=headers)).status_code

            assert await read() == 404  # which starts the process
            process = processes(app.state.service.readers)[1]
            process.send_signal(signal.SIGSTOP)
            reading = asyncio.create_task(read())
            try:
                for _ in range(20):
                    assert (await client.get("/healthz")).is_success
                assert not reading.done()
            finally:
                process.send_signal(signal.SIGCONT)
            assert await reading == 404

    asyncio.run(run())
