"""Compilation in several processes at once.

A share of the kernels is the name of a module and the arguments of its function ``warm_up``, which compiles them. Each
process compiles one share after another, those with the same arguments if it can: it need not translate again the
functions that they have in common. It reads the shares from its standard input, a line each, and answers each with the
same line when it is done; it ends with its parent, whose end closes the pipe.
"""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, final

__all__ = ["Share", "compile_here", "compile_in_processes", "serve"]

Share = tuple[str, ...]
"""A module's name and the arguments of its ``warm_up``."""

Start = Callable[..., Any]
"""Starts a new interpreter that runs Python code, given options of ``subprocess.Popen``, which it returns."""

logger = logging.getLogger(__name__)

MAIN = f"from {__name__} import serve; serve()"


def compile_here(share: Share) -> None:
    """Compile a share in this process."""
    module, *arguments = share
    importlib.import_module(module).warm_up(*arguments)


@final
class _Waiting:
    """The shares that no process has taken."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self._shares = list(shares)
        self._lock = threading.Lock()

    def take(self, previous: Share) -> Share | None:
        """The first share with the arguments of the previous one, else the first."""
        with self._lock:
            if not self._shares:
                return None
            share = min(self._shares, key=lambda other: other[1:] != previous[1:])
            self._shares.remove(share)
            return share

    def clear(self) -> None:
        with self._lock:
            self._shares.clear()


def compile_in_processes(shares: Sequence[Share], count: int, start: Start) -> Iterator[Share]:
    """Compile shares, first those that come first, in at most ``count`` new processes.

    Yields:
        Each share when it is compiled; not those of a process that failed or ended early.
    """
    waiting, done = _Waiting(shares), SimpleQueue[Share | None]()
    threads = [
        threading.Thread(target=_feed, args=(start, waiting, done), name="convexlayer-compile", daemon=True)
        for _ in range(min(count, len(shares)))
    ]
    for thread in threads:
        thread.start()
    try:
        working = len(threads)
        while working:
            share = done.get()
            if share is None:
                working -= 1
            else:
                yield share
    finally:
        waiting.clear()


def _feed(start: Start, waiting: _Waiting, done: SimpleQueue[Share | None]) -> None:
    """Start a process and give it shares until none waits or it fails; None in ``done`` is the last word on it."""
    try:
        with start(MAIN, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            share = waiting.take(())
            while share is not None:
                line = " ".join(share) + "\n"
                process.stdin.write(line)
                process.stdin.flush()
                if process.stdout.readline() != line:
                    break
                done.put(share)
                share = waiting.take(share)
    except OSError as error:  # it did not start, or ended early
        logger.info("a process that compiles kernels failed: %s", error)
    finally:
        done.put(None)


def serve() -> None:
    """Compile the shares that the standard input names: the main function of the processes."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        compile_here(tuple(line.split()))
        answers.write(line)
        answers.flush()
