"""Persistent cache of Numba kernels.

Compiling all kernels takes minutes, so their machine code is kept on disk. A process decides once, at its first call,
whether it uses compiled kernels (``ready``), so that answers do not change while a model trains. If the cache lacks
code for the present sources, a background process of low priority compiles it for processes that start later, and this
one uses the portable NumPy path. The environment variable CONVEXLAYER_COMPILE changes that: ``wait`` compiles before
going on, ``never`` uses the portable path.

Each part of the library with kernels has a cache folder, named by a hash of what determines its machine code: the
sources of the part and of those that it builds on (without docstrings and comments), those of the decorators and of
``simd``, the versions of Numba and llvmlite, Python, and the target processor. A file ``complete`` in it marks a
finished compilation. Folders are looked up in NUMBA_CACHE_DIR if it is set, else in the package's __pycache__, then in
the user's cache directory. The lookup does not import Numba, which takes half a second.

A process uses code compiled for its own processor, else for the highest x86-64 level that its processor supports, and
never code that needs instructions its processor lacks. NUMBA_CPU_NAME and NUMBA_CPU_FEATURES together select one
target, unless this processor cannot run it.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, final

from convexlayer.runtime.cpu_target import LEVELS, VARIABLES, Target, levels
from convexlayer.runtime.file_lock import locked
from convexlayer.runtime.parallel_compilation import Share, compile_here, compile_in_processes

__all__ = [
    "PARTS",
    "Kernels",
    "compile_in_background",
    "folder",
    "is_complete",
    "load",
    "prepare",
    "ready",
    "reset",
    "status",
]

PACKAGE = Path(__file__).parents[1]
SHARED_SOURCES = tuple(map(Path(__file__).with_name, ("cached_kernel.py", "inner_function.py", "lanes.py", "simd.py")))
"""Source files that all parts share: the decorators, with the compiler's flags, and the lanes."""

_NOT_CODE = re.compile(rb'"""[\s\S]*?"""|#[^\n]*')

PARTS = {
    "linalg": "convexlayer.linalg.ldl.laned",
    "interior_point": "convexlayer.interior_point.lanes.solve",
    "sparse": "convexlayer.sparse.kernels",
    "cones": "convexlayer.cones.kernels",
    "solvers": "convexlayer.solvers.kernels",
    "diff": "convexlayer.diff.lanes.calls",
}
"""Parts of the library with kernels, each built on those before it, and the modules whose ``warm_up`` compiles them."""

SHARES = (
    ("interior_point", "lanes"),
    ("interior_point", "single"),
    ("diff", "lanes"),
    ("diff", "single"),
    ("linalg", "lanes"),
    ("linalg", "single"),
    ("sparse",),
    ("cones",),
    ("solvers",),
)
"""Parts and arguments of ``warm_up``, for a process each, those that take longest first; lanes are several elements."""

MAX_PROCESSES = 4
"""Largest number of processes that compile at once: more would wait for the longest share."""

COMPLETE = "complete"
"""Name of the file that marks a finished compilation."""

SETTING = "CONVEXLAYER_COMPILE"
"""Name of the environment variable."""

CHOICES = ("background", "wait", "never")
"""Its values; the first is the default."""

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class Kernels:
    """Which kernels a process uses.

    Attributes:
        path: ``compiled``, or ``portable`` (NumPy).
        processor: LLVM's name of the processor that the code is compiled for, or of this one.
        reason: why this path was chosen.
    """

    path: Literal["compiled", "portable"]
    processor: str
    reason: str


_deciding = threading.Lock()
_decision: list[Kernels] = []
"""Empty until the first call of ``status``, then its one result."""


def ready() -> bool:
    """Whether this process uses compiled kernels. The first call decides; only ``prepare`` and ``reset`` change it.

    Raises:
        ValueError: CONVEXLAYER_COMPILE is neither background, wait nor never.
    """
    return (_decision[0] if _decision else status()).path == "compiled"


def status() -> Kernels:
    """Which kernels this process uses, and why. Decides and raises as ``ready``."""
    if not _decision:
        with _deciding:
            if not _decision:
                _decision.append(_decide(_setting()))
    return _decision[0]


def is_complete() -> bool:
    """Whether the cache is complete by now for a process that starts like this one."""
    base, target = _place()
    return base is not None and _has_all(base, target)


def load() -> None:
    """Import the compiled kernels, if this process uses them, so that forked processes have them at once."""
    if ready():  # decided before Numba is imported: afterwards its target processor cannot change
        for module in PARTS.values():
            importlib.import_module(module)


def reset() -> None:
    """Let ``ready`` decide again: in a forked worker whose parent decided before the cache was complete."""
    _decision.clear()
    _place.cache_clear()


def prepare(*, wait: bool) -> None:
    """Compile what is missing.

    Args:
        wait: compile before returning, or wait for another process that compiles; ``ready`` is true afterwards.
            Otherwise a background process compiles, for processes that start later.
    """
    if wait:
        _decision[:] = [_decide("wait")]
    elif not is_complete():
        _compile_elsewhere()


def folder(part: str) -> Path | None:
    """The cache folder of the present sources of a part; None if no cache folder is writable."""
    base, target = _place()
    return None if base is None else base / _name(part, target)


def compile_in_background() -> None:
    """Compile what is missing at low priority: the main function of the background process."""
    if hasattr(os, "nice"):
        os.nice(10)
    base, _ = _place()
    if base is not None:
        with locked(base, wait=False) as mine:
            if mine:
                _compile_parts()


def _setting() -> str:
    setting = os.environ.get(SETTING, "") or CHOICES[0]
    if setting not in CHOICES:
        raise ValueError(f"{SETTING} must be one of {', '.join(CHOICES)}, got {setting!r}")
    return setting


def _decide(setting: str) -> Kernels:
    if setting == "never":
        return _portable(f"{SETTING} is {setting}")
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return _portable("NUMBA_DISABLE_JIT is set")
    _warn_of_others()
    _, target = _place()
    if target != Target.from_environment():
        if "numba" in sys.modules:
            return _portable(f"Numba was already imported, with target {Target.from_environment()}")
        for name in VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(target.environment)
    if is_complete():
        return Kernels("compiled", str(target), f"the cache has machine code for {target}")
    if setting == "wait":
        _compile()
        return Kernels("compiled", str(target), f"compiled for {target} by this process")
    return _portable(_compile_elsewhere())


def _portable(reason: str) -> Kernels:
    return Kernels("portable", str(Target()), reason)


def _warn_of_others() -> None:
    """Log cached code that this processor cannot run."""
    requested = Target.from_environment()
    for other in dict.fromkeys([requested, *(Target(level, "") for level in LEVELS)]):
        if other.missing_features and (other == requested or any(_has_all(base, other) for base in _bases())):
            logger.warning(
                "machine code for %s is not used: this processor, %s, lacks %s",
                other,
                Target(),
                ", ".join(other.missing_features),
            )


def _compile() -> None:
    base, _ = _place()
    if base is None:
        _compile_parts()
    else:
        with locked(base, wait=True):
            _compile_parts()


def _compile_elsewhere() -> str:
    """Start a background compilation, unless one runs or no cache folder is writable; the reason for the log."""
    base, target = _place()
    if base is None:
        logger.warning(
            "kernels are not compiled, which makes solves slower: no cache folder is writable (%s); "
            "set NUMBA_CACHE_DIR to a writable folder",
            ", ".join(map(str, _bases())),
        )
        return "no cache folder is writable; set NUMBA_CACHE_DIR to a writable folder"
    if not _interpreter():
        reason = "this program has no Python interpreter to compile them with"
        logger.info("kernels are not compiled: %s", reason)
        return reason
    reason = f"kernels for {target} are being compiled in the background, for processes that start later"
    with locked(base, wait=False) as free:
        if not free:
            return reason
    code = f"from {__name__} import compile_in_background as compile; compile()"
    child = _start(code, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=child.wait, name="convexlayer-compile", daemon=True).start()
    logger.info("%s", reason)
    return reason


def _interpreter() -> str | None:
    """The Python interpreter of this process; None if it has none of its own."""
    return None if getattr(sys, "frozen", False) else sys.executable or None


def _start(code: str, **options: Any) -> subprocess.Popen[Any]:
    """Start a process that runs Python code, with the target of this one."""
    _, target = _place()
    others = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        env=others | target.environment,
        stderr=subprocess.DEVNULL,
        **options,
    )


def _compile_parts() -> None:
    """Compile the parts that are incomplete, and remove cache folders of older sources."""
    base, target = _place()
    missing = [part for part in PARTS if base is None or not _has(base, part, target)]
    part_of = {(PARTS[part], *arguments): part for part, *arguments in SHARES if part in missing}
    started, left = time.perf_counter(), Counter(part_of.values())
    for share in _compiled(list(part_of), 0 if base is None else _processes()):
        part = part_of[share]
        left[part] -= 1
        if not left[part]:
            logger.info("compiled the kernels of %s after %.1f s", part, time.perf_counter() - started)
            if base is not None:
                _mark_complete(base, part, target)


def _compiled(shares: list[Share], count: int) -> Iterator[Share]:
    """Compile shares in ``count`` new processes, and in this one what they leave; yield each when it is compiled."""
    left = dict.fromkeys(shares)
    if count:
        for share in compile_in_processes(shares, count, _start):
            del left[share]
            yield share
    for share in left:
        compile_here(share)
        yield share


def _processes() -> int:
    """Number of processes that compile at once; 0 if this program cannot start any."""
    return min(os.cpu_count() or 1, MAX_PROCESSES) if _interpreter() else 0


def _mark_complete(base: Path, part: str, target: Target) -> None:
    folder = base / _name(part, target)
    if not folder.exists():  # removed by a process with other sources, and this one has its machine code in memory
        return
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
    """Cache folder and target: the best complete ones, else the first writable folder and this processor."""
    bases, targets = _bases(), _targets()
    for target in targets:
        for base in bases:
            if _has_all(base, target):
                return base, target
    return next((base for base in bases if _is_writable(base)), None), targets[0]


def _targets() -> list[Target]:
    """Targets whose code this process can run, the best first; the first is what it would compile for."""
    requested = Target() if Target.from_environment().missing_features else Target.from_environment()
    if requested.fixed or "numba" in sys.modules:  # its target is fixed
        return [requested]
    return [requested, *levels()]


def _bases() -> list[Path]:
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return [Path(chosen)]
    personal = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path("~", ".cache").expanduser()
    return [PACKAGE / "__pycache__", Path(personal, "convexlayer")]


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=False):
            return True
    except OSError:
        return False


@cache
def _name(part: str, target: Target) -> str:
    """Name of the cache folder of a part."""
    digest = hashlib.sha256()
    for path in SHARED_SOURCES:
        digest.update(_code(path))
    for folder in [*takewhile(lambda other: other != part, PARTS), part]:
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            code = _code(path)
            if b"import torch" not in code:  # torch modules have no kernels
                digest.update(code)
    return f"{_prefix(part, target)}{digest.hexdigest()[:16]}"


def _code(path: Path) -> bytes:
    """A source file without docstrings, comments and blank lines, which do not change what is compiled."""
    lines = _NOT_CODE.sub(b"", path.read_bytes()).splitlines()
    return b"\n".join(line for line in map(bytes.rstrip, lines) if line)


@cache
def _prefix(part: str, target: Target) -> str:
    """The part of the folder name that does not depend on the sources: package path, Python, target, versions."""
    facts = [str(PACKAGE), sys.version, platform.machine(), *target.resolved, version("numba"), version("llvmlite")]
    facts.append(os.environ.get("NUMBA_OPT", ""))
    return f"convexlayer-{part}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:8]}-"
