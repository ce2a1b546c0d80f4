from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, final

import httpx
import pytest

from convexlayer.cli import main
from convexlayer.solvers.registry import available
from convexlayer_server import Settings, commands
from convexlayer_server.store import Store, StoredProblem

from .running import Wire, eventually, running

ROOT = Path(__file__).parents[2]


def test_solvers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solvers"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["solver", "package", "installed", "quadratic", "cones"]
    assert [row.split()[0] for row in rows] == [info.name for info in available()]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_public_addresses_without_keys_are_refused(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", host]) == 2
    assert "--insecure" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["dance"], ["serve", "--port", "99999"], ["serve", "--port", "x"]])
def test_invalid_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert "usage: convexlayer" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["x", "-1", "65536", "8000.0"])
def test_invalid_ports_are_explained(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", f"--port={port}"])
    assert f"argument --port: expected a port from 0 to 65535, got {port!r}" in capsys.readouterr().err


@final
class Served:
    """``convexlayer serve`` in another process, on a public address, with a first key, without compiled kernels.

    Attributes:
        url: its address.
        token: the token of its first key.
        log: the file with what it logs.
    """

    def __init__(self, folder: Path) -> None:
        self.token, self.log = secrets.token_hex(32), folder / "log"
        (folder / "key").write_text(f"{self.token}\n")
        command = [sys.executable, "-m", "convexlayer.cli", "serve", "--host", "0.0.0.0", "--port", "0"]
        environment = {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server")]),
            "CONVEXLAYER_FIRST_KEY_FILE": str(folder / "key"),
            "CONVEXLAYER_COMPILE": "never",
        }
        with open(self.log, "w") as log:
            self._process = subprocess.Popen(
                [*command, "--workers", "1", "--store", str(folder / "store.sqlite")],
                env=os.environ | environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=log,
                preexec_fn=None if sys.platform == "win32" else allow_few_file_descriptors,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("listening on http://0.0.0.0:"), line
        self.url = line.split()[-1].replace("0.0.0.0", "127.0.0.1")

    def status(self, path: str, token: str = "none") -> int:
        """Status of the response to a request with a token."""
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {token}"}, timeout=600).status_code

    def logged(self) -> list[dict[str, Any]]:
        """The records that it has logged."""
        lines = self.log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def close(self) -> None:
        """Interrupt it, as the keyboard does."""
        self._process.send_signal(signal.SIGINT)
        try:
            assert self._process.wait(timeout=600) in (0, -signal.SIGINT)
        finally:
            self._process.kill()
            self._process.communicate()


def allow_few_file_descriptors() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (160, 256))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    while served.status("/readyz") != 200:
        time.sleep(0.1)
    yield served
    served.close()


def test_serve(served: Served) -> None:
    assert served.status("/healthz") == 200
    assert served.status("/v1/problems") == 401
    assert served.status("/v1/problems", served.token) == 200

    def answered() -> list[dict[str, Any]]:
        return [line for line in served.logged() if line.get("route") == "/v1/problems" and line["status"] == 200]

    eventually(answered)  # a line is written after its response
    assert [line["client"] for line in answered()] == ["127.0.0.1"]


def test_workers_without_compiled_kernels_warn(served: Served) -> None:
    shown = httpx.get(f"{served.url}/readyz", timeout=600).json()
    assert (shown["kernels"], shown["kernels_reason"]) == ("portable", "CONVEXLAYER_COMPILE is never")
    said = [line for line in served.logged() if "portable kernels" in line["message"]]
    assert said
    assert {line["level"] for line in said} == {"WARNING"}
    assert all("CONVEXLAYER_COMPILE is never" in line["message"] for line in said)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_few_file_descriptors(served: Served) -> None:
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(Wire(int(served.url.rpartition(":")[2])))
        assert [served.status("/healthz") for _ in range(20)] == [200] * 20


def test_an_invisible_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--device", "cuda:99"]) == 2
    assert re.search(r"(no GPU is|GPUs are) visible", capsys.readouterr().err)


def test_a_public_address_with_a_first_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, token = str(tmp_path / "store.sqlite"), secrets.token_hex(32)
    (tmp_path / "key").write_text(f"{token}\n")
    statuses: list[list[int]] = []

    def serve_on(listener: socket.socket, host: str, settings: Settings, opened: Store) -> None:
        with running(store=opened) as server:
            authorised = server.ask("GET", "/v1/problems", Authorization=f"Bearer {token}")
            statuses.append([server.ask("GET", path).status for path in ("/healthz", "/v1/problems")])
            statuses[-1].append(authorised.status)

    monkeypatch.setattr(commands, "_serve_on", serve_on)  # on a thread of this process
    given = [{"CONVEXLAYER_FIRST_KEY_FILE": str(tmp_path / "key")}, {"CONVEXLAYER_FIRST_KEY": token}, {}]
    for environment in given:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert main(["serve", "--host", "0.0.0.0", "--port", "0", "--store", store]) == 0
    assert statuses == [[200, 401, 200]] * 3


def test_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(tmp_path / "store.sqlite")]
    assert main(["keys", "create", "Group A", "--requests-per-minute", "60", *store]) == 0
    token = capsys.readouterr().out.strip()
    assert main(["keys", "list", *store]) == 0
    listed = capsys.readouterr().out
    header, row = listed.splitlines()
    assert header.split()[:2] == ["key", "name"]
    assert "Group A" in row
    assert row.split()[-1] == "60"
    assert token not in listed
    assert main(["keys", "revoke", row.split()[0], *store]) == 0
    assert main(["keys", "revoke", row.split()[0], *store]) == 2
    assert "keys list" in capsys.readouterr().err
    assert main(["keys", "list", *store]) == 0
    assert len(capsys.readouterr().out.splitlines()[1].split()) == len(row.split()) + 1


def test_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, copy = ["--store", str(tmp_path / "store.sqlite")], str(tmp_path / "copy.sqlite")
    assert main(["store", "backup", copy, *store]) == 2
    assert main(["keys", "create", "a", *store]) == 0
    assert main(["store", "backup", copy, *store]) == 0
    assert main(["store", "backup", copy, *store]) == 2
    assert main(["keys", "create", "b", *store]) == 0
    assert main(["store", "restore", copy, *store]) == 0
    capsys.readouterr()
    assert main(["keys", "list", *store]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3  # keys that were created since the backup stay


def test_messages_about_a_new_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "store.sqlite"
    with closing(Store(Settings(), path)) as store:
        for name in ("p_1", "p_2"):
            store.put("", StoredProblem(b"{}", {"id": name}))
    create = ["keys", "create", "--store", str(path)]
    for name in ("", "  ", "a\nb", "x" * 101, "\u200b"):
        assert main([*create, name]) == 2
        assert "name its owner" in capsys.readouterr().err
    assert main([*create, " Group A "]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "2 problems that were registered without a key now belong to this key"
    assert said[1].endswith(" (Group A); its token is not shown again:")
    assert main([*create, "Group A"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("k_")
    assert "has the same name" in said[0]
    assert len(said) == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_invalid_settings(tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(tmp_path / "store.sqlite")]
    (tmp_path / "settings.toml").write_text("max_batch = 0")
    assert main(["serve", "--host", host, "--settings", str(tmp_path / "settings.toml"), *store]) == 2
    assert "max_batch" in capsys.readouterr().err
    assert main(["serve", "--host", host, "--device", "abacus", *store]) == 2
    assert "CONVEXLAYER_DEVICE" in capsys.readouterr().err


def test_invalid_first_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", str(tmp_path / "store.sqlite")]
    monkeypatch.setenv("CONVEXLAYER_FIRST_KEY", "password")
    assert main(["serve", *store]) == 2
    assert "openssl" in capsys.readouterr().err
    monkeypatch.setenv("CONVEXLAYER_FIRST_KEY_FILE", str(tmp_path / "none"))
    assert main(["serve", *store]) == 2
    assert "cannot be read" in capsys.readouterr().err
