"""The frame of the reliability run: what it counts, and how it tells it."""

from __future__ import annotations

import http.server
import importlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import ClassVar

import pytest

from benchmarks.reliability import load
from benchmarks.reliability.__main__ import PARTS
from benchmarks.reliability.caller import Caller
from benchmarks.reliability.load import Load, run
from benchmarks.reliability.table import HEAD, Row, milliseconds, percentile


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers "busy" with 429, "gone" by hanging up, and all else with 200; keeps what it was sent."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[set[bytes]] = set()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if body == b"gone":
            self.close_connection = True
            return
        self.bodies.add(body)
        self.send_response(429 if body == b"busy" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield ("127.0.0.1", server.server_address[1])
        server.shutdown()


def test_loads_count_what_came_back(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """For two seconds, which are over when the server has seen both callers."""
    Handler.bodies.clear()
    clock = SimpleNamespace(perf_counter=lambda: 2.0 * (len(Handler.bodies) == 2), sleep=lambda seconds: None)
    monkeypatch.setattr(load, "time", clock)
    tally = run(Load(address, "/", [b"good", b"busy"], callers=2, seconds=2.0))
    assert set(tally.counts()) == {200, 429}
    assert tally.untold[429] == tally.counts()[429], "refused without saying until when"
    assert tally.rate == len(tally.good) / 2.0


def test_a_load_has_its_rate(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second, though the clock stands still: every request is waited for, and none is sent later than that."""
    waits: list[float] = []
    monkeypatch.setattr(load, "time", SimpleNamespace(perf_counter=lambda: 0.0, sleep=waits.append))
    tally = run(Load(address, "/", [b"good"], callers=4, seconds=0.5, rate=40.0))
    assert tally.counts() == {200: 20}
    assert sorted(waits) == [number / 40.0 for number in range(20)]


def test_connections_that_are_lost_are_told(address: tuple[str, int]) -> None:
    with Caller(address) as caller:
        assert caller.post("/", b"gone").status == 0
        assert caller.post("/", b"good").status == 200


def test_the_table() -> None:
    row = Row("what", "<= 1 ms", f"p99 {milliseconds(percentile([1e-3, 2e-3, 3e-3], 0.5))}", False)
    assert str(row) == "| what | <= 1 ms | p99 2 ms | **no** |"
    assert HEAD.splitlines()[0].count("|") == str(row).count("|")


@pytest.mark.parametrize("part", PARTS)
def test_every_part_can_be_measured(part: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.reliability.{part}").measure)
