"""A server of its own for a measurement, on a free port of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, final

import psutil

from benchmarks.reliability.caller import Caller

__all__ = ["Server"]

_START_S = 120.0
_READY_S = 0.02


@final
class Server:
    """``convexlayer serve`` as a process; a context manager.

    Args:
        settings: fields of ``convexlayer_server.Settings``; what is left out has its default.
        store: file of the store; one that goes with the server unless given.
        port: to listen on; any that is free unless given.

    Attributes:
        address: host and port.
    """

    def __init__(self, *, store: str | None = None, port: int = 0, **settings: Any) -> None:
        self._folder = tempfile.TemporaryDirectory()
        given = {"workers": 2, "store": store or os.path.join(self._folder.name, "store.sqlite"), **settings}
        self._environment = os.environ | {f"CONVEXLAYER_{name.upper()}": str(value) for name, value in given.items()}
        self._workers = int(given["workers"])
        self._process: subprocess.Popen[str] | None = None
        self.address = ("127.0.0.1", port)

    def __enter__(self) -> Server:
        command = [sys.executable, "-m", "convexlayer.cli", "serve", "--host", "127.0.0.1"]
        command += ["--port", str(self.address[1])]
        self._process = subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        line = next(line for line in self._process.stdout if line.startswith("listening on"))
        self.address = ("127.0.0.1", int(line.rpartition(":")[2]))
        self.wait_for_workers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """The process that takes requests."""
        assert self._process is not None
        return self._process.pid

    def caller(self) -> Caller:
        """A connection of one's own."""
        return Caller(self.address)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def register(self, document: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> str:
        """The path of a problem."""
        with self.caller() as caller:
            sent = {"Content-Type": "application/json", **(headers or {})}
            answer = caller.post("/v1/problems", json.dumps(document).encode(), sent)
        assert answer.status in (200, 201), answer.body
        return f"/v1/problems/{json.loads(answer.body)['id']}"

    def workers(self) -> list[psutil.Process]:
        """Its worker processes, the one that stands by included."""
        return [child for child in self._processes() if "spawn_main" in " ".join(child.cmdline())]

    def wait_for_workers(self) -> float:
        """Seconds until all workers are there."""
        start = time.monotonic()
        with self.caller() as caller:
            while True:
                answer = caller.get("/readyz")
                if json.loads(answer.body).get("workers") == self._workers:
                    return time.monotonic() - start
                if time.monotonic() - start > _START_S:
                    raise TimeoutError(f"the server is not ready: {answer.body!r}")
                time.sleep(_READY_S)

    def resident_bytes(self) -> int:
        """Resident memory of all its processes."""
        return sum(process.memory_info().rss for process in self._processes())

    def descriptors(self) -> int:
        """Open descriptors of all its processes."""
        return sum(process.num_fds() for process in self._processes())

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]
