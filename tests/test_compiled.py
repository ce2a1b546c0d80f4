"""Compiled kernels: when they are used, who compiles them, and that nobody waits."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convexlayer import cli, compiled

LAYER = """
import json, subprocess, sys
import cvxpy as cp, torch
import convexlayer
from convexlayer import compiled

started = []
popen = subprocess.Popen
def start(command, **options):
    started.append(command)
    return popen([sys.executable, "-c", ""], **options)
subprocess.Popen = start

x, y = cp.Variable(5), cp.Parameter(5)
problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y) + cp.norm1(x)), [x >= -1, cp.sum(x) == 1])
layer = convexlayer.ConvexLayer(problem, [y], [x])
answers = []
for batch in (1, 200):
    value = torch.linspace(-1, 1, 5 * batch, dtype=torch.float64).reshape(batch, 5).requires_grad_()
    found = layer(value)[0]
    (found**3).sum().backward()
    answers += [found.tolist(), value.grad.tolist()]

hits, misses = {}, {}
for name, module in list(sys.modules.items()):
    if name.startswith(tuple(f"convexlayer.{part}." for part in compiled.PARTS)):
        for key, kernel in vars(module).items():
            if hasattr(kernel, "nopython_signatures") and kernel.stats.cache_path:
                hits[key], misses[key] = len(kernel.stats.cache_hits), len(kernel.stats.cache_misses)
print(json.dumps({"ready": compiled.ready(), "started": len(started), "answers": answers, "hits": hits,
                  "misses": misses, "kernels": "convexlayer.linalg.kernels" in sys.modules}))
"""


def run_layer(**environment: str) -> dict[str, Any]:
    """A layer's answers and gradients in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", LAYER]
    run = subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True, timeout=600)
    result: dict[str, Any] = json.loads(run.stdout)
    return result


class FakePart(types.ModuleType):
    """A part whose compilation is counted."""

    compilations = 0

    def warm_up(self) -> None:
        self.compilations += 1
        folder = compiled.folder("linalg")
        if folder is not None:
            folder.mkdir(exist_ok=True)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakePart]:
    """In a package of one part, with an empty cache, and nothing decided yet."""
    package = tmp_path / "package"
    (package / "linalg").mkdir(parents=True)
    (package / "linalg" / "kernels.py").write_text("first")
    module = FakePart("a_part_with_kernels")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(compiled, "PACKAGE", package)
    monkeypatch.setattr(compiled, "PARTS", {"linalg": module.__name__})
    monkeypatch.setattr(compiled.subprocess, "Popen", no_process)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(compiled.SETTING, raising=False)
    decision = list(compiled._decision)
    new_process()
    yield module
    new_process()
    compiled._decision[:] = decision


def new_process() -> None:
    """Forget what a process remembers."""
    compiled._decision.clear()
    for remembered in (compiled._base, compiled._name, compiled._prefix):
        remembered.cache_clear()


def no_process(*_: object, **__: object) -> None:
    raise AssertionError("a process was started")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The compilations that were begun in other processes."""
    begun: list[object] = []

    class Process:
        def __init__(self, command: object, **_: object) -> None:
            begun.append(command)

        def wait(self) -> None:
            pass

    monkeypatch.setattr(compiled.subprocess, "Popen", Process)
    return begun


def test_the_first_call_of_all_does_not_wait_and_later_processes_give_the_same_answers(tmp_path: Path) -> None:
    first = run_layer(NUMBA_CACHE_DIR=str(tmp_path), CONVEXLAYER_COMPILE="background")
    assert not first["ready"]
    assert not first["kernels"]
    assert first["started"] == 1
    later = run_layer(CONVEXLAYER_COMPILE="background")
    assert later["ready"]
    assert later["kernels"]
    assert later["started"] == 0
    for ours, theirs in zip(first["answers"], later["answers"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-8)
    assert later["hits"]
    assert not any(later["misses"].values()), later["misses"]


def test_what_is_compiled_is_ready_for_every_later_process(part: FakePart) -> None:
    compiled.prepare(wait=True)
    assert compiled.ready()
    new_process()
    assert compiled.ready()
    compiled.prepare(wait=True)
    compiled.prepare(wait=False)
    assert part.compilations == 1


def test_a_process_stays_with_what_it_began_with(part: FakePart, started: list[object]) -> None:
    assert not compiled.ready()
    compiled.compile_at_leisure()  # as another process does meanwhile
    assert not compiled.ready()
    assert len(started) == 1
    new_process()
    assert compiled.ready()


def test_preparing_makes_this_process_ready(part: FakePart, started: list[object]) -> None:
    assert not compiled.ready()
    compiled.prepare(wait=True)
    assert compiled.ready()


def test_one_process_compiles_at_a_time(part: FakePart, started: list[object]) -> None:
    base = compiled._base()
    assert base is not None
    with compiled._locked(base, wait=False) as mine:
        assert mine
        assert not compiled.ready()
        compiled.prepare(wait=False)
        compiled.compile_at_leisure()
    assert not started
    assert part.compilations == 0
    compiled.prepare(wait=False)
    assert len(started) == 1


def test_machine_code_of_other_sources_is_not_used_and_removed(part: FakePart, started: list[object]) -> None:
    compiled.prepare(wait=True)
    old = compiled.folder("linalg")
    (compiled.PACKAGE / "linalg" / "kernels.py").write_text("second")
    new_process()
    assert not compiled.ready()
    compiled.prepare(wait=True)
    new = compiled.folder("linalg")
    assert old is not None
    assert new is not None
    assert new.exists()
    assert not old.exists()
    assert part.compilations == 2


def test_a_part_depends_on_those_before_it(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compiled.PARTS, "engine", part.__name__)
    names = [compiled._name(name) for name in compiled.PARTS]
    (compiled.PACKAGE / "engine").mkdir()
    (compiled.PACKAGE / "engine" / "loop.py").write_text("more")
    new_process()
    assert compiled._name("linalg") == names[0]
    assert compiled._name("engine") != names[1]
    (compiled.PACKAGE / "linalg" / "lanes.py").write_text("more")
    new_process()
    assert compiled._name("linalg") != names[0]


def test_nothing_can_be_written(
    part: FakePart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "folder"))
    with caplog.at_level(logging.WARNING):
        assert not compiled.ready()
        assert not compiled.ready()
    assert len(caplog.records) == 1
    assert "NUMBA_CACHE_DIR" in caplog.text
    compiled.prepare(wait=True)
    assert compiled.ready()  # this process has compiled them in memory
    assert part.compilations == 1


def test_never(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled.prepare(wait=True)
    new_process()
    monkeypatch.setenv(compiled.SETTING, "never")
    assert not compiled.ready()


def test_wait(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.SETTING, "wait")
    assert compiled.ready()
    assert part.compilations == 1


def test_a_setting_that_does_not_exist(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.SETTING, "sometimes")
    with pytest.raises(ValueError, match="one of background, wait, never, got 'sometimes'"):
        compiled.ready()


def test_a_frozen_program_starts_no_interpreter(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not compiled.ready()


def test_command(part: FakePart, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile"]) == 0
    assert str(compiled.folder("linalg")) in capsys.readouterr().out
    assert part.compilations == 1


def test_command_where_nothing_can_be_kept(
    part: FakePart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert cli.main(["compile"]) == 2
    assert "NUMBA_CACHE_DIR" in capsys.readouterr().err
