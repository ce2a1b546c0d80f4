"""The pool of parser processes: order, limits, and processes that end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from convexlayer_server import Settings, create_app
from convexlayer_server.encodings.json_arrays import parse_json_arrays
from convexlayer_server.errors import MalformedError, TooManyError, UnavailableError
from convexlayer_server.http import parser_pool as parser_pool
from convexlayer_server.http.parser_pool import ParserPool
from convexlayer_server.shared.channel import receive, send

MODERATE = json.dumps({"a": list(range(1000))}).encode()
LARGE = MODERATE + b" " * 2**20

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[ParserPool]:
    parsers = ParserPool(Settings(**settings))
    try:
        yield parsers
    finally:
        await parsers.close()


def run(work: Callable[[ParserPool], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def run() -> None:
        async with opened(**settings) as parsers:
            await work(parsers)

    asyncio.run(run())


def processes(parsers: ParserPool) -> list[Any]:
    return [process._process for process in parsers._parsers]


async def started(parsers: ParserPool) -> tuple[Any, Any]:
    """Start both processes: the one for moderate bodies, and the one for all."""
    await asyncio.gather(parsers.parse("", parse_json_arrays, MODERATE), parsers.parse("", parse_json_arrays, LARGE))
    moderate, large = processes(parsers)
    return moderate, large


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a body is about to be sent to a process, which is no longer replaced before."""
    event = threading.Event()

    def tell_and_send(*arguments: Any) -> None:
        event.set()
        send(*arguments)

    monkeypatch.setattr(parser_pool, "send", tell_and_send)
    return event


def parsing(parsers: ParserPool, owner: str, body: bytes, done: list[str] | None = None) -> asyncio.Task[Any]:
    """A task that parses, and records when it has finished."""

    async def parse() -> Any:
        value = await parsers.parse(owner, parse_json_arrays, body)
        if done is not None:
            done.append(owner)
        return value

    return asyncio.create_task(parse())


def test_bodies_are_parsed_and_errors_returned() -> None:
    async def work(parsers: ParserPool) -> None:
        for body in (MODERATE, LARGE):
            np.testing.assert_array_equal((await parsers.parse("", parse_json_arrays, body))["a"], np.arange(1000))
            with pytest.raises(MalformedError, match=f"at byte {len(body)}"):
                await parsers.parse("", parse_json_arrays, body.replace(b"}", b" "))
            with pytest.raises(MalformedError, match="too deep"):
                await parsers.parse("", parse_json_arrays, b"[" * len(body))
        with pytest.raises(RuntimeError, match="TypeError"):
            await parsers.parse("", chr, MODERATE)

    run(work)


def test_a_process_ends_when_its_connection_closes() -> None:
    """So it does not survive a server that is killed."""
    connection, process = parser_pool._start_process()
    with connection:
        send(connection, (parse_json_arrays, MODERATE))
        values, error = receive(connection)
        assert error is None
        np.testing.assert_array_equal(values["a"], np.arange(1000))
        for function, body, kind, said in (
            (parse_json_arrays, b"{", MalformedError, "at byte"),
            (bytes, 2**50, MalformedError, "more memory than this server allows"),
            (chr, b"1", RuntimeError, "TypeError: .*\nTraceback"),
            (sys.exit, 3, MalformedError, "more memory than this server allows"),  # as a panic of Rust
        ):
            send(connection, (function, body))
            result, error = receive(connection)
            assert result is None
            assert type(error) is kind
            assert re.search(said, str(error))
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 5
    assert process.wait() == 0


def test_processes_start_when_needed_and_end_with_the_pool() -> None:
    async def run() -> None:
        async with opened(parsers=3) as parsers:
            assert processes(parsers) == [None] * 3
            for _ in range(3):
                await parsers.parse("", parse_json_arrays, MODERATE)
            assert [process is None for process in processes(parsers)] == [False, True, True]
            await asyncio.gather(*(parsers.parse("", parse_json_arrays, LARGE) for _ in range(2)))
            ended = processes(parsers)
            ended[1].send_signal(signal.SIGSTOP)
            ended[2].send_signal(signal.SIGSTOP)
            lost = [parsing(parsers, "", LARGE) for _ in range(4)]  # two are parsed, two wait
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*lost, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 4
        with pytest.raises(UnavailableError):
            await parsers.parse("", parse_json_arrays, LARGE)
        assert [process.poll() for process in ended] == [-signal.SIGKILL] * 3

    asyncio.run(run())


def test_moderate_bodies_do_not_wait_for_large_ones() -> None:
    async def work(parsers: ParserPool) -> None:
        _, large = await started(parsers)
        large.send_signal(signal.SIGSTOP)
        waiting = [parsing(parsers, "a", LARGE) for _ in range(5)]
        await asyncio.sleep(0)
        for _ in range(3):
            await parsers.parse("a", parse_json_arrays, MODERATE)
        assert not any(task.done() for task in waiting)
        large.send_signal(signal.SIGCONT)
        await asyncio.gather(*waiting)

    run(work)


def test_large_bodies_wait_for_at_most_one_moderate_body() -> None:
    async def work(parsers: ParserPool) -> None:
        pair = await started(parsers)
        for process in pair:
            process.send_signal(signal.SIGSTOP)
        done: list[str] = []
        tasks = [parsing(parsers, "moderate", MODERATE, done) for _ in range(4)]
        await asyncio.sleep(0)
        tasks.append(parsing(parsers, "large", LARGE, done))
        await asyncio.sleep(0)
        assert parsers.waiting == 3
        pair[1].send_signal(signal.SIGCONT)
        await tasks[-1]
        assert done == ["moderate", "large"]
        pair[0].send_signal(signal.SIGCONT)
        await asyncio.gather(*tasks)

    run(work)


@pytest.mark.parametrize("body", [MODERATE, LARGE])
def test_keys_are_served_in_turn(body: bytes) -> None:
    async def work(parsers: ParserPool) -> None:
        pair = await started(parsers)
        for process in pair:
            process.send_signal(signal.SIGSTOP)
        held = [parsing(parsers, "", MODERATE), parsing(parsers, "", LARGE)]
        done: list[str] = []
        tasks = [parsing(parsers, "a", body, done) for _ in range(4)]
        await asyncio.sleep(0)
        tasks += [parsing(parsers, "b", body, done) for _ in range(2)]
        await asyncio.sleep(0)
        pair[1].send_signal(signal.SIGCONT)
        await asyncio.gather(*tasks)
        assert done == ["a", "b", "a", "b", "a", "a"]
        pair[0].send_signal(signal.SIGCONT)
        await asyncio.gather(*held)

    run(work)


def test_cancelled_bodies_leave_the_queue() -> None:
    async def work(parsers: ParserPool) -> None:
        _, large = await started(parsers)
        large.send_signal(signal.SIGSTOP)
        done: list[str] = []
        first, second, third = (parsing(parsers, owner, LARGE, done) for owner in "abc")
        await asyncio.sleep(0)
        assert parsers.waiting == 2
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert parsers.waiting == 1
        first.cancel()  # it is being parsed, which continues
        await asyncio.gather(first, return_exceptions=True)
        large.send_signal(signal.SIGCONT)
        np.testing.assert_array_equal((await third)["a"], np.arange(1000))
        assert done == ["c"]
        assert processes(parsers)[1] is large

    run(work)


def test_a_process_that_ends_is_replaced(sent: threading.Event) -> None:
    async def work(parsers: ParserPool) -> None:
        before = await started(parsers)
        for process in before:  # while idle
            process.kill()
            process.wait()
        moderate, large = await started(parsers)
        assert moderate is not before[0]
        large.send_signal(signal.SIGSTOP)
        sent.clear()
        lost, waits = parsing(parsers, "a", LARGE), parsing(parsers, "b", LARGE)
        await asyncio.to_thread(sent.wait)
        large.kill()
        with pytest.raises(UnavailableError) as failed:
            await lost
        assert failed.value.retry_after_s is not None
        np.testing.assert_array_equal((await waits)["a"], np.arange(1000))
        assert processes(parsers)[0] is moderate
        assert processes(parsers)[1] is not large

    run(work)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of objects takes 25 times its size; whether Python or Rust cannot allocate depends on the machine."""
    monkeypatch.setattr(parser_pool, "_MAX_MEMORY_BYTES", 700 * 2**20)

    async def work(parsers: ParserPool) -> None:
        with pytest.raises(MalformedError, match="more memory than this server allows"):
            await parsers.parse("", parse_json_arrays, b"[" + b"{}," * 8_000_000 + b"{}]")
        assert len((await parsers.parse("", parse_json_arrays, LARGE))["a"]) == 1000

    run(work)


def test_an_abort_counts_as_too_large(sent: threading.Event) -> None:
    async def work(parsers: ParserPool) -> None:
        _, large = await started(parsers)
        large.send_signal(signal.SIGSTOP)
        sent.clear()
        task = parsing(parsers, "", LARGE)
        await asyncio.to_thread(sent.wait)
        large.send_signal(signal.SIGABRT)
        large.send_signal(signal.SIGCONT)
        with pytest.raises(MalformedError, match="more memory than this server allows"):
            await task
        assert len((await parsers.parse("", parse_json_arrays, LARGE))["a"]) == 1000

    run(work)


def test_the_queue_is_bounded() -> None:
    async def work(parsers: ParserPool) -> None:
        _, large = await started(parsers)
        large.send_signal(signal.SIGSTOP)
        tasks = [parsing(parsers, "a", LARGE) for _ in range(4)]  # one is parsed, three wait
        await asyncio.sleep(0)
        with pytest.raises(TooManyError, match="3 bodies wait"):
            await parsers.parse("a", parse_json_arrays, LARGE)
        tasks.append(parsing(parsers, "b", LARGE))
        with pytest.raises(TooManyError):
            await tasks[3]  # the last of the key with the most
        assert parsers.waiting == 3
        large.send_signal(signal.SIGCONT)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(outcome, TooManyError) for outcome in outcomes] == [False, False, False, True, False]

    run(work, max_waiting=3)


def test_waiting_is_limited() -> None:
    async def work(parsers: ParserPool) -> None:
        _, large = await started(parsers)
        large.send_signal(signal.SIGSTOP)
        first = parsing(parsers, "a", LARGE)
        await asyncio.sleep(0)
        with pytest.raises(TooManyError):
            await parsers.parse("b", parse_json_arrays, LARGE)
        assert parsers.waiting == 0
        assert not first.done()  # it no longer waits
        large.send_signal(signal.SIGCONT)
        await first

    run(work, max_wait_s=0.01)


def test_others_are_served_while_a_large_body_is_parsed() -> None:
    """The process that parses it is stopped first."""
    text = json.dumps({"parameters": {"a": np.random.default_rng(2).standard_normal((1000, 400)).tolist()}})
    app = create_app(Settings(workers=0))

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        http = httpx.AsyncClient(transport=transport, base_url="http://server")
        async with app.router.lifespan_context(app), http as client:

            async def parse() -> int:
                headers = {"Content-Type": "application/json"}
                path = "/v1/problems/p_unknown/solve"
                return (await client.post(path, content=text, headers=headers)).status_code

            assert await parse() == 404  # starts the process
            process = processes(app.state.service.parsers)[1]
            process.send_signal(signal.SIGSTOP)
            parsing = asyncio.create_task(parse())
            try:
                for _ in range(20):
                    assert (await client.get("/healthz")).is_success
                assert not parsing.done()
            finally:
                process.send_signal(signal.SIGCONT)
            assert await parsing == 404

    asyncio.run(run())
