"""How worker processes start: on Linux, a fork server that has imported everything forks them."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

__all__ = ["context", "run_in_process", "run_in_thread", "start"]

_METHOD = "forkserver" if sys.platform == "linux" else "spawn"  # system libraries of macOS do not survive a fork
_PRELOADED = ["convexlayer_server.compute.warm_up"]


def context() -> Any:
    """Return the multiprocessing context that starts workers."""
    found: Any = multiprocessing.get_context(_METHOD)
    found.set_forkserver_preload(_PRELOADED)
    return found


def start() -> None:
    """Start the fork server now; it warms up while this process continues."""
    context()
    if _METHOD == "forkserver":
        from multiprocessing.forkserver import ensure_running

        ensure_running()


def run_in_process(*arguments: Any) -> None:
    """Run a worker in this process. Only workers import the whole library, which takes seconds."""
    from . import worker

    worker.main(*arguments)


def run_in_thread(*arguments: Any) -> None:
    """Run a worker in this thread, for tests and notebooks."""
    from . import worker

    worker.serve(*arguments)
