"""The worker: a process (or a thread, for tests and notebooks) that executes one work item after another."""

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

from ..documents.atoms import ATOMS, CONSTRAINTS
from ..observability import logs
from ..settings import Settings
from ..shared.channel import receive, send
from .executor import Executor
from .protocol import SolverInfo, WorkerCapabilities
from .worker_messages import WorkerReady

__all__ = ["main", "serve"]

_LOG = logging.getLogger(__name__)

_NICENESS = 5
"""Niceness of a worker process. When all cores are busy, the process that answers requests and probes goes first."""


def main(connection: socket.socket, settings: Settings, device: str, threads: int) -> None:
    """Run a worker process until its connection closes.

    Args:
        connection: connection to the scheduler.
        settings: settings of the service.
        device: ``cpu``, or ``cuda:`` and the index or UUID of the only device that this process may see.
        threads: threads of the linear algebra libraries.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the whole process group receives them; the pool ends its workers
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, name="exit-with-parent", daemon=True).start()
    logs.configure(settings, logging.WARNING)
    kind, _, visible = device.partition(":")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible  # CUDA reads it at its first use, which comes later
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    threadpool_limits(threads)
    if kernel_cache.status().path == "portable" and kernel_cache.is_complete():
        kernel_cache.reset()  # the kernels were compiled after the fork server had looked for them
    kernels = kernel_cache.status()
    if kernels.path == "portable":
        _LOG.warning("this worker runs the portable kernels, which are several times slower: %s", kernels.reason)
    gc.collect()
    gc.freeze()  # imported objects stay; scanning them would take 0.2 s per full collection
    serve(connection, settings, kind)


def _capabilities() -> WorkerCapabilities:
    """Return the capabilities of this process."""
    solvers = (
        SolverInfo(name=solver.name, quadratic=solver.quadratic, cones=tuple(sorted(solver.cones)))
        for solver in available()
        if solver.installed
    )
    functions = tuple(sorted([*ATOMS, *CONSTRAINTS]))
    return WorkerCapabilities(kernels=kernel_cache.status(), solvers=tuple(solvers), functions=functions)


def serve(connection: socket.socket, settings: Settings, device: str = "cpu") -> None:
    """Execute work items until the connection closes."""
    with connection:
        executor = Executor(settings, device)
        try:
            send(connection, WorkerReady(_capabilities()))
            while True:
                send(connection, executor.execute(receive(connection)))
        except (EOFError, OSError):
            return


def _exit_with_parent() -> None:
    """Exit when the parent does; while a worker computes, it does not notice that its connection closed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)
