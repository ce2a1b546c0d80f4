"""Compilation in several processes at once.

A share of the kernels is the name of a module and the arguments of its function ``warm_up``, which compiles them. Each
process compiles one share after another, those with the same arguments if it can: it need not translate again the
functions that they have in common. It reads the shares from its standard input, a line each, and answers each with the
same line when it is done; it ends with its parent, whose end closes the pipe.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

__all__ = ["Share", "compile_here", "compile_in_processes", "serve"]

Share = tuple[str, ...]
"""A module's name and the arguments of its ``warm_up``."""

Start = Callable[..., "subprocess.Popen[Any]"]
"""Starts a new interpreter that runs Python code, given options of ``subprocess.Popen``."""

MAIN = f"from {__name__} import serve; serve()"


def compile_here(share: Share) -> None:
    """Compile a share in this process."""
    module, *arguments = share
    importlib.import_module(module).warm_up(*arguments)


def compile_in_processes(shares: Sequence[Share], count: int, start: Start) -> Iterator[Share]:
    """Compile shares, first those that come first, in at most ``count`` new processes.

    Yields:
        Each share when it is compiled; not those of a process that failed or ended early.
    """
    waiting, done = deque(shares), SimpleQueue[Share | None]()
    count = min(count, len(shares))
    for _ in range(count):
        process = start(MAIN, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=_feed, args=(process, waiting, done), name="convexlayer-compile", daemon=True).start()
    try:
        while count:
            share = done.get()
            if share is None:
                count -= 1
            else:
                yield share
    finally:
        waiting.clear()


def _feed(process: subprocess.Popen[str], waiting: deque[Share], done: SimpleQueue[Share | None]) -> None:
    """Give shares to a process until none waits or it fails; None in ``done`` is the last word on it."""
    previous: Share = ()
    try:
        while waiting:
            share = min(waiting.copy(), key=lambda other: other[1:] != previous[1:])
            waiting.remove(share)
            previous = share
            line = " ".join(share) + "\n"
            print(line, end="", file=process.stdin, flush=True)
            if process.stdout is None or process.stdout.readline() != line:
                break
            done.put(share)
    except (ValueError, OSError):  # another thread took the share, or the process has ended
        pass
    finally:
        process.communicate()
        done.put(None)


def serve() -> None:
    """Compile the shares that the standard input names: the main function of the processes."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        compile_here(tuple(line.split()))
        print(line, end="", file=answers, flush=True)
