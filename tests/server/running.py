"""The application on uvicorn in a thread, and raw connections to it."""

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
from convexlayer_server.compute.local_backend import LocalBackend
from convexlayer_server.compute.protocol import (
    ComputeBackend,
    ComputeHealth,
    ComputeRequest,
    ComputeResult,
    OnProgress,
    OnStart,
    RecordUsage,
)
from convexlayer_server.http.connections import ConnectionManager, Server, configuration
from convexlayer_server.service import Service
from convexlayer_server.store import Store

__all__ = ["LargeBackend", "Running", "WaitingBackend", "Wire", "WireResponse", "eventually", "running"]

WAIT_S = 60.0
"""Seconds after which a condition that does not become true fails the test."""


def eventually(holds: Callable[[], Any]) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)


@final
class WireResponse:
    """A response."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def slug(self) -> str:
        """Slug of its problem details."""
        assert self.headers["content-type"] == "application/problem+json"
        details = json.loads(self.body)
        assert details["status"] == self.status
        return str(details["type"]).rpartition(":")[2]


@final
class Wire:
    """A raw connection; a context manager."""

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
        """Close the connection."""
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> Self:
        """Send bytes, until the server closes the connection."""
        with suppress(OSError):
            self.socket.sendall(data)
        return self

    def request(
        self, method: str, path: str, body: bytes | None = None, *, length: int | None = None, **headers: str
    ) -> Self:
        """Send a request; ``length`` may announce more of its body than is sent."""
        fields = {"Host": "server"} | {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            fields |= {"Content-Length": str(len(body) if length is None else length)}
            fields |= {"Content-Type": "application/json"}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return self.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + (body or b""))

    def begin(self) -> int:
        """Read the status and headers of a response, but not its body."""
        return self._head()[0]

    def response(self) -> WireResponse:
        """Read a response."""
        status, headers = self._head()
        if "content-length" in headers:
            return WireResponse(status, headers, self._file.read(int(headers["content-length"])))
        if status in (204, 304):
            return WireResponse(status, headers, b"")
        body = b""
        while size := int(self._file.readline(), 16):
            body += self._file.read(size)
            self._file.readline()
        self._file.readline()
        return WireResponse(status, headers, body)

    def rest(self) -> bytes:
        """Read until the server closes the connection."""
        try:
            return self._file.read()
        except ConnectionError:
            return b""

    @property
    def over(self) -> bool:
        """Whether the server closes the connection without sending more."""
        return not self.rest()

    def reset(self) -> None:
        """Reset the connection."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def _head(self) -> tuple[int, dict[str, str]]:
        line = self._file.readline()
        assert line, "the connection was closed without a response"
        status = int(line.split()[1])
        headers = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers


class _Backend:
    """Canonicalises as the local backend does."""

    def __init__(self) -> None:
        self._backend = LocalBackend(Settings(workers=0))

    async def open(self, record_usage: RecordUsage) -> None:
        await self._backend.open(record_usage)

    async def register(self, problem_id: str, document: bytes, owner: str, started: OnStart) -> Mapping[str, Any]:
        return await self._backend.register(problem_id, document, owner, started)

    async def cancel(self, request_id: str) -> bool:
        return False

    def health(self) -> ComputeHealth:
        return self._backend.health()

    async def close(self) -> None:
        await self._backend.close()


@final
class WaitingBackend(_Backend):
    """A backend that never finishes a request; it counts the started and the cancelled ones."""

    def __init__(self) -> None:
        super().__init__()
        self.started = self.cancelled = 0

    async def run(
        self, request: ComputeRequest, document: bytes, on_progress: OnProgress | None, started: OnStart
    ) -> ComputeResult:
        self.started += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError


@final
class LargeBackend(_Backend):
    """A backend with large results."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self._entries = size_bytes // 8

    async def run(
        self, request: ComputeRequest, document: bytes, on_progress: OnProgress | None, started: OnStart
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
        connections: its connections.
        port: its port.
    """

    def __init__(
        self,
        settings: Settings,
        backend: ComputeBackend | None = None,
        store: Store | None = None,
        port: int = 0,
    ) -> None:
        app = create_app(settings, backend=backend, store=store)
        self.service: Service = app.state.service
        config = configuration(app, settings, self.service.metrics)
        config.port = port
        self.connections: ConnectionManager = config.http.__self__  # type: ignore[union-attr]
        self._server = Server(config, self.service.compute.close)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        eventually(lambda: self._server.started)
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def wire(self) -> Wire:
        """Connect."""
        return Wire(self.port)

    def ask(self, method: str, path: str, body: Any = None, **headers: Any) -> WireResponse:
        """Send a request on a new connection, and return its response."""
        with self.wire() as wire:
            return wire.request(method, path, None if body is None else json.dumps(body).encode(), **headers).response()

    def register(self, document: Mapping[str, Any]) -> str:
        """Register a problem, and return its path."""
        return self.ask("POST", "/v1/problems", document).headers["location"]

    def measured(self, name: str) -> float:
        """The value of a metric, by name with labels."""
        lines = self.service.metrics.exposition().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name)

    def refused(self, slug: str) -> int:
        """The number of refused requests and connections."""
        return int(self.measured(f'convexlayer_refused_total{{reason="{slug}"}}'))

    def close(self) -> None:
        """Stop the server."""
        self._server.should_exit = True
        self._thread.join()


@contextmanager
def running(
    backend: ComputeBackend | None = None, store: Store | None = None, port: int = 0, **settings: Any
) -> Iterator[Running]:
    """A running server, by default on a free port, which must not log errors."""
    errors: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    server = Running(Settings(**{"workers": 0, "drain_s": 0.1} | settings), backend, store, port)
    try:
        yield server
    finally:
        server.close()
        logging.getLogger().removeHandler(handler)
    assert not errors
