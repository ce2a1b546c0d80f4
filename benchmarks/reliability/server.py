"""A server of its own for a measurement, on a free port of this machine."""

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

from benchmarks.reliability.caller import Caller
from benchmarks.reliability.log import Log
from convexlayer_server import Settings
from convexlayer_server.admission.keys import new_key, new_token
from convexlayer_server.store import Store

__all__ = ["Server", "cpu_s"]

_START_S = 120.0
_READY_S = 0.02
_LOOK_S, _AT_REST = 0.5, 0.1

_FORKS = "multiprocessing.forkserver"


@final
class Server:
    """``convexlayer serve`` as a process; a context manager.

    Args:
        settings: fields of ``convexlayer_server.Settings``; what is left out has its default.
        store: file of the store; one that goes with the server unless given.
        port: to listen on; any that is free unless given.
        keys: names of keys to make; without any, none is asked for.
        descriptors: how many each of its processes may have open; the system's limit unless given.
        source: another checkout, whose code it runs, with its kernels compiled.
        packages: a folder of packages that it imports before all others of their names.

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
        """The process that takes requests."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Log:
        """What it has written into its log until now, or until it ended."""
        return self._ended or Log.of(self._log_path)

    def headers(self, key: str) -> dict[str, str]:
        """Those that show a key, by its name."""
        return {"Authorization": f"Bearer {self._tokens[key]}"}

    def caller(self, key: str | None = None, timeout_s: float = 120.0) -> Caller:
        """A connection of one's own, with a key."""
        return Caller(self.address, None if key is None else self.headers(key), timeout_s)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def register(self, document: Mapping[str, Any], key: str | None = None) -> str:
        """The path of a problem."""
        with self.caller(key) as caller:
            answer = caller.post("/v1/problems", json.dumps(document).encode())
        assert answer.status in (200, 201), answer.body
        return f"/v1/problems/{json.loads(answer.body)['id']}"

    def workers(self) -> list[psutil.Process]:
        """Its worker processes, the one that stands by included."""
        return [child for child in self._processes() if _is_worker(child)]

    def front(self) -> list[psutil.Process]:
        """The processes that take requests and read bodies: all but the workers and the one that forks them."""
        return [process for process in self._processes() if not (_is_worker(process) or _forks(process))]

    def wait_for_workers(self) -> float:
        """Seconds until all workers are there."""
        start = time.monotonic()
        with self.caller() as caller:
            while True:
                answer = caller.get("/readyz")
                if answer.status and json.loads(answer.body).get("workers") == self._workers:
                    return time.monotonic() - start
                if time.monotonic() - start > _START_S:
                    raise TimeoutError(f"the server is not ready: {answer.body!r}")
                time.sleep(_READY_S)

    def rest(self) -> None:
        """Wait until nothing is to be done any more, such as to start the worker that stands by."""
        end = time.monotonic() + _START_S
        before, after = -float("inf"), cpu_s(self._processes())
        while after - before > _AT_REST * _LOOK_S and time.monotonic() < end:
            time.sleep(_LOOK_S)
            before, after = after, cpu_s(self._processes())

    def resident_bytes(self) -> int:
        """Resident memory of all its processes."""
        return sum(process.memory_info().rss for process in self._processes())

    def descriptors(self) -> int:
        """Open descriptors of all its processes."""
        return sum(process.num_fds() for process in self._processes())

    @property
    def _log_path(self) -> Path:
        return Path(self._folder.name, "log")

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """What they have taken of the processor."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _is_worker(process: psutil.Process) -> bool:
    """Whether it was spawned, or forked by the process that does that alone."""
    try:
        parent = process.parent()
        forked = parent is not None and _forks(parent)
        return forked or "spawn_main" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def _forks(process: psutil.Process) -> bool:
    """Whether it is the process that forks workers, or one of them, which shows the same command."""
    try:
        return _FORKS in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def _make_keys(store: str, names: Sequence[str]) -> dict[str, str]:
    """Tokens by name."""
    if not names:
        return {}
    tokens = {name: new_token() for name in names}
    with closing(Store(Settings(), store)) as opened:
        for name, token in tokens.items():
            opened.add_key(new_key(name, token))
    return tokens
