"""Kernel cache: machine code for this processor, or for a level that it supports."""

from __future__ import annotations

import logging
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convexlayer.runtime import cpu_target, kernel_cache
from convexlayer.runtime.cpu_target import LEVELS, VARIABLES

from .conftest import FakePart, new_process


@pytest.fixture
def on(part: FakePart, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A new process on a processor of this level, before Numba is imported, with a target in its environment."""

    def begin(level: str, name: str | None = None, features: str = "") -> None:
        new_process()
        monkeypatch.setattr(cpu_target, "features", lambda: LEVELS[level] | {"sse"})
        monkeypatch.setattr(cpu_target, "_host", lambda: f"one of {level}")
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
        kernel_cache.prepare(wait=True)
    on(level)
    assert kernel_cache.status() == kernel_cache.Kernels("compiled", used, f"the cache has machine code for {used}")
    assert [os.environ[variable] for variable in VARIABLES] == [used, ""]  # Numba, imported later, has the same target


def test_kernels_are_imported_after_numbas_target_is_set(
    on: Any, part: FakePart, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on("x86-64-v3", "x86-64-v2")
    kernel_cache.prepare(wait=True)
    on("x86-64-v3")
    monkeypatch.delitem(sys.modules, part.__name__)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{part.__name__}.py").write_text("import os\ntold = os.environ['NUMBA_CPU_NAME']")
    kernel_cache.load()
    assert sys.modules[part.__name__].told == "x86-64-v2"
    assert kernel_cache.status().path == "compiled"


def test_machine_code_for_this_processor_is_preferred_to_a_level(on: Any) -> None:
    for name in (None, "x86-64-v3"):
        on("x86-64-v3", name)
        kernel_cache.prepare(wait=True)
    on("x86-64-v3")
    assert kernel_cache.status().processor == "one of x86-64-v3"
    assert not os.environ.keys() & set(VARIABLES)


def test_a_processor_that_lacks_instructions_uses_the_level_below(on: Any, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("x86-64-v2", "x86-64-v3"):
        on("x86-64-v3", name)
        kernel_cache.prepare(wait=True)
    assert not caplog.records
    on("x86-64-v2")
    assert kernel_cache.status().processor == "x86-64-v2"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "machine code for x86-64-v3 is not used: this processor, one of x86-64-v2, lacks avx, avx2" in caplog.text


@pytest.mark.parametrize("asked", [("x86-64-v3", ""), ("x86-64-v2", "+fma"), ("generic", "+avx2,-fma"), None])
def test_machine_code_with_unsupported_instructions_is_never_used(
    on: Any, part: FakePart, started: list[dict[str, str]], asked: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither from the cache nor by the environment; code for this processor is compiled instead."""
    on("x86-64-v3", *(asked or ("x86-64-v3", "")))
    kernel_cache.prepare(wait=True)
    on("x86-64-v2", *(asked or ()))
    assert kernel_cache.status().path == "portable"
    assert started == [{}]
    assert "is not used: this processor, one of x86-64-v2, lacks" in caplog.text
    on("x86-64-v2")
    kernel_cache.compile_in_background()  # the background compilation
    assert part.compilations == 2
    on("x86-64-v2", *(asked or ()))
    assert kernel_cache.status().processor == "one of x86-64-v2"
    assert not os.environ.keys() & set(VARIABLES)


def test_the_target_of_an_imported_numba_cannot_change(
    on: Any, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, str]]
) -> None:
    on("x86-64-v3", "x86-64-v3")
    kernel_cache.prepare(wait=True)
    on("x86-64-v3")
    monkeypatch.setitem(sys.modules, "numba", types.ModuleType("numba"))
    assert kernel_cache.status().path == "portable"  # code for this processor is compiled
    assert started == [{}]
    on("x86-64-v2", "x86-64-v3")
    monkeypatch.setitem(sys.modules, "numba", types.ModuleType("numba"))
    assert kernel_cache.status().reason == "Numba was already imported, with target x86-64-v3"


def test_features_of_this_processor() -> None:
    """Feature detection against /proc/cpuinfo, if it exists."""
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        pytest.skip("there is no /proc/cpuinfo")
    for ours, theirs in (("sse4.2", "sse4_2"), ("avx2", "avx2"), ("bmi2", "bmi2"), ("avx512f", "avx512f")):
        assert (ours in cpu_target.features()) == (theirs in words)
