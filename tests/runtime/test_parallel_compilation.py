"""Compilation in several processes at once, of a module that leaves a file for each share instead of compiling it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from convexlayer.runtime import kernel_cache
from convexlayer.runtime.parallel_compilation import compile_in_processes

from .conftest import FakePart

POPEN = subprocess.Popen

SHARES = (("linalg", "first"), ("linalg", "second"), ("linalg", "third"), ("linalg", "first", "again"))

MODULE = """
import os, pathlib

def warm_up(*arguments):
    if {fails}:
        os._exit(1)
    folder = pathlib.Path({folder!r})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{{os.getpid()}} {{' '.join(arguments)}}").touch()
"""


@pytest.fixture
def written(part: FakePart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module of the part, as new processes find it, with four shares for two processes."""
    monkeypatch.setattr(subprocess, "Popen", POPEN)
    monkeypatch.setattr(kernel_cache, "SHARES", SHARES)
    monkeypatch.setattr(kernel_cache, "_processes", lambda: 2)
    module = tmp_path / f"{part.__name__}.py"
    module.write_text(MODULE.format(folder=str(kernel_cache.folder("linalg")), fails=False))
    return module


def compiled() -> list[tuple[int, str]]:
    """Process and arguments of each share that another process compiled."""
    folder = kernel_cache.folder("linalg")
    assert folder is not None
    parts = (path.name.partition(" ") for path in folder.glob("* *"))
    return [(int(process), arguments) for process, _, arguments in parts]


def test_each_share_is_compiled_once_by_another_process(part: FakePart, written: Path) -> None:
    kernel_cache.prepare(wait=True)
    assert kernel_cache.is_complete()
    assert sorted(arguments for _, arguments in compiled()) == ["first", "first again", "second", "third"]
    processes = {process for process, _ in compiled()}
    assert 1 <= len(processes) <= 2
    assert os.getpid() not in processes
    assert part.compilations == 0


@pytest.mark.parametrize(("fails", "others"), [("arguments == ('second',)", 3), ("True", 0)], ids=["one", "all"])
def test_this_process_compiles_what_a_process_that_ends_early_leaves(
    part: FakePart, written: Path, fails: str, others: int
) -> None:
    written.write_text(MODULE.format(folder=str(kernel_cache.folder("linalg")), fails=fails))
    kernel_cache.prepare(wait=True)
    assert kernel_cache.is_complete()
    assert len(compiled()) == others
    assert part.compilations == len(SHARES) - others


def test_a_share_that_nobody_can_compile_raises(part: FakePart, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str) -> None:
        raise RuntimeError("no compiler")

    written.write_text(MODULE.format(folder=str(kernel_cache.folder("linalg")), fails="arguments == ('second',)"))
    monkeypatch.setattr(part, "warm_up", fail)
    with pytest.raises(RuntimeError, match="no compiler"):
        kernel_cache.prepare(wait=True)
    assert not kernel_cache.is_complete()


def test_a_process_continues_with_shares_of_the_same_arguments(part: FakePart, written: Path) -> None:
    shares = [(part.__name__, *arguments) for arguments in (["first"], ["second"], ["first"], ["second"], ["first"])]
    done = list(compile_in_processes(shares, 1, kernel_cache._start))
    assert [arguments for _, arguments in done] == ["first", "first", "first", "second", "second"]
    assert Counter(done) == Counter(shares)


@pytest.mark.parametrize(("frozen", "cores", "processes"), [(True, 8, 0), (False, 1, 1), (False, 64, 4)])
def test_number_of_processes(monkeypatch: pytest.MonkeyPatch, frozen: bool, cores: int, processes: int) -> None:
    monkeypatch.setattr(sys, "frozen", frozen, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert kernel_cache._processes() == processes
