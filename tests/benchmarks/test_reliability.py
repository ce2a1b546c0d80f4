"""Loads, idle connections, logs and tables of the reliability benchmark."""

from __future__ import annotations

import http.server
import importlib
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from benchmarks.reliability import load
from benchmarks.reliability.__main__ import PARTS
from benchmarks.reliability.attack import Attack
from benchmarks.reliability.http_client import HttpClient
from benchmarks.reliability.idle_connections import ConnectionGroup, maintain
from benchmarks.reliability.load import Load, run
from benchmarks.reliability.server_log import Log
from benchmarks.reliability.table import HEAD, Row, milliseconds, quantile

Address = tuple[str, int]


class Handler(http.server.BaseHTTPRequestHandler):
    """Responds to "busy" with 429, closes on "gone", never responds to "never", and responds 200 to all else."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[list[bytes]] = []
    over: ClassVar[threading.Event] = threading.Event()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.bodies.append(body)
        if body == b"gone":
            self.close_connection = True
            return
        if body == b"never":
            self.over.wait()
        self.send_response(429 if body == b"busy" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[Address]:
    Handler.bodies.clear()
    Handler.over.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield ("127.0.0.1", server.server_address[1])
        Handler.over.set()
        server.shutdown()


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[Address]:
    """Run a server that calls ``serve`` with every connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def clock(seconds: Callable[[], float]) -> SimpleNamespace:
    return SimpleNamespace(perf_counter=seconds, process_time=lambda: 0.0)


def test_loads_count_responses_by_status(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock reaches the end of the load once the server has seen both clients."""
    monkeypatch.setattr(load, "time", clock(lambda: 2.0 * (len(set(Handler.bodies)) == 2)))
    tally = run(Load(address, "/", [b"good", b"busy"], clients=2, seconds=2.0))
    assert set(tally.counts()) == {200, 429}
    assert tally.without_retry_after[429] == tally.counts()[429], "responses without Retry-After are counted"
    assert tally.failed == tally.counts()[429]
    assert tally.rate == len(tally.good) / 2.0


def test_an_open_load_sends_at_its_rate(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of a clock that advances by a millisecond per reading."""
    ticks = itertools.count()
    monkeypatch.setattr(load, "time", clock(lambda: next(ticks) * 1e-3))
    bodies = [b"%d" % number for number in range(100)]
    tally = run(Load(address, "/", bodies, clients=4, seconds=0.5, rate=40.0))
    assert tally.counts() == {200: 20}
    assert sorted(Handler.bodies) == sorted(bodies[:20])


def test_clients_reconnect_after_a_timeout(address: Address) -> None:
    never_answered = Load(address, "/", [b"never"], clients=2, seconds=60.0, timeout_s=0.0)
    tally = run(never_answered, lambda: len(Handler.bodies) >= 4)
    assert set(tally.counts()) == {0}
    assert tally.counts()[0] >= 2


def test_a_load_can_be_stopped_early(address: Address) -> None:
    never_answered = Load(address, "/", [b"never"], clients=2, seconds=60.0)
    assert run(never_answered, lambda: len(Handler.bodies) == 2).counts() == {}


def test_an_early_response_closes_the_connection() -> None:
    accepted = []

    def refuse(connection: socket.socket) -> None:
        accepted.append(connection)
        connection.recv(1)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")

    with listening(refuse) as address:
        never_answered = Load(address, "/", [b" " * 2**26], clients=1, seconds=60.0)
        tally = run(never_answered, lambda: len(accepted) == 3)
        for connection in accepted:
            connection.close()
    assert set(tally.counts()) == {413}
    assert tally.counts()[413] >= 2


@pytest.mark.parametrize("body", [b"gone", b"good"])
def test_lost_connections_have_status_0(address: Address, body: bytes) -> None:
    with HttpClient(address) as client:
        assert client.post("/", b"gone").status == 0
        assert client.post("/", b"good").status == 200
    tally = run(Load(address, "/", [body], clients=1, seconds=60.0), lambda: Handler.bodies.count(body) > 2)
    assert set(tally.counts()) == {0 if body == b"gone" else 200}


def test_closed_connections_are_reopened() -> None:
    received = []

    def close(connection: socket.socket) -> None:
        received.append(connection.recv(100))
        connection.close()

    with listening(close) as address:
        statistics = maintain(ConnectionGroup(address, 2, b"first"), lambda: len(received) >= 5)
    assert received == [b"first"] * len(received)
    assert statistics.opened >= 5
    assert statistics.closed >= statistics.opened - 2


def test_groups_send_at_most_max_bytes() -> None:
    received = bytearray()
    rounds = itertools.count()

    def receive(connection: socket.socket) -> None:
        while chunk := connection.recv(100):
            received.extend(chunk)
        connection.close()

    with listening(receive) as address:
        group = ConnectionGroup(address, 1, b"first", b"then", every_s=0.0, max_bytes=14)
        assert maintain(group, lambda: len(received) >= 13 and next(rounds) == 100).sent_bytes == 13
    assert received == b"firstthenthen"


def test_attacks_end_with_their_context(address: Address) -> None:
    with Attack(maintain, ConnectionGroup(address, 3)) as attack:
        pass
    assert (attack.outcome.opened, attack.outcome.closed) == (3, 0)


def test_errors_in_a_log_are_counted(tmp_path: Path) -> None:
    lines = [
        json.dumps({"level": "INFO", "logger": "convexlayer_server.access", "message": "GET /"}),
        json.dumps({"level": "WARNING", "logger": "worker_pool", "message": "a worker ended"}),
        "Traceback (most recent call last):",
        json.dumps({"level": "ERROR", "logger": "uvicorn.error", "message": "it failed | badly"}),
    ]
    path = Path(tmp_path, "log")
    path.write_text("\n".join(lines))
    log = Log.of(path)
    assert log.errors == ("Traceback (most recent call last):", "ERROR uvicorn.error it failed | badly")
    assert log.tail.splitlines() == ["WARNING worker_pool a worker ended", *log.errors]

    row = Row("what", "target", "figure", True)
    assert row.with_log(Log()).met
    with_errors = row.with_log(log)
    assert not with_errors.met
    assert "2 error lines, the first: Traceback" in with_errors.measured
    assert "|" not in str(log)


def test_the_table() -> None:
    row = Row("what", "<= 1 ms", f"p99 {milliseconds(quantile([1e-3, 2e-3, 3e-3], 0.5))}", False)
    assert str(row) == "| what | <= 1 ms | p99 2 ms | **no** |"
    assert HEAD.splitlines()[0].count("|") == str(row).count("|")


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_a_measure_function(part: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.reliability.{part}").measure)
