"""Limits on connections and request heads, on raw connections."""

from __future__ import annotations

import errno
import ipaddress
import json
import logging
import os
from contextlib import ExitStack

import pytest

from convexlayer_server.http.address_limits import AddressCounter
from convexlayer_server.http.connections import ConnectionManager
from convexlayer_server.observability import logs
from convexlayer_server.observability.metrics import Metrics
from convexlayer_server.settings import Settings

from .running import LargeBackend, Running, WaitingBackend, eventually, running

DOCUMENT = {
    "kind": "expression",
    "parameters": {"c": {}},
    "variables": {"x": {}},
    "minimize": "square(x - c)",
}
SOLVE = json.dumps({"parameters": {"c": 1.0}}).encode()
LINE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
POST = LINE.replace(b"GET /healthz", b"POST /v1/problems") + b"Transfer-Encoding: chunked\r\n"
CHUNKED = POST + b"Content-Type: application/json\r\n\r\n"


def is_healthy(server: Running) -> bool:
    return server.ask("GET", "/healthz").status == 200


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET /" + b"a" * 2000, id="a target without end"),
        pytest.param(b"GET /" + b"a" * 2000 + b" HTTP/1.1\r\n\r\n", id="a long target"),
        pytest.param(LINE + b"A: " + b"a" * 2000, id="a field without end"),
        pytest.param(LINE + b"A" * 2000, id="a name without end"),
        pytest.param(LINE + b"A: " + b"a" * 2000 + b"\r\n\r\n", id="a long field"),
        pytest.param(LINE + b"A: a\r\n" * 20, id="fields without end"),
        pytest.param(LINE + b"A: a\r\n" * 20 + b"\r\n", id="many fields"),
        pytest.param(CHUNKED + b"1;" + b"a" * 2**20, id="an extension without end"),
        pytest.param(CHUNKED + b"1\r\n \r\n0\r\nA: " + b"a" * 2**20, id="a trailer without end"),
        pytest.param(CHUNKED + b"1\r\n \r\n0\r\n" + b"A: a\r\n" * 20, id="trailers without end"),
        pytest.param(b"\r\n" * 1000, id="empty lines without end"),
    ],
)
def test_large_heads(sent: bytes) -> None:
    with running(max_head_bytes=1000, max_headers=8) as server:
        with server.wire() as wire:
            response = wire.send(sent).response()
            assert (response.status, response.slug) == (431, "head-too-large")
            assert response.headers["connection"] == "close"
            assert wire.over
        assert server.refused("head-too-large") == 1
        assert is_healthy(server)


def test_heads_within_the_limits() -> None:
    with running(max_head_bytes=1000, max_headers=8) as server, server.wire() as wire:
        assert wire.send(LINE + b"A: a\r\n" * 7 + b"\r\n").response().status == 200
        assert wire.send(LINE + b"A: " + b"a" * 900 + b"\r\n\r\n").response().status == 200
        chunks = b"".join(b"4;a=b\r\n    \r\n" for _ in range(200))
        assert wire.send(CHUNKED + chunks + b"0\r\nA: a\r\n\r\n").response().status == 400


def test_trailers_are_not_header_fields() -> None:
    body = b"%x\r\n%b\r\n0\r\n" % (len(SOLVE), SOLVE)
    with running() as server, server.wire() as wire:
        response = wire.send(POST + b"\r\n" + body + b"Content-Type: application/json\r\n\r\n").response()
        assert response.slug == "media-type"


@pytest.mark.parametrize("sent", [b"", b"GET /he", LINE + b"A: a\r\n"])
def test_heads_that_do_not_arrive(sent: bytes) -> None:
    with running(head_s=0.1) as server, server.wire() as wire:
        response = wire.send(sent).response()
        assert (response.status, response.slug) == (408, "head-timeout")
        assert wire.over
        assert server.refused("head-timeout") == 1


def test_the_head_of_a_later_request_does_not_arrive() -> None:
    with running(head_s=1.0) as server, server.wire() as wire:
        assert wire.send(LINE + b"\r\n").response().status == 200
        assert wire.send(LINE).response().status == 408


def test_the_rest_of_an_answered_request_does_not_arrive() -> None:
    with running(head_s=1.0) as server, server.wire() as wire:
        assert wire.request("POST", "/v1/nothing", b"{", length=1000).response().status == 404
        assert wire.over
        assert server.refused("head-timeout") == 1


def test_running_requests_have_no_head_timeout() -> None:
    backend = WaitingBackend()
    with running(backend, head_s=0.5, send_s=0.5) as server, server.wire() as wire:
        wire.request("POST", f"{server.register(DOCUMENT)}/solve", SOLVE)
        for _ in range(2):  # to let time pass
            with server.wire() as silent:
                assert silent.response().status == 408
        assert backend.cancelled == 0
        wire.reset()
        eventually(lambda: backend.cancelled == 1)


def test_idle_connections_are_closed_to_make_room() -> None:
    with running(max_connections=4) as server, ExitStack() as stack:
        silent = [stack.enter_context(server.wire()) for _ in range(4)]
        assert is_healthy(server)
        responses = [wire.response() for wire in silent]
        assert {(response.status, response.slug) for response in responses} == {(408, "idle-connection")}
        assert server.refused("idle-connection") == 4


def test_busy_connections_are_not_closed_to_make_room() -> None:
    backend = WaitingBackend()
    with running(backend, max_connections=2) as server, ExitStack() as stack:
        path = f"{server.register(DOCUMENT)}/solve"
        wires = [stack.enter_context(server.wire()) for _ in range(2)]
        for wire in wires:
            wire.request("POST", path, SOLVE)
        eventually(lambda: backend.started == 2)
        with server.wire() as one_more:
            response = one_more.response()  # without a request
            assert (response.status, response.slug) == (503, "too-many-connections")
            assert response.headers["retry-after"] == "1"
            assert one_more.over
        assert backend.cancelled == 0
        wires[0].reset()
        eventually(lambda: backend.cancelled == 1)
        assert is_healthy(server)
        wires[1].reset()


def test_connections_of_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    somewhere = ipaddress.ip_network("203.0.113.9/32")
    monkeypatch.setattr(AddressCounter, "_network", lambda self, address: somewhere)  # loopback addresses are exempt
    with running(max_connections_per_address=2) as server:
        with server.wire() as first, server.wire() as second:
            assert first.send(LINE + b"\r\n").response().status == 200
            assert second.send(LINE + b"\r\n").response().status == 200
            with server.wire() as third:
                assert third.response().slug == "too-many-connections-per-address"
            assert first.send(LINE + b"\r\n").response().status == 200
        eventually(lambda: server.measured("convexlayer_connections") == 0)
        assert is_healthy(server)


@pytest.mark.parametrize(
    ("addresses", "within"),
    [
        (["192.0.2.1"] * 3, [True, True, False]),
        (["192.0.2.1", "192.0.2.2", "192.0.2.1"], [True, True, True]),
        (["::ffff:192.0.2.1", "192.0.2.1", "192.0.2.1"], [True, True, False]),
        (["2001:db8::1", "2001:db8::2", "2001:db8::3"], [True, True, False]),  # one network
        (["2001:db8::1", "2001:db8:0:1::1", "2001:db8:0:2::1"], [True, True, True]),
        (["127.0.0.1"] * 3, [True, True, True]),
        (["::1"] * 3, [True, True, True]),
        (["10.0.0.7"] * 3, [True, True, True]),
        (["10.1.2.3"] * 3, [True, True, True]),
        ([""] * 3, [True, True, True]),
    ],
)
def test_addresses(addresses: list[str], within: list[bool]) -> None:
    counted = AddressCounter("10.0.0.7, 10.1.0.0/16,proxy.example.org", 2)
    assert [counted.add(address) for address in addresses] == within
    for address in addresses:
        counted.remove(address)
    assert [counted.add(address) for address in addresses] == within


def test_all_addresses_may_be_trusted() -> None:
    counted = AddressCounter("*", 1)
    assert all(counted.add("192.0.2.1") for _ in range(3))


def test_pipelined_requests() -> None:
    with running() as server:
        with server.wire() as wire:
            wire.send((LINE + b"\r\n") * 1000)
            assert wire.response().status == 200
        eventually(lambda: server.refused("too-many-pipelined") == 1)
        with server.wire() as wire:
            wire.send((LINE + b"\r\n") * 10)
            assert [wire.response().status for _ in range(10)] == [200] * 10
        assert is_healthy(server)


def test_malformed_requests() -> None:
    with running() as server:
        with server.wire() as wire:
            response = wire.send(b"EHLO example.org\r\n").response()
            assert (response.status, response.slug) == (400, "malformed")
            assert wire.over
        with server.wire() as wire:
            assert wire.send(CHUNKED + b"zz\r\n").response().slug == "malformed"
            assert wire.over
        assert server.refused("malformed") == 2


def test_data_after_a_request_does_not_change_its_response() -> None:
    with running() as server:
        path = f"{server.register(DOCUMENT)}/solve"
        with server.wire() as wire:
            wire.request("POST", path, SOLVE).send(b"nonsense\r\n")
            assert wire.response().status == 200
            assert wire.rest()[:12] in (b"", b"HTTP/1.1 400")  # nothing, if the response was not ready yet
        with server.wire() as wire:
            wire.request("POST", path, SOLVE).send(LINE + b"A: " + b"a" * 2**20)
            assert wire.response().status == 200
            assert wire.rest()[:12] in (b"", b"HTTP/1.1 431")
        assert (server.refused("malformed"), server.refused("head-too-large")) == (1, 1)


def test_websocket_upgrades_are_ignored() -> None:
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: aa==\r\n\r\n"
    )
    with running() as server, server.wire() as wire:
        assert wire.send(LINE + upgrade).response().status == 200


def test_unread_responses() -> None:
    with running(LargeBackend(64 * 2**20), send_s=0.1) as server, ExitStack() as stack:
        path = f"{server.register(DOCUMENT)}/solve"
        for accept in ("application/json", "application/vnd.convexlayer+safetensors"):
            wire = stack.enter_context(server.wire())
            assert wire.request("POST", path, SOLVE, Accept=accept).begin() == 200
        eventually(lambda: server.refused("unread") == 2)
        eventually(lambda: server.service.memory.total == 0)
        eventually(lambda: server.measured("convexlayer_connections") == 0)


def test_refusals_are_logged_from_time_to_time(caplog: pytest.LogCaptureFixture) -> None:
    with running() as server:
        for _ in range(3):
            with server.wire() as wire:
                assert wire.send(b"EHLO example.org\r\n").response().status == 400
        server.connections._report(0.0)
        server.connections._report(0.0)
    (line,) = [record.message for record in caplog.records if record.name == "convexlayer_server.http.connections"]
    assert line == "refused 3 connections or requests: malformed; the last from 127.0.0.1"


def test_exhausted_file_descriptors_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(*arguments: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    connections = ConnectionManager(Settings(), Metrics(), 1)
    monkeypatch.setattr(os, "open", none_left)
    connections._report(0.0)
    assert "no file descriptor is free" in caplog.records[-1].message


@pytest.mark.parametrize(("trusted", "client"), [("", "127.0.0.1"), ("127.0.0.1", "203.0.113.9")])
def test_forwarded_headers_of_trusted_proxies(trusted: str, client: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), running(trusted_proxies=trusted, root_path="/lab") as server:
        forwarded = {"X_Forwarded_For": "203.0.113.9", "X_Forwarded_Proto": "https"}
        assert server.ask("GET", "/lab/v1/problems", **forwarded).status == 200
    lines = [vars(record) for record in caplog.records]
    assert [line["client"] for line in lines if line.get("route") == "/v1/problems"] == [client]


def test_repeated_warnings_are_dropped() -> None:
    keep = logs._RateLimitFilter().filter
    levels = (logging.WARNING, logging.WARNING, logging.ERROR, logging.ERROR, logging.INFO, logging.INFO)
    records = [logging.LogRecord("uvicorn.error", level, "", 0, "Invalid.", (), None) for level in levels]
    assert [keep(record) for record in records] == [True, False, True, True, True, True]
