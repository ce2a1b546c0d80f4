"""The machinery of the reliability benchmark: load generation, counting and reporting."""

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
from benchmarks.reliability.caller import Caller
from benchmarks.reliability.crowd import Crowd, keep
from benchmarks.reliability.load import Load, run
from benchmarks.reliability.log import Log
from benchmarks.reliability.table import HEAD, Row, milliseconds, percentile

Address = tuple[str, int]


class Handler(http.server.BaseHTTPRequestHandler):
    """Responds to "busy" with 429, to "gone" by closing, to "never" not at all, else with 200; records the bodies."""

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
    """A server that calls ``serve`` for every connection."""
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


def test_loads_count_responses(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two simulated seconds, which end when the server has received requests of both callers."""
    monkeypatch.setattr(load, "time", clock(lambda: 2.0 * (len(set(Handler.bodies)) == 2)))
    tally = run(Load(address, "/", [b"good", b"busy"], callers=2, seconds=2.0))
    assert set(tally.counts()) == {200, 429}
    assert tally.untold[429] == tally.counts()[429], "refused without saying until when"
    assert tally.failed == tally.counts()[429]
    assert tally.rate == len(tally.good) / 2.0


def test_a_load_keeps_its_rate(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of a simulated clock that advances by a millisecond per reading."""
    ticks = itertools.count()
    monkeypatch.setattr(load, "time", clock(lambda: next(ticks) * 1e-3))
    bodies = [b"%d" % number for number in range(100)]
    tally = run(Load(address, "/", bodies, callers=4, seconds=0.5, rate=40.0))
    assert tally.counts() == {200: 20}
    assert sorted(Handler.bodies) == sorted(bodies[:20])


def test_callers_time_out_and_retry(address: Address) -> None:
    asked = Load(address, "/", [b"never"], callers=2, seconds=60.0, timeout_s=0.0)
    tally = run(asked, lambda: len(Handler.bodies) >= 4)
    assert set(tally.counts()) == {0}
    assert tally.counts()[0] >= 2


def test_a_load_stops_immediately(address: Address) -> None:
    asked = Load(address, "/", [b"never"], callers=2, seconds=60.0)
    assert run(asked, lambda: len(Handler.bodies) == 2).counts() == {}


def test_a_response_before_the_body_is_read_closes_the_connection() -> None:
    accepted = []

    def refuse(connection: socket.socket) -> None:
        accepted.append(connection)
        connection.recv(1)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")

    with listening(refuse) as address:
        asked = Load(address, "/", [b" " * 2**26], callers=1, seconds=60.0)
        tally = run(asked, lambda: len(accepted) == 3)
        for connection in accepted:
            connection.close()
    assert set(tally.counts()) == {413}
    assert tally.counts()[413] >= 2


@pytest.mark.parametrize("body", [b"gone", b"good"])
def test_lost_connections_are_reported(address: Address, body: bytes) -> None:
    with Caller(address) as caller:
        assert caller.post("/", b"gone").status == 0
        assert caller.post("/", b"good").status == 200
    tally = run(Load(address, "/", [body], callers=1, seconds=60.0), lambda: Handler.bodies.count(body) > 2)
    assert set(tally.counts()) == {0 if body == b"gone" else 200}


def test_crowds_reopen_closed_connections() -> None:
    said = []

    def close(connection: socket.socket) -> None:
        said.append(connection.recv(100))
        connection.close()

    with listening(close) as address:
        crowded = keep(Crowd(address, 2, b"first"), lambda: len(said) >= 5)
    assert said == [b"first"] * len(said)
    assert crowded.opened >= 5
    assert crowded.closed >= crowded.opened - 2


def test_crowds_limit_what_they_send() -> None:
    received = bytearray()
    rounds = itertools.count()

    def hear(connection: socket.socket) -> None:
        while chunk := connection.recv(100):
            received.extend(chunk)
        connection.close()

    with listening(hear) as address:
        crowd = Crowd(address, 1, b"first", b"then", every_s=0.0, most_bytes=14)
        assert keep(crowd, lambda: len(received) >= 13 and next(rounds) == 100).said_bytes == 13
    assert received == b"firstthenthen"


def test_attacks_end_with_the_measurement(address: Address) -> None:
    with Attack(keep, Crowd(address, 3)) as attack:
        pass
    assert (attack.outcome.opened, attack.outcome.closed) == (3, 0)


def test_errors_in_a_log_are_counted(tmp_path: Path) -> None:
    lines = [
        json.dumps({"level": "INFO", "logger": "convexlayer_server.access", "message": "GET /"}),
        json.dumps({"level": "WARNING", "logger": "crew", "message": "a worker ended"}),
        "Traceback (most recent call last):",
        json.dumps({"level": "ERROR", "logger": "uvicorn.error", "message": "it failed | badly"}),
    ]
    path = Path(tmp_path, "log")
    path.write_text("\n".join(lines))
    log = Log.of(path)
    assert log.errors == ("Traceback (most recent call last):", "ERROR uvicorn.error it failed | badly")
    assert log.tail.splitlines() == ["WARNING crew a worker ended", *log.errors]

    row = Row("what", "target", "figure", True)
    assert row.with_log(Log()).met
    told = row.with_log(log)
    assert not told.met
    assert "2 error lines, the first: Traceback" in told.figure
    assert "|" not in str(log)


def test_the_table() -> None:
    row = Row("what", "<= 1 ms", f"p99 {milliseconds(percentile([1e-3, 2e-3, 3e-3], 0.5))}", False)
    assert str(row) == "| what | <= 1 ms | p99 2 ms | **no** |"
    assert HEAD.splitlines()[0].count("|") == str(row).count("|")


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_a_measure_function(part: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.reliability.{part}").measure)
