"""Machine code that is there before anybody needs it.

The kernels (numba) of ``linalg`` and ``engine`` take minutes to compile and are kept on disk. A process either uses
them from its first call or never, so that answers do not change in mid-training: ``ready`` is decided once. Where
machine code of the present sources is missing, a process of low priority makes it for later ones, and the portable path
answers meanwhile. The environment variable CONVEXLAYER_COMPILE says otherwise: ``wait`` compiles at once, ``never``
does without.

Machine code of a part lies in a folder of its own, named by a hash of what it was made from: all sources of the part
and of those that it builds on, the versions of numba and llvmlite, and the processor. A file ``complete`` in it says
that nothing is missing. Folders are sought in numba's NUMBA_CACHE_DIR if it is set, else in the package's __pycache__
and in the user's cache directory. Looking there needs no numba, whose import takes half a second.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

__all__ = ["PARTS", "compile_at_leisure", "folder", "prepare", "ready"]

PACKAGE = Path(__file__).parent

PARTS = {
    "linalg": "convexlayer.linalg.laned",
    "engine": "convexlayer.engine.batched",
    "sparse": "convexlayer.sparse.kernels",
    "cones": "convexlayer.cones.kernels",
    "solvers": "convexlayer.solvers.kernels",
}
"""Folders with kernels, each building on those before it, and the modules whose ``warm_up`` compiles all of them."""

COMPLETE = "complete"
"""Name of the file that ends a compilation."""

SETTING = "CONVEXLAYER_COMPILE"
CHOICES = ("background", "wait", "never")

logger = logging.getLogger(__name__)

_deciding = threading.Lock()
_decision: list[bool] = []
"""What ``ready`` says, once it has been asked."""


def ready() -> bool:
    """Whether this process uses the compiled kernels; the first call decides, for ``prepare`` alone to change.

    Raises:
        ValueError: CONVEXLAYER_COMPILE is set to something else than background, wait or never.
    """
    if not _decision:
        with _deciding:
            if not _decision:
                _decision.append(_decide())
    return _decision[0]


def prepare(*, wait: bool) -> None:
    """Compile what is missing.

    Args:
        wait: compile here (or wait for another process that is at it), after which ``ready`` is true in this process;
            else have it done by another process, for those that start later.
    """
    if wait:
        if not _is_complete():
            _compile()
        _decision[:] = [True]
    elif not _is_complete():
        _compile_elsewhere()


def folder(part: str) -> Path | None:
    """Where machine code of the present sources of a part belongs; None where nothing can be written."""
    base = _base()
    return None if base is None else base / _name(part)


def compile_at_leisure() -> None:
    """What the process in the background does."""
    if hasattr(os, "nice"):
        os.nice(10)
    base = _base()
    if base is not None:
        with _locked(base, wait=False) as mine:
            if mine:
                _compile_parts()


def _decide() -> bool:
    setting = os.environ.get(SETTING, "") or CHOICES[0]
    if setting not in CHOICES:
        raise ValueError(f"{SETTING} is one of {', '.join(CHOICES)}, got {setting!r}")
    if setting == "never" or os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return False
    if _is_complete():
        return True
    if setting == "wait":
        _compile()
        return True
    _compile_elsewhere()
    return False


def _compile() -> None:
    base = _base()
    if base is None:
        _compile_parts()
    else:
        with _locked(base, wait=True):
            _compile_parts()


def _compile_elsewhere() -> None:
    base = _base()
    if base is None:
        logger.warning(
            "kernels stay uncompiled, which costs speed alone: no machine code can be kept in %s; "
            "NUMBA_CACHE_DIR may name a folder where it can",
            " or ".join(map(str, _bases())),
        )
        return
    if getattr(sys, "frozen", False) or not sys.executable:
        logger.info("kernels stay uncompiled: this program is not run by a Python interpreter that could compile them")
        return
    with _locked(base, wait=False) as free:
        if not free:
            return
    child = subprocess.Popen(
        [sys.executable, "-c", "from convexlayer.compiled import compile_at_leisure; compile_at_leisure()"],
        cwd=PACKAGE.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    threading.Thread(target=child.wait, name="convexlayer-compile", daemon=True).start()
    logger.info("kernels are being compiled in the background, for processes that start later")


def _compile_parts() -> None:
    """Compile the parts that are not complete, and remove the folders of their older sources."""
    base = _base()
    for part, module in PARTS.items():
        if base is not None and (base / _name(part) / COMPLETE).exists():
            continue
        started = time.perf_counter()
        importlib.import_module(module).warm_up()
        logger.info("compiled the kernels of %s in %.1f s", part, time.perf_counter() - started)
        if base is not None:
            folder = base / _name(part)
            (folder / COMPLETE).touch()
            for older in base.glob(f"{_prefix(part)}*/"):
                if older != folder:
                    shutil.rmtree(older, ignore_errors=True)


def _is_complete() -> bool:
    base = _base()
    return base is not None and all((base / _name(part) / COMPLETE).exists() for part in PARTS)


@cache
def _base() -> Path | None:
    """Where the folders are: the first place where they are complete, else the first that can be written, if any."""
    bases = _bases()
    for base in bases:
        if all((base / _name(part) / COMPLETE).exists() for part in PARTS):
            return base
    return next((base for base in bases if _is_writable(base)), None)


def _bases() -> list[Path]:
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return [Path(chosen)]
    personal = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path("~", ".cache").expanduser()
    return [PACKAGE / "__pycache__", Path(personal, "convexlayer")]


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, wait=False):
            return True
    except OSError:
        return False


@contextmanager
def _locked(base: Path, *, wait: bool) -> Iterator[bool]:
    """One process at a time, by a lock that ends with its holder; says whether it is ours."""
    with open(base / "convexlayer-compile.lock", "a+b") as file:
        file.seek(0)
        while not (mine := _lock(file.fileno())) and wait:
            time.sleep(0.1)
        yield mine


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@cache
def _name(part: str) -> str:
    """Name of the folder with the machine code of a part."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for folder in [*takewhile(lambda other: other != part, PARTS), part]:
        sources = (path.read_bytes() for path in sorted((PACKAGE / folder).glob("*.py")))
        for source in sources:
            if b"import torch" not in source:  # what torch does has no kernels
                digest.update(source)
    return f"{_prefix(part)}{digest.hexdigest()[:16]}"


@cache
def _prefix(part: str) -> str:
    """How the folders of a part begin, whatever its sources: made here, by this Python, for this machine."""
    facts = [str(PACKAGE), sys.version, platform.machine(), _processor(), version("numba"), version("llvmlite")]
    facts += [os.environ.get(name, "") for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT")]
    return f"convexlayer-{part}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:8]}-"


def _processor() -> str:
    """What tells processors with different instructions apart, as far as it can be had at once.

    Nothing where numba is told which processor to compile for: what is compiled here then serves others, too.
    """
    if os.environ.keys() >= {"NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"}:
        return ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()
