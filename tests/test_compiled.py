"""Compiled kernels: when they are used, who compiles them, and that nobody waits."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convexlayer import cli, compiled, processor
from convexlayer.processor import LEVELS, VARIABLES

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
    for name in (compiled.SETTING, *VARIABLES):
        monkeypatch.delenv(name, raising=False)
    decision = list(compiled._decision)
    new_process()
    yield module
    new_process()
    compiled._decision[:] = decision


def new_process() -> None:
    """Forget what a process remembers."""
    compiled._decision.clear()
    for remembered in (compiled._place, compiled._name, compiled._prefix):
        remembered.cache_clear()


def no_process(*_: object, **__: object) -> None:
    raise AssertionError("a process was started")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What the compilations that were begun in other processes ask numba for."""
    begun: list[dict[str, str]] = []

    class Process:
        def __init__(self, command: object, *, env: dict[str, str], **_: object) -> None:
            begun.append({name: env[name] for name in VARIABLES if name in env})

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


def test_a_process_stays_with_what_it_began_with(part: FakePart, started: list[dict[str, str]]) -> None:
    assert not compiled.ready()
    compiled.compile_at_leisure()  # as another process does meanwhile
    assert not compiled.ready()
    assert len(started) == 1
    new_process()
    assert compiled.ready()


def test_preparing_makes_this_process_ready(part: FakePart, started: list[dict[str, str]]) -> None:
    assert not compiled.ready()
    compiled.prepare(wait=True)
    assert compiled.ready()


def test_one_process_compiles_at_a_time(part: FakePart, started: list[dict[str, str]]) -> None:
    base, _ = compiled._place()
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


def test_machine_code_of_other_sources_is_not_used_and_removed(part: FakePart, started: list[dict[str, str]]) -> None:
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
    target = processor.Target()
    names = [compiled._name(name, target) for name in compiled.PARTS]
    (compiled.PACKAGE / "engine").mkdir()
    (compiled.PACKAGE / "engine" / "loop.py").write_text("more")
    new_process()
    assert compiled._name("linalg", target) == names[0]
    assert compiled._name("engine", target) != names[1]
    (compiled.PACKAGE / "linalg" / "lanes.py").write_text("more")
    new_process()
    assert compiled._name("linalg", target) != names[0]


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
    assert compiled.status().reason == "CONVEXLAYER_COMPILE is never"


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
    assert "interpreter" in compiled.status().reason


def test_a_server_learns_when_workers_that_start_afresh_are_faster(
    part: FakePart, started: list[dict[str, str]]
) -> None:
    assert compiled.status().path == "portable"
    assert "in the background" in compiled.status().reason
    assert not compiled.is_complete()
    compiled.compile_at_leisure()  # as another process does meanwhile
    assert compiled.is_complete()
    assert compiled.status().path == "portable"
    compiled.forget()  # as a worker forked from this process does
    assert compiled.status().path == "compiled"
    assert len(started) == 1


@pytest.fixture
def on(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A new process on a processor of this level, before numba is imported, whose environment asks for a target."""

    def begin(level: str, name: str | None = None, features: str = "") -> None:
        new_process()
        monkeypatch.setattr(processor, "features", lambda: LEVELS[level] | {"sse"})
        monkeypatch.setattr(processor, "_host", lambda: f"one of {level}")
        monkeypatch.delitem(sys.modules, "numba", raising=False)
        for variable, value in zip(VARIABLES, (name, None if name is None else features), strict=True):
            if value is None:
                monkeypatch.delenv(variable, raising=False)
            else:
                monkeypatch.setenv(variable, value)

    return begin


@pytest.mark.parametrize(("level", "used"), [("x86-64-v4", "x86-64-v3"), ("x86-64-v3", "x86-64-v3")])
def test_machine_code_for_the_highest_level_of_the_processor_is_used(on: Any, level: str, used: str) -> None:
    for name in ("x86-64-v2", "x86-64-v3"):
        on(level, name)
        compiled.prepare(wait=True)
    on(level)
    assert compiled.status() == compiled.Kernels("compiled", used, f"machine code for {used} is there")
    assert [os.environ[variable] for variable in VARIABLES] == [used, ""]  # numba, imported later, looks for the same


def test_kernels_are_imported_after_numba_was_told_of_their_processor(
    on: Any, part: FakePart, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on("x86-64-v3", "x86-64-v2")
    compiled.prepare(wait=True)
    on("x86-64-v3")
    monkeypatch.delitem(sys.modules, part.__name__)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{part.__name__}.py").write_text("import os\ntold = os.environ['NUMBA_CPU_NAME']")
    compiled.load()
    assert sys.modules[part.__name__].told == "x86-64-v2"
    assert compiled.status().path == "compiled"


def test_machine_code_for_this_very_processor_goes_before_that_for_a_level(on: Any) -> None:
    for name in (None, "x86-64-v3"):
        on("x86-64-v3", name)
        compiled.prepare(wait=True)
    on("x86-64-v3")
    assert compiled.status().processor == "one of x86-64-v3"
    assert not os.environ.keys() & set(VARIABLES)


def test_a_processor_that_lacks_instructions_takes_the_level_below(on: Any, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("x86-64-v2", "x86-64-v3"):
        on("x86-64-v3", name)
        compiled.prepare(wait=True)
    assert not caplog.records
    on("x86-64-v2")
    assert compiled.status().processor == "x86-64-v2"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "machine code for x86-64-v3 is not used: this processor, one of x86-64-v2, lacks avx, avx2" in caplog.text


@pytest.mark.parametrize("asked", [("x86-64-v3", ""), ("x86-64-v2", "+fma"), ("generic", "+avx2,-fma"), None])
def test_machine_code_that_the_processor_could_not_run_is_never_used(
    on: Any, part: FakePart, started: list[dict[str, str]], asked: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither where it is there nor where the environment asks for it: this processor's own is made instead."""
    on("x86-64-v3", *(asked or ("x86-64-v3", "")))
    compiled.prepare(wait=True)
    on("x86-64-v2", *(asked or ()))
    assert compiled.status().path == "portable"
    assert started == [{}]
    assert "is not used: this processor, one of x86-64-v2, lacks" in caplog.text
    on("x86-64-v2")
    compiled.compile_at_leisure()  # what was started
    assert part.compilations == 2
    on("x86-64-v2", *(asked or ()))
    assert compiled.status().processor == "one of x86-64-v2"
    assert not os.environ.keys() & set(VARIABLES)


def test_numba_that_was_imported_cannot_be_told_of_another_processor(
    on: Any, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, str]]
) -> None:
    on("x86-64-v3", "x86-64-v3")
    compiled.prepare(wait=True)
    on("x86-64-v3")
    monkeypatch.setitem(sys.modules, "numba", types.ModuleType("numba"))
    assert compiled.status().path == "portable"  # its own is made, as where there is no code for a level
    assert started == [{}]
    on("x86-64-v2", "x86-64-v3")
    monkeypatch.setitem(sys.modules, "numba", types.ModuleType("numba"))
    assert compiled.status().reason == "numba was imported before, for x86-64-v3"


def test_what_this_processor_can_do_is_known() -> None:
    """As the kernel says it, where it does."""
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        pytest.skip("there is no /proc/cpuinfo")
    for ours, theirs in (("sse4.2", "sse4_2"), ("avx2", "avx2"), ("bmi2", "bmi2"), ("avx512f", "avx512f")):
        assert (ours in processor.features()) == (theirs in words)


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
