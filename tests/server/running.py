"""The application served by uvicorn in a thread, and connections to it as bytes on a socket."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self, final

import numpy as np

from convexlayer_server import Settings, create_app
from convexlayer_server.connections import Connections, Server, configuration
from convexlayer_server.engine import (
    Begun,
    Charge,
    ComputeRequest,
    ComputeResult,
    EmbeddedEngine,
    Engine,
    EngineHealth,
    Progress,
)
from convexlayer_server.service import Service
from convexlayer_server.store import Store

__all__ = ["Answer", "LargeEngine", "Running", "WaitingEngine", "Wire", "eventually", "running"]

WAIT_S = 60.0
"""For what has to happen; a test that waits so long has failed."""


def eventually(holds: Callable[[], Any]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.01)


@final
class Answer:
    """What came back for a request."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def slug(self) -> str:
        """Of the problem that it tells."""
        assert self.headers["content-type"] == "application/problem+json"
        told = json.loads(self.body)
        assert told["status"] == self.status
        return str(told["type"]).rpartition(":")[2]


@final
class Wire:
    """A connection; a context manager."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> Self:
        """Send bytes, as many as are taken before the other side closes."""
        with suppress(OSError):
            self.socket.sendall(data)
        return self

    def request(
        self, method: str, path: str, body: bytes | None = None, *, length: int | None = None, **headers: str
    ) -> Self:
        """Send a request, of whose body perhaps more is announced than sent."""
        fields = {"Host": "server"} | {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            fields |= {"Content-Length": str(len(body) if length is None else length)}
            fields |= {"Content-Type": "application/json"}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return self.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + (body or b""))

    def begin(self) -> int:
        """Read the status of an answer and its headers; and no more."""
        return self._head()[0]

    def answer(self) -> Answer:
        """Read an answer."""
        status, headers = self._head()
        if "content-length" in headers:
            return Answer(status, headers, self._file.read(int(headers["content-length"])))
        if status in (204, 304):
            return Answer(status, headers, b"")
        body = b""
        while size := int(self._file.readline(), 16):
            body += self._file.read(size)
            self._file.readline()
        self._file.readline()
        return Answer(status, headers, body)

    def rest(self) -> bytes:
        """What comes until the other side closes it."""
        try:
            return self._file.read()
        except ConnectionError:
            return b""

    @property
    def over(self) -> bool:
        """Whether the other side closes it, having sent nothing more."""
        return not self.rest()

    def reset(self) -> None:
        """Close it without goodbye."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def _head(self) -> tuple[int, dict[str, str]]:
        line = self._file.readline()
        assert line, "the connection was closed without an answer"
        status = int(line.split()[1])
        headers = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers


class _Engine:
    """Compiles as the embedded engine does."""

    def __init__(self) -> None:
        self._engine = EmbeddedEngine(Settings(workers=0))

    async def open(self, charge: Charge) -> None:
        await self._engine.open(charge)

    async def register(self, problem_id: str, document: bytes, owner: str, begun: Begun) -> Mapping[str, Any]:
        return await self._engine.register(problem_id, document, owner, begun)

    async def cancel(self, request_id: str) -> bool:
        return False

    def health(self) -> EngineHealth:
        return self._engine.health()

    async def close(self) -> None:
        await self._engine.close()


@final
class WaitingEngine(_Engine):
    """One that never comes to the end of a computation; it counts those begun and those given up."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = self.given_up = 0

    async def run(
        self, request: ComputeRequest, document: bytes, progress: Progress | None, begun: Begun
    ) -> ComputeResult:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        raise AssertionError


@final
class LargeEngine(_Engine):
    """One whose answers are large."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self._entries = size_bytes // 8

    async def run(
        self, request: ComputeRequest, document: bytes, progress: Progress | None, begun: Begun
    ) -> ComputeResult:
        each = np.zeros(1)
        return ComputeResult(
            arrays={"x": np.ones((1, self._entries))},
            batched=True,
            status=("solved",),
            objective=each,
            iterations=(1,),
            residuals=dict.fromkeys(("primal", "dual", "gap", "natural"), each),
            report=None,
            solver="none",
            reason="a test",
            seconds={},
        )


@final
class Running:
    """A server in a thread.

    Attributes:
        service: its parts.
        connections: what limits them.
        port: where it listens.
    """

    def __init__(self, settings: Settings, engine: Engine | None = None, store: Store | None = None) -> None:
        app = create_app(settings, engine=engine, store=store)
        self.service: Service = app.state.service
        config = configuration(app, settings)
        config.port = 0
        self.connections: Connections = config.http.__self__  # type: ignore[union-attr]
        self._server = Server(config, self.service)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        eventually(lambda: self._server.started)
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]

    def wire(self) -> Wire:
        """A connection."""
        return Wire(self.port)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """The answer to a request on a connection of its own."""
        with self.wire() as wire:
            return wire.request(method, path, None if body is None else json.dumps(body).encode(), **headers).answer()

    def register(self, document: Mapping[str, Any]) -> str:
        """The path of a problem."""
        return self.ask("POST", "/v1/problems", document).headers["location"]

    def measured(self, name: str) -> float:
        """A metric, its labels with it."""
        lines = self.service.metrics.written().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name)

    def refused(self, slug: str) -> int:
        """How many requests and connections were refused so."""
        return int(self.measured(f'convexlayer_refused_total{{reason="{slug}"}}'))

    def close(self) -> None:
        """Stop."""
        self._server.should_exit = True
        self._thread.join()


@contextmanager
def running(engine: Engine | None = None, store: Store | None = None, **settings: Any) -> Iterator[Running]:
    """A server that stops afterwards; where all is well, it never logs an error."""
    errors: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    server = Running(Settings(**{"workers": 0, "drain_s": 0.1} | settings), engine, store)
    try:
        yield server
    finally:
        server.close()
        logging.getLogger().removeHandler(handler)
    assert not errors
