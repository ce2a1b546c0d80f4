"""The memory budget: bytes are counted, bounded, and released with each request."""

from __future__ import annotations

import asyncio
import json
import select
from contextlib import ExitStack

import pytest
from starlette.types import Message

from convexlayer_server.admission import gate
from convexlayer_server.admission.keys import new_key, new_token
from convexlayer_server.admission.memory import MemoryBudget, release_free_memory
from convexlayer_server.errors import TooManyError
from convexlayer_server.settings import Settings
from convexlayer_server.store import Store

from .conftest import DOCUMENT, VALUES
from .running import LargeBackend, WaitingBackend, Wire, eventually, running

MIB = 2**20
SOLVE = json.dumps({"parameters": VALUES}).encode()
BINARY = "application/vnd.convexlayer+safetensors"


def memory(most: int = 1000) -> MemoryBudget:
    return MemoryBudget(Settings(max_held_bytes=most))


def test_reservations_end_with_their_requests() -> None:
    held = memory()
    with held.open_reservation("a") as first, held.open_reservation("a") as second:
        first.reserve("body", 80)
        second.set("response", 160)
        assert (held.total, held.held_by("a")) == (300, 300)  # with a quarter of overhead
        first.reserve("body", 40)
        assert held.total == 250
        first.set("body", 0)
        first.reserve("result", 80)
        assert held.total == 300
    assert (held.total, held.held_by("a")) == (0, 0)


def test_the_budget_is_enforced() -> None:
    held = memory()
    with held.open_reservation("a") as first, held.open_reservation("a") as second:
        first.reserve("body", 800)
        with pytest.raises(TooManyError) as error:
            second.reserve("body", 4)
        assert error.value.retry_after_s
        assert held.total == 1000
        second.set("response", 80)  # it is in memory already
        assert held.total == 1100
        first.reserve("body", 400)
        second.reserve("body", 4)


def test_each_key_may_hold_its_fair_share() -> None:
    held = memory()
    with (
        held.open_reservation("greedy") as greedy,
        held.open_reservation("modest") as modest,
        held.open_reservation("late") as late,
    ):
        greedy.reserve("body", 800)
        modest.reserve("body", 400)  # its share is half
        with pytest.raises(TooManyError):
            modest.reserve("body", 404)
        late.reserve("body", 264)  # its share is a third
        with pytest.raises(TooManyError):
            late.reserve("body", 272)
        with pytest.raises(TooManyError):
            greedy.reserve("arrays", 4)
        greedy.set("body", 100)
        modest.reserve("body", 404)


def test_a_job_takes_over_the_reservation_of_its_request() -> None:
    async def run() -> list[int]:
        held, go_on = memory(), asyncio.Event()
        totals = []

        async def job() -> None:
            await go_on.wait()

        with held.open_reservation("a") as request:
            request.reserve("arrays", 80)
            task = asyncio.create_task(job())
            request.transfer_to(task)
            request.set("response", 40)
            totals.append(held.total)
        totals.append(held.total)
        go_on.set()
        await task
        await asyncio.sleep(0)
        totals.append(held.total)
        with held.open_reservation("a") as request:
            request.reserve("arrays", 80)
            task = asyncio.create_task(job())
            request.transfer_to(task)
        task.cancel()  # before it starts
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
        return [*totals, held.total]

    assert asyncio.run(run()) == [150, 100, 0, 0]


def test_a_large_decrease_is_detected() -> None:
    held = MemoryBudget(Settings())
    with held.open_reservation("a") as request:
        request.reserve("body", 100 * MIB)
        assert not held.has_shrunk()
        request.set("body", 80 * MIB)
        assert not held.has_shrunk()
        request.set("body", 40 * MIB)
        assert held.has_shrunk()
        assert not held.has_shrunk()
    assert not held.has_shrunk()
    release_free_memory()


def test_stalled_uploads_are_bounded_and_released() -> None:
    with running(max_held_bytes=8 * MIB) as server, ExitStack() as stack:
        wires = [stack.enter_context(server.wire()) for _ in range(16)]
        for wire in wires:
            wire.request("POST", "/v1/problems", b" " * MIB, length=2 * MIB)

        def answered() -> list[Wire]:
            readable, *_ = select.select([wire.socket for wire in wires], [], [], 0.0)
            return [wire for wire in wires if wire.socket in readable]

        # The budget holds six bodies of 1 MiB with overhead; the others are refused as they arrive.
        eventually(lambda: len(answered()) == 10)
        for wire in answered():
            response = wire.response()
            assert (response.status, response.slug, response.headers.get("retry-after")) == (429, "too-many", "1")
        assert server.service.memory.total > 6 * MIB
        stack.close()
        eventually(lambda: server.service.memory.total == 0)
        assert server.measured("convexlayer_held_bytes") == 0


def test_results_are_reserved_until_they_are_sent() -> None:
    with running(LargeBackend(16 * MIB)) as server:
        path = f"{server.register(DOCUMENT)}/solve"
        with server.wire() as wire:
            assert wire.request("POST", path, SOLVE, Accept=BINARY).begin() == 200
            assert server.service.memory.held_by("") >= 16 * MIB
        eventually(lambda: server.service.memory.total == 0)
        with server.wire() as wire:
            assert len(wire.request("POST", path, SOLVE, Accept=BINARY).response().body) > 16 * MIB
        eventually(lambda: server.service.memory.total == 0)


def test_memory_for_a_result_is_reserved_before_it_is_computed() -> None:
    document = {
        "kind": "expression",
        "parameters": {"c": {}},
        "variables": {"x": {"shape": [1000]}},
        "minimize": "sum_squares(x - c)",
    }
    backend = WaitingBackend()
    with running(backend, max_held_bytes=MIB) as server:
        path = f"{server.register(document)}/solve"
        response = server.ask("POST", path, {"parameters": {"c": [1.0] * 200}})
        assert (response.status, response.slug) == (429, "too-many")
        vjp = {"parameters": {"c": [1.0] * 200}, "cotangents": {"x": [0.0] * 1000}}
        with server.wire() as wire:
            wire.request("POST", path.replace("solve", "vjp"), json.dumps(vjp).encode())  # its result is small
            eventually(lambda: backend.started == 1)
            assert server.service.memory.total > 0


def test_the_result_of_a_job_is_reserved_while_it_is_sent() -> None:
    with running(LargeBackend(16 * MIB), max_held_bytes=50 * MIB) as server, ExitStack() as stack:
        accepted = server.ask(
            "POST", f"{server.register(DOCUMENT)}/solve", {"parameters": VALUES}, Prefer="respond-async"
        )
        job = accepted.headers["location"]
        eventually(lambda: json.loads(server.ask("GET", job).body)["status"] == "done")
        wires = [stack.enter_context(server.wire()) for _ in range(4)]
        assert [wire.request("GET", f"{job}/result", Accept=BINARY).begin() for wire in wires] == [200, 200, 429, 429]
        assert server.ask("DELETE", job).status == 204
        assert server.service.memory.total >= 40 * MIB  # although the job was dropped


def test_large_bodies_are_sent_gradually() -> None:
    async def run() -> None:
        held, body = memory(10 * MIB), bytes(range(256)) * 4096
        sent: list[Message] = []
        taken: list[int] = []

        async def send(message: Message) -> None:
            sent.append(message)
            taken.append(held.total)

        with held.open_reservation("a") as request:
            send_gradually = gate._send_gradually(send, request)
            await send_gradually({"type": "http.response.start", "status": 200, "headers": []})
            await send_gradually({"type": "http.response.body", "body": body})
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
def test_nothing_is_reserved_after_a_response(body: bytes, status: int) -> None:
    with running(max_body_bytes=MIB) as server:
        path = server.register(DOCUMENT)
        with server.wire() as wire:
            assert wire.request("POST", f"{path}/solve", body).response().status == status
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
