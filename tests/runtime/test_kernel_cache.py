"""Kernel cache: when compiled kernels are used, and which process compiles them."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import json
import logging
import os
import subprocess
import sys
import tokenize
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convexlayer import cli
from convexlayer.runtime import cpu_target, kernel_cache
from convexlayer.runtime.file_lock import locked

from .conftest import FakePart, new_process

LAYER = """
import json, subprocess, sys
import cvxpy as cp, torch
import convexlayer
from convexlayer.runtime import kernel_cache

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
    if name.startswith(tuple(f"convexlayer.{part}." for part in kernel_cache.PARTS)):
        for key, kernel in vars(module).items():
            if hasattr(kernel, "nopython_signatures") and kernel.stats.cache_path:
                hits[key], misses[key] = len(kernel.stats.cache_hits), len(kernel.stats.cache_misses)
print(json.dumps({"ready": kernel_cache.ready(), "started": len(started), "answers": answers, "hits": hits,
                  "misses": misses, "kernels": "convexlayer.linalg.ldl.kernels" in sys.modules}))
"""


def run_layer(**environment: str) -> dict[str, Any]:
    """Solutions and gradients of a layer, computed in a separate process."""
    command = [sys.executable, "-W", "ignore", "-c", LAYER]
    run = subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True, timeout=600)
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def test_the_first_process_does_not_wait_and_later_ones_give_the_same_results(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(("part", "module"), kernel_cache.PARTS.items())
def test_warming_up_calls_every_kernel_of_a_part(part: str, module: str) -> None:
    """It takes all machine code from the cache, which compiling in the same way has filled."""
    if not kernel_cache.ready():
        pytest.skip("this process uses no kernels")
    for name, *arguments in kernel_cache.SHARES:
        if name == part:
            importlib.import_module(module).warm_up(*arguments)
    kernels = {
        f"{name}.{key}": kernel
        for name, loaded in sys.modules.items()
        if name.startswith(f"convexlayer.{part}.")
        for key, kernel in vars(loaded).items()
        if hasattr(kernel, "nopython_signatures") and inspect.getsource(kernel.py_func).startswith("@cached_kernel")
    }
    assert kernels
    for name, kernel in kernels.items():
        assert kernel.stats.cache_hits, name
        assert not kernel.stats.cache_misses, name


def test_compiled_kernels_are_ready_in_later_processes(part: FakePart) -> None:
    kernel_cache.prepare(wait=True)
    assert kernel_cache.ready()
    new_process()
    assert kernel_cache.ready()
    kernel_cache.prepare(wait=True)
    kernel_cache.prepare(wait=False)
    assert part.compilations == 1


def test_a_process_does_not_change_its_path(part: FakePart, started: list[dict[str, str]]) -> None:
    assert not kernel_cache.ready()
    kernel_cache.compile_in_background()  # as another process would
    assert not kernel_cache.ready()
    assert len(started) == 1
    new_process()
    assert kernel_cache.ready()


def test_prepare_makes_this_process_ready(part: FakePart, started: list[dict[str, str]]) -> None:
    assert not kernel_cache.ready()
    kernel_cache.prepare(wait=True)
    assert kernel_cache.ready()


def test_only_one_process_compiles_at_a_time(part: FakePart, started: list[dict[str, str]]) -> None:
    base, _ = kernel_cache._place()
    assert base is not None
    with locked(base, wait=False) as mine:
        assert mine
        assert not kernel_cache.ready()
        kernel_cache.prepare(wait=False)
        kernel_cache.compile_in_background()
    assert not started
    assert part.compilations == 0
    kernel_cache.prepare(wait=False)
    assert len(started) == 1


def test_a_process_waits_for_another_that_compiles(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = kernel_cache._place()
    assert base is not None
    other = ExitStack()
    other.enter_context(locked(base, wait=False))
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        assert part.compilations == 0
        other.close()

    monkeypatch.setattr("convexlayer.runtime.file_lock.time.sleep", sleep)
    kernel_cache.prepare(wait=True)
    assert len(waited) == 1
    assert part.compilations == 1


def test_only_incomplete_parts_are_compiled(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_cache.prepare(wait=True)
    later = FakePart("another_part_with_kernels")
    monkeypatch.setattr(later, "warm_up", lambda: kernel_cache.folder("cones").mkdir())
    monkeypatch.setitem(sys.modules, later.__name__, later)
    monkeypatch.setitem(kernel_cache.PARTS, "cones", later.__name__)
    new_process()
    assert not kernel_cache.is_complete()
    kernel_cache.prepare(wait=True)
    assert kernel_cache.is_complete()
    assert part.compilations == 1


def test_machine_code_of_other_sources_is_removed(part: FakePart, started: list[dict[str, str]]) -> None:
    kernel_cache.prepare(wait=True)
    old = kernel_cache.folder("linalg")
    (kernel_cache.PACKAGE / "linalg" / "kernels.py").write_text("second")
    new_process()
    assert not kernel_cache.ready()
    kernel_cache.prepare(wait=True)
    new = kernel_cache.folder("linalg")
    assert old is not None
    assert new is not None
    assert new.exists()
    assert not old.exists()
    assert part.compilations == 2


def test_a_part_whose_folder_another_process_removed_stays_incomplete(
    part: FakePart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has the machine code in memory saves none, so that there is no folder."""
    monkeypatch.setattr(part, "warm_up", lambda: None)
    kernel_cache.prepare(wait=True)
    assert kernel_cache.ready()
    assert not kernel_cache.is_complete()


def test_docstrings_and_comments_do_not_invalidate_the_cache(part: FakePart) -> None:
    target, path = cpu_target.Target(), kernel_cache.PACKAGE / "linalg" / "kernels.py"
    path.write_text('def f():\n    """One."""\n    return 1  # one\n')
    new_process()
    name = kernel_cache._name("linalg", target)
    path.write_text('def f():\n    """Returns 1,\n\n    always."""\n\n    return 1\n')
    new_process()
    assert kernel_cache._name("linalg", target) == name
    path.write_text('def f():\n    """One."""\n    return 2  # one\n')
    new_process()
    assert kernel_cache._name("linalg", target) != name


@pytest.mark.parametrize("part", list(kernel_cache.PARTS))
def test_what_does_not_count_is_documentation(part: str) -> None:
    """Triple quotes enclose docstrings alone, and no string contains a hash: the hash of the sources relies on both."""
    for path in (kernel_cache.PACKAGE / part).rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        documentation = {
            node.value.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        }
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.STRING and token.string.startswith(('"""', "'''")):
                assert token.start[0] in documentation, f"{path}:{token.start[0]}"
                assert token.string.startswith('"""')
            elif token.type == tokenize.STRING:
                assert "#" not in token.string, f"{path}:{token.start[0]}"


def test_a_part_depends_on_those_before_it(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernel_cache.PARTS, "interior_point", part.__name__)
    target = cpu_target.Target()
    names = [kernel_cache._name(name, target) for name in kernel_cache.PARTS]
    (kernel_cache.PACKAGE / "interior_point").mkdir()
    (kernel_cache.PACKAGE / "interior_point" / "loop.py").write_text("more")
    new_process()
    assert kernel_cache._name("linalg", target) == names[0]
    assert kernel_cache._name("interior_point", target) != names[1]
    (kernel_cache.PACKAGE / "linalg" / "lanes.py").write_text("more")
    new_process()
    assert kernel_cache._name("linalg", target) != names[0]


def test_every_part_depends_on_the_shared_sources(
    part: FakePart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, shared = cpu_target.Target(), tmp_path / "shared.py"
    shared.write_text("first")
    monkeypatch.setattr(kernel_cache, "SHARED_SOURCES", (*kernel_cache.SHARED_SOURCES, shared))
    new_process()
    name = kernel_cache._name("linalg", target)
    shared.write_text("second")
    new_process()
    assert kernel_cache._name("linalg", target) != name


def test_no_writable_cache_folder(
    part: FakePart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "folder"))
    with caplog.at_level(logging.WARNING):
        assert not kernel_cache.ready()
        assert not kernel_cache.ready()
    assert len(caplog.records) == 1
    assert "NUMBA_CACHE_DIR" in caplog.text
    kernel_cache.prepare(wait=True)
    assert kernel_cache.ready()  # compiled in memory by this process
    assert part.compilations == 1


def test_setting_never(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_cache.prepare(wait=True)
    new_process()
    monkeypatch.setenv(kernel_cache.SETTING, "never")
    assert not kernel_cache.ready()
    assert kernel_cache.status().reason == "CONVEXLAYER_COMPILE is never"


def test_without_numbas_compiler_no_kernels_are_used(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_cache.prepare(wait=True)
    new_process()
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert not kernel_cache.ready()
    assert kernel_cache.status().reason == "NUMBA_DISABLE_JIT is set"


def test_setting_wait(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernel_cache.SETTING, "wait")
    assert kernel_cache.ready()
    assert part.compilations == 1


def test_invalid_setting_raises(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernel_cache.SETTING, "sometimes")
    with pytest.raises(ValueError, match="one of background, wait, never, got 'sometimes'"):
        kernel_cache.ready()


def test_a_frozen_program_does_not_compile_in_the_background(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not kernel_cache.ready()
    assert "interpreter" in kernel_cache.status().reason


def test_a_server_detects_that_the_cache_is_complete(part: FakePart, started: list[dict[str, str]]) -> None:
    assert kernel_cache.status().path == "portable"
    assert "in the background" in kernel_cache.status().reason
    assert not kernel_cache.is_complete()
    kernel_cache.compile_in_background()  # as another process would
    assert kernel_cache.is_complete()
    assert kernel_cache.status().path == "portable"
    kernel_cache.reset()  # as a forked worker does
    assert kernel_cache.status().path == "compiled"
    assert len(started) == 1


def test_compile_command(part: FakePart, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile"]) == 0
    assert str(kernel_cache.folder("linalg")) in capsys.readouterr().out
    assert part.compilations == 1


def test_compile_command_without_a_writable_cache_folder(
    part: FakePart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert cli.main(["compile"]) == 2
    assert "NUMBA_CACHE_DIR" in capsys.readouterr().err
