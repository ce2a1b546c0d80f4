"""What is held for each key: counted, bounded, and released whatever becomes of the request."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack

import pytest
from starlette.types import Message

from convexlayer_server import gate
from convexlayer_server.errors import TooManyError
from convexlayer_server.keys import new_key, new_token
from convexlayer_server.memory import HeldMemory, return_to_system
from convexlayer_server.settings import Settings
from convexlayer_server.store import Store

from .conftest import DOCUMENT, VALUES
from .running import LargeEngine, WaitingEngine, eventually, running

MIB = 2**20
SOLVE = json.dumps({"parameters": VALUES}).encode()
BINARY = "application/vnd.convexlayer+safetensors"


def memory(most: int = 1000) -> HeldMemory:
    return HeldMemory(Settings(max_held_bytes=most))


def test_what_is_held_ends_with_the_request() -> None:
    held = memory()
    with held.opened("a") as first, held.opened("a") as second:
        first.reserve("body", 80)
        second.note("answer", 160)
        assert (held.total, held.of("a")) == (300, 300)  # a quarter more than the bytes
        first.reserve("body", 40)
        assert held.total == 250
        first.note("body", 0)
        first.reserve("result", 80)
        assert held.total == 300
    assert (held.total, held.of("a")) == (0, 0)


def test_nobody_holds_more_than_there_is() -> None:
    held = memory()
    with held.opened("a") as first, held.opened("a") as second:
        first.reserve("body", 800)
        with pytest.raises(TooManyError) as error:
            second.reserve("body", 4)
        assert error.value.retry_after_s
        assert held.total == 1000
        second.note("answer", 80)  # what is there, is there
        assert held.total == 1100
        first.reserve("body", 400)
        second.reserve("body", 4)


def test_everybody_may_hold_a_share() -> None:
    held = memory()
    with held.opened("greedy") as greedy, held.opened("modest") as modest, held.opened("late") as late:
        greedy.reserve("body", 800)
        modest.reserve("body", 400)  # half of it
        with pytest.raises(TooManyError):
            modest.reserve("body", 404)
        late.reserve("body", 264)  # a third
        with pytest.raises(TooManyError):
            late.reserve("body", 272)
        with pytest.raises(TooManyError):
            greedy.reserve("arrays", 4)
        greedy.note("body", 100)
        modest.reserve("body", 404)


def test_a_job_holds_what_its_request_did() -> None:
    async def run() -> list[int]:
        held, go_on = memory(), asyncio.Event()
        totals = []

        async def job() -> None:
            await go_on.wait()

        with held.opened("a") as request:
            request.reserve("arrays", 80)
            task = asyncio.create_task(job())
            request.until(task)
            request.note("answer", 40)
            totals.append(held.total)
        totals.append(held.total)
        go_on.set()
        await task
        await asyncio.sleep(0)
        totals.append(held.total)
        with held.opened("a") as request:
            request.reserve("arrays", 80)
            task = asyncio.create_task(job())
            request.until(task)
        task.cancel()  # before it has begun
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
        return [*totals, held.total]

    assert asyncio.run(run()) == [150, 100, 0, 0]


def test_much_less_is_held_than_was() -> None:
    held = HeldMemory(Settings())
    with held.opened("a") as request:
        request.reserve("body", 100 * MIB)
        assert not held.shrank()
        request.note("body", 80 * MIB)
        assert not held.shrank()
        request.note("body", 40 * MIB)
        assert held.shrank()
        assert not held.shrank()
    assert not held.shrank()
    return_to_system()


def test_stalled_uploads_are_bounded_and_released() -> None:
    with running(max_held_bytes=8 * MIB, body_pause_s=0.5) as server, ExitStack() as stack:
        wires = [stack.enter_context(server.wire()) for _ in range(16)]
        for wire in wires:
            wire.request("POST", "/v1/problems", b" " * MIB, length=2 * MIB)
        answers = [wire.answer() for wire in wires]
        found = [(answer.status, answer.slug, answer.headers.get("retry-after")) for answer in answers]
        # Six of a MiB and a quarter have room; one more is refused as it comes, which makes room for others.
        assert found.count((408, "timeout", None)) == 6
        assert found.count((429, "too-many", "1")) == 10
        eventually(lambda: server.service.memory.total == 0)
        assert server.measured("convexlayer_held_bytes") == 0


def test_results_are_held_until_they_are_sent() -> None:
    with running(LargeEngine(16 * MIB)) as server:
        path = f"{server.register(DOCUMENT)}/solve"
        with server.wire() as wire:
            assert wire.request("POST", path, SOLVE, Accept=BINARY).begin() == 200
            assert server.service.memory.of("") >= 16 * MIB
        eventually(lambda: server.service.memory.total == 0)
        with server.wire() as wire:
            assert len(wire.request("POST", path, SOLVE, Accept=BINARY).answer().body) > 16 * MIB
        eventually(lambda: server.service.memory.total == 0)


def test_room_for_an_answer_is_had_before_it_is_computed() -> None:
    document = {
        "kind": "expression",
        "parameters": {"c": {}},
        "variables": {"x": {"shape": [1000]}},
        "minimize": "sum_squares(x - c)",
    }
    engine = WaitingEngine()
    with running(engine, max_held_bytes=MIB) as server:
        path = f"{server.register(document)}/solve"
        answer = server.ask("POST", path, {"parameters": {"c": [1.0] * 200}})
        assert (answer.status, answer.slug) == (429, "too-many")
        vjp = {"parameters": {"c": [1.0] * 200}, "cotangents": {"x": [0.0] * 1000}}
        with server.wire() as wire:
            wire.request("POST", path.replace("solve", "vjp"), json.dumps(vjp).encode())  # whose answer is small
            eventually(lambda: engine.begun == 1)
            assert server.service.memory.total > 0


def test_a_jobs_answer_is_held_while_it_is_sent() -> None:
    with running(LargeEngine(16 * MIB), max_held_bytes=50 * MIB) as server, ExitStack() as stack:
        accepted = server.ask(
            "POST", f"{server.register(DOCUMENT)}/solve", {"parameters": VALUES}, Prefer="respond-async"
        )
        job = accepted.headers["location"]
        eventually(lambda: json.loads(server.ask("GET", job).body)["status"] == "done")
        wires = [stack.enter_context(server.wire()) for _ in range(4)]
        assert [wire.request("GET", f"{job}/result", Accept=BINARY).begin() for wire in wires] == [200, 200, 429, 429]
        assert server.ask("DELETE", job).status == 204
        assert server.service.memory.total >= 40 * MIB  # though the job is forgotten


def test_large_bodies_are_sent_in_pieces() -> None:
    async def run() -> None:
        held, body = memory(10 * MIB), bytes(range(256)) * 4096
        sent: list[Message] = []
        taken: list[int] = []

        async def send(message: Message) -> None:
            sent.append(message)
            taken.append(held.total)

        with held.opened("a") as request:
            send_in_pieces = gate._in_pieces(send, request)
            await send_in_pieces({"type": "http.response.start", "status": 200, "headers": []})
            await send_in_pieces({"type": "http.response.body", "body": body})
            assert held.total == 0
        assert b"".join(message["body"] for message in sent[1:]) == body
        assert [message["more_body"] for message in sent[1:]] == [True, True, True, False]
        assert taken == [0, *[MIB * 5 // 4] * 4]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (SOLVE, 200),
        (b"{", 400),
        (b"{}", 422),
        (json.dumps({"parameters": VALUES | {"lam": [[0.0]]}}).encode(), 422),
        (b" " * (2 * MIB), 413),
    ],
)
def test_nothing_is_held_after_an_answer(body: bytes, status: int) -> None:
    with running(max_body_bytes=MIB) as server:
        path = server.register(DOCUMENT)
        with server.wire() as wire:
            assert wire.request("POST", f"{path}/solve", body).answer().status == status
        eventually(lambda: server.service.memory.total == 0)


def test_a_key_has_its_share_whatever_another_holds() -> None:
    settings = Settings(workers=0)
    store = Store(settings)
    tokens = [new_token() for _ in range(2)]
    for token in tokens:
        store.add_key(new_key("someone", token))
    greedy, modest = ({"Authorization": f"Bearer {token}"} for token in tokens)
    with running(store=store, max_held_bytes=4 * MIB) as server, ExitStack() as stack:
        for _ in range(3):
            wire = stack.enter_context(server.wire())
            wire.request("POST", "/v1/problems", b" " * MIB, length=2 * MIB, **greedy)
        eventually(lambda: server.service.memory.total == 3 * MIB * 5 // 4)
        assert server.ask("POST", "/v1/problems", {"kind": " " * MIB}, **greedy).status == 429
        assert server.ask("POST", "/v1/problems", {"kind": " " * MIB}, **modest).status == 422
        assert server.ask("POST", "/v1/problems", DOCUMENT, **modest).status == 201
