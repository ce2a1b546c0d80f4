"""A package with one part, whose compilations are counted."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from convexlayer.runtime import kernel_cache
from convexlayer.runtime.cpu_target import VARIABLES


class FakePart(types.ModuleType):
    """A part that counts its compilations."""

    compilations = 0

    def warm_up(self, *_: str) -> None:
        self.compilations += 1
        folder = kernel_cache.folder("linalg")
        if folder is not None:
            folder.mkdir(exist_ok=True)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakePart]:
    """A package with one part and an empty cache, before the process has decided."""
    package = tmp_path / "package"
    (package / "linalg").mkdir(parents=True)
    (package / "linalg" / "kernels.py").write_text("first")
    module = FakePart("a_part_with_kernels")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kernel_cache, "PACKAGE", package)
    monkeypatch.setattr(kernel_cache, "PARTS", {"linalg": module.__name__})
    monkeypatch.setattr(kernel_cache, "SHARES", (("linalg",), ("cones",)))
    monkeypatch.setattr(kernel_cache, "_processes", lambda: 0)  # this process compiles
    monkeypatch.setattr(subprocess, "Popen", no_process)
    monkeypatch.setattr(os, "nice", lambda increment: increment, raising=False)  # this process keeps its priority
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    for name in (kernel_cache.SETTING, *VARIABLES):
        monkeypatch.delenv(name, raising=False)
    decision = list(kernel_cache._decision)
    new_process()
    yield module
    new_process()
    kernel_cache._decision[:] = decision


def new_process() -> None:
    """Reset the state of a process."""
    kernel_cache._decision.clear()
    for remembered in (kernel_cache._place, kernel_cache._name, kernel_cache._prefix):
        remembered.cache_clear()


def no_process(*_: object, **__: object) -> None:
    raise AssertionError("a process was started")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Numba's target variables of the background compilations that were started."""
    begun: list[dict[str, str]] = []

    class Process:
        def __init__(self, command: object, *, env: dict[str, str], **_: object) -> None:
            begun.append({name: env[name] for name in VARIABLES if name in env})

        def wait(self) -> None:
            pass

    monkeypatch.setattr(subprocess, "Popen", Process)
    return begun
