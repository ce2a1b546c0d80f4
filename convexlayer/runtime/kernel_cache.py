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

Machine code is used that was made for this processor, or else for a level of x86-64 that this processor has. What was
made for more is never run. NUMBA_CPU_NAME and NUMBA_CPU_FEATURES together ask for one processor: that is what is used,
or made, unless this one lacks what that has.
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
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Literal, final

from convexlayer.runtime.cpu_target import LEVELS, VARIABLES, Target, levels

__all__ = [
    "PARTS",
    "Kernels",
    "compile_in_background",
    "folder",
    "forget",
    "is_complete",
    "load",
    "prepare",
    "ready",
    "status",
]

PACKAGE = Path(__file__).parents[1]

PARTS = {
    "linalg": "convexlayer.linalg.laned",
    "interior_point": "convexlayer.interior_point.lanes.solve",
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


@final
@dataclass(frozen=True)
class Kernels:
    """Which kernels a process runs.

    Attributes:
        path: ``compiled``, or ``portable`` without machine code.
        processor: that the machine code is made for, or else this one, in LLVM's words.
        reason: why it is this path.
    """

    path: Literal["compiled", "portable"]
    processor: str
    reason: str


_deciding = threading.Lock()
_decision: list[Kernels] = []
"""What was decided, once it has been asked."""


def ready() -> bool:
    """Whether this process uses the compiled kernels; the first call decides, for ``prepare`` alone to change.

    Raises:
        ValueError: CONVEXLAYER_COMPILE is set to something else than background, wait or never.
    """
    return status().path == "compiled"


def status() -> Kernels:
    """Which kernels this process runs, and why; decides as ``ready`` does, and raises as it does."""
    if not _decision:
        with _deciding:
            if not _decision:
                _decision.append(_decide(_setting()))
    return _decision[0]


def is_complete() -> bool:
    """Whether all machine code that a process like this one would use is there by now, for those that start later."""
    base, target = _place()
    return base is not None and _has_all(base, target)


def load() -> None:
    """Import the kernels now, if this process uses them, so that processes forked from it have them at once."""
    if ready():  # first of all: numba, once it is imported, cannot be told of another processor
        for module in PARTS.values():
            importlib.import_module(module)


def forget() -> None:
    """Have ``ready`` decide anew: in a fresh worker whose parent process decided before the code was there."""
    _decision.clear()
    _place.cache_clear()


def prepare(*, wait: bool) -> None:
    """Compile what is missing.

    Args:
        wait: compile here (or wait for another process that is at it), after which ``ready`` is true in this process;
            else have it done by another process, for those that start later.
    """
    if wait:
        _decision[:] = [_decide("wait")]
    elif not is_complete():
        _compile_elsewhere()


def folder(part: str) -> Path | None:
    """Where machine code of the present sources of a part belongs; None where nothing can be written."""
    base, target = _place()
    return None if base is None else base / _name(part, target)


def compile_in_background() -> None:
    """What the process in the background does."""
    if hasattr(os, "nice"):
        os.nice(10)
    base, _ = _place()
    if base is not None:
        with _locked(base, wait=False) as mine:
            if mine:
                _compile_parts()


def _setting() -> str:
    setting = os.environ.get(SETTING, "") or CHOICES[0]
    if setting not in CHOICES:
        raise ValueError(f"{SETTING} is one of {', '.join(CHOICES)}, got {setting!r}")
    return setting


def _decide(setting: str) -> Kernels:
    if setting == "never":
        return _portable(f"{SETTING} is {setting}")
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return _portable("NUMBA_DISABLE_JIT is set")
    _warn_of_others()
    _, target = _place()
    if target != Target.asked():
        if "numba" in sys.modules:
            return _portable(f"numba was imported before, for {Target.asked()}")
        for name in VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(target.environment)
    if is_complete():
        return Kernels("compiled", str(target), f"machine code for {target} is there")
    if setting == "wait":
        _compile()
        return Kernels("compiled", str(target), f"machine code for {target} was made before this process went on")
    return _portable(_compile_elsewhere())


def _portable(reason: str) -> Kernels:
    return Kernels("portable", str(Target()), reason)


def _warn_of_others() -> None:
    """Say that machine code is not used that this processor could not run."""
    asked = Target.asked()
    for other in dict.fromkeys([asked, *(Target(level, "") for level in LEVELS)]):
        if other.lacking and (other == asked or any(_has_all(base, other) for base in _bases())):
            logger.warning(
                "machine code for %s is not used: this processor, %s, lacks %s",
                other,
                Target(),
                ", ".join(other.lacking),
            )


def _compile() -> None:
    base, _ = _place()
    if base is None:
        _compile_parts()
    else:
        with _locked(base, wait=True):
            _compile_parts()


def _compile_elsewhere() -> str:
    """Begin, unless another process has or nothing can be kept; what there is to say of it."""
    base, target = _place()
    if base is None:
        logger.warning(
            "kernels stay uncompiled, which costs speed alone: no machine code can be kept in %s; "
            "NUMBA_CACHE_DIR may name a folder where it can",
            " or ".join(map(str, _bases())),
        )
        return "machine code can be kept nowhere; NUMBA_CACHE_DIR may name a folder where it can"
    if getattr(sys, "frozen", False) or not sys.executable:
        reason = "this program is not run by a Python interpreter that could compile"
        logger.info("kernels stay uncompiled: %s", reason)
        return reason
    reason = f"machine code for {target} is being made in the background, for processes that start later"
    with _locked(base, wait=False) as free:
        if not free:
            return reason
    others = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    child = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import compile_in_background as compile; compile()"],
        cwd=PACKAGE.parent,
        env=others | target.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    threading.Thread(target=child.wait, name="convexlayer-compile", daemon=True).start()
    logger.info("%s", reason)
    return reason


def _compile_parts() -> None:
    """Compile the parts that are not complete, and remove the folders of their older sources."""
    base, target = _place()
    for part, module in PARTS.items():
        if base is not None and _has(base, part, target):
            continue
        started = time.perf_counter()
        importlib.import_module(module).warm_up()
        logger.info("compiled the kernels of %s in %.1f s", part, time.perf_counter() - started)
        if base is not None:
            folder = base / _name(part, target)
            (folder / COMPLETE).touch()
            for older in base.glob(f"{_prefix(part, target)}*/"):
                if older != folder:
                    shutil.rmtree(older, ignore_errors=True)


def _has(base: Path, part: str, target: Target) -> bool:
    return (base / _name(part, target) / COMPLETE).exists()


def _has_all(base: Path, target: Target) -> bool:
    return all(_has(base, part, target) for part in PARTS)


@cache
def _place() -> tuple[Path | None, Target]:
    """Where machine code is and what for: the best that is complete, else the first place to write it, if any."""
    bases, targets = _bases(), _targets()
    for target in targets:
        for base in bases:
            if _has_all(base, target):
                return base, target
    return next((base for base in bases if _is_writable(base)), None), targets[0]


def _targets() -> list[Target]:
    """What machine code may be made for that this process runs, the best first; the first is what it would make."""
    asked = Target() if Target.asked().lacking else Target.asked()
    if asked.fixed or "numba" in sys.modules:  # which asks for levels no more
        return [asked]
    return [asked, *levels()]


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
def _name(part: str, target: Target) -> str:
    """Name of the folder with the machine code of a part."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for folder in [*takewhile(lambda other: other != part, PARTS), part]:
        sources = (path.read_bytes() for path in sorted((PACKAGE / folder).glob("*.py")))
        for source in sources:
            if b"import torch" not in source:  # what torch does has no kernels
                digest.update(source)
    return f"{_prefix(part, target)}{digest.hexdigest()[:16]}"


@cache
def _prefix(part: str, target: Target) -> str:
    """How the folders of a part begin, whatever its sources: made here, by this Python, for this target."""
    facts = [str(PACKAGE), sys.version, platform.machine(), *target.resolved, version("numba"), version("llvmlite")]
    facts.append(os.environ.get("NUMBA_OPT", ""))
    return f"convexlayer-{part}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:8]}-"
