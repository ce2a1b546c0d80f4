"""Where worker processes come from: on Linux one process, warm, forks them all (multiprocessing's forkserver)."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

__all__ = ["begin", "context"]

_METHOD = "forkserver" if sys.platform == "linux" else "spawn"  # macOS's own libraries do not survive a fork
_PRELOADED = ["convexlayer_server.engine.preloaded"]


def context() -> Any:
    """What starts processes, as multiprocessing does."""
    found: Any = multiprocessing.get_context(_METHOD)
    found.set_forkserver_preload(_PRELOADED)
    return found


def begin() -> None:
    """Let the process that forks others begin now, to get warm while this one goes on."""
    context()
    if _METHOD == "forkserver":
        from multiprocessing.forkserver import ensure_running

        ensure_running()


def main(*arguments: Any) -> None:
    """What a worker process does; it alone needs all of the library, whose imports take seconds."""
    from .engine import worker

    worker.main(*arguments)


def serve(*arguments: Any) -> None:
    """What a worker thread does, for tests and notebooks."""
    from .engine import worker

    worker.serve(*arguments)
