"""A worker: a process, or for tests and notebooks a thread, that does one piece of work after another."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import socket
import threading

from threadpoolctl import threadpool_limits

from convexlayer.runtime import kernel_cache
from convexlayer.solvers.registry import available

from .. import logs
from ..channel import receive, send
from ..documents.atoms import ATOMS, CONSTRAINTS
from ..settings import Settings
from .protocol import Abilities, SolverAbility
from .work import Ready
from .workbench import Workbench

__all__ = ["main", "serve"]

_LOG = logging.getLogger(__name__)

_NICE = 5
"""How far workers stand back where all cores are busy: who takes requests, and answers probes, goes first."""


def main(connection: socket.socket, settings: Settings, device: str, threads: int) -> None:
    """What a worker process does.

    Args:
        connection: to the engine; the process ends with it.
        settings: the service's.
        device: ``cpu``, or ``cuda:`` and the index or UUID of the one device that this process is to see.
        threads: of the linear algebra.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # they come to the whole group; the engine ends its workers itself
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    logs.configure(settings, logging.WARNING)
    kind, _, visible = device.partition(":")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible  # read by CUDA at its first use, which is yet to come
    if hasattr(os, "nice"):
        os.nice(_NICE)
    threadpool_limits(threads)
    if kernel_cache.status().path == "portable" and kernel_cache.is_complete():
        kernel_cache.reset()  # what was missing when the process that forks workers began is there by now
    kernels = kernel_cache.status()
    if kernels.path == "portable":
        _LOG.warning("this worker computes by the portable path, several times slower: %s", kernels.reason)
    gc.collect()
    gc.freeze()  # what is imported stays; looking through all of it would take 0.2 s at a time
    serve(connection, settings, kind)


def abilities() -> Abilities:
    """What this process can do."""
    solvers = (
        SolverAbility(name=solver.name, quadratic=solver.quadratic, cones=tuple(sorted(solver.cones)))
        for solver in available()
        if solver.installed
    )
    functions = tuple(sorted([*ATOMS, *CONSTRAINTS]))
    return Abilities(kernels=kernel_cache.status(), solvers=tuple(solvers), functions=functions)


def serve(connection: socket.socket, settings: Settings, device: str = "cpu") -> None:
    """Answer work with what became of it, to the end of the connection."""
    with connection:
        bench = Workbench(settings, device)
        try:
            send(connection, Ready(abilities()))
            while True:
                send(connection, bench.do(receive(connection)))
        except (EOFError, OSError):
            return


def _end_with_parent() -> None:
    """A worker that computes does not look at its connection."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)
