"""A server process for a measurement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, final

import psutil

from benchmarks.reliability.http_client import HttpClient
from benchmarks.reliability.server_log import Log
from convexlayer_server import Settings
from convexlayer_server.admission.keys import new_key, new_token
from convexlayer_server.store import Store

__all__ = ["Server", "cpu_s"]

_START_S = 120.0
"""Seconds that a server may take to get ready, and then to get idle."""

_READY_S = 0.02
"""Seconds between checks of a server that starts."""

_IDLE_CHECK_S, _IDLE_LOAD = 0.5, 0.1
"""Interval in seconds, and CPU load, at which the processes count as idle."""

_FORKS = "multiprocessing.forkserver"


@final
class Server:
    """``convexlayer serve`` as a process; a context manager.

    Args:
        settings: fields of ``convexlayer_server.Settings``; the others have their defaults.
        store: file of the store; by default a temporary one.
        port: port; by default a free one.
        keys: names of keys to create; without any, the server requires none.
        descriptors: limit of file descriptors of each process; by default the system's.
        source: another checkout to run, after compiling its kernels.
        packages: a folder at the front of its import path.

    Attributes:
        address: host and port.
    """

    def __init__(
        self,
        *,
        store: str | None = None,
        port: int = 0,
        keys: Sequence[str] = (),
        descriptors: int | None = None,
        source: str | None = None,
        packages: str | None = None,
        **settings: Any,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        given = {"workers": 2, "store": store or str(Path(self._folder.name, "store.sqlite")), **settings}
        self._environment = os.environ | {f"CONVEXLAYER_{name.upper()}": str(value) for name, value in given.items()}
        self._workers = int(given["workers"])
        self._tokens = _make_keys(given["store"], keys)
        self._descriptors = descriptors
        self._source = None if source is None else Path(source).resolve()
        roots = [] if self._source is None else [self._source]
        paths = [root / part for root in roots for part in ("", "server", "clients/python/src")]
        given_paths = [packages, *map(str, paths), self._environment.get("PYTHONPATH")]
        self._environment["PYTHONPATH"] = os.pathsep.join(path for path in given_paths if path)
        self._process: subprocess.Popen[str] | None = None
        self._ended: Log | None = None
        self.address = ("127.0.0.1", port)

    def __enter__(self) -> Server:
        program = [sys.executable, "-m", "convexlayer.cli"]
        if self._source is not None:
            run = [*program, "compile"]
            subprocess.run(run, env=self._environment, cwd=self._source, stdout=subprocess.DEVNULL, check=True)
        command = [*program, "serve", "--host", "127.0.0.1", "--port", str(self.address[1])]
        if self._descriptors is not None:
            command = ["sh", "-c", 'ulimit -n "$0" && exec "$@"', str(self._descriptors), *command]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, cwd=self._source, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        line = next((line for line in self._process.stdout if line.startswith("listening on")), None)
        if line is None:
            raise RuntimeError(f"the server did not start:\n{self.log.tail}")
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
        self._ended = self.log
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """ID of the server process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Log:
        """Its log until now, or until it ended."""
        return self._ended or Log.of(self._log_path)

    def headers(self, key: str) -> dict[str, str]:
        """Return the headers with a key, by its name."""
        return {"Authorization": f"Bearer {self._tokens[key]}"}

    def client(self, key: str | None = None, timeout_s: float = 120.0) -> HttpClient:
        """Return a client with a key."""
        return HttpClient(self.address, None if key is None else self.headers(key), timeout_s)

    def kill(self) -> None:
        """Kill the server process, as a power failure would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def register(self, document: Mapping[str, Any], key: str | None = None) -> str:
        """Register a problem, and return its path."""
        with self.client(key) as client:
            answer = client.post("/v1/problems", json.dumps(document).encode())
        assert answer.status in (200, 201), answer.body
        return f"/v1/problems/{json.loads(answer.body)['id']}"

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes, including the standby."""
        return [child for child in self._processes() if _is_worker(child)]

    def front(self) -> list[psutil.Process]:
        """Return the server process and the parsers: all but the workers and the fork server."""
        return [process for process in self._processes() if not (_is_worker(process) or _is_fork_server(process))]

    def wait_for_workers(self) -> float:
        """Wait until all workers are ready; return the seconds that this took."""
        start = time.monotonic()
        with self.client() as client:
            while True:
                answer = client.get("/readyz")
                if answer.status and json.loads(answer.body).get("workers") == self._workers:
                    return time.monotonic() - start
                if time.monotonic() - start > _START_S:
                    raise TimeoutError(f"the server is not ready: {answer.body!r}")
                time.sleep(_READY_S)

    def wait_until_idle(self) -> None:
        """Wait until the processes are idle, for instance until the standby has started."""
        end = time.monotonic() + _START_S
        before, after = -float("inf"), cpu_s(self._processes())
        while after - before > _IDLE_LOAD * _IDLE_CHECK_S and time.monotonic() < end:
            time.sleep(_IDLE_CHECK_S)
            before, after = after, cpu_s(self._processes())

    def resident_bytes(self) -> int:
        """Return the resident memory of all processes."""
        return sum(process.memory_info().rss for process in self._processes())

    def descriptors(self) -> int:
        """Return the open file descriptors of all processes."""
        return sum(process.num_fds() for process in self._processes())

    @property
    def _log_path(self) -> Path:
        return Path(self._folder.name, "log")

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """Return the CPU seconds of processes."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _is_worker(process: psutil.Process) -> bool:
    """Whether a process was spawned, or forked by the fork server."""
    try:
        parent = process.parent()
        forked = parent is not None and _is_fork_server(parent)
        return forked or "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def _is_fork_server(process: psutil.Process) -> bool:
    """Whether a process is the fork server, or a worker, which shows the same command."""
    try:
        return _FORKS in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def _make_keys(store: str, names: Sequence[str]) -> dict[str, str]:
    """Create keys; return their tokens by name."""
    if not names:
        return {}
    tokens = {name: new_token() for name in names}
    with closing(Store(Settings(), store)) as opened:
        for name, token in tokens.items():
            opened.add_key(new_key(name, token))
    return tokens
