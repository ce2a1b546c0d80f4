"""A process that parses large bodies, run as a script: it calls functions with bodies, one after another.

It imports what those functions need and no more of the service, whose imports would take seconds, and most of the
memory that this process may use. So it installs a package of this folder's parent without running its ``__init__``.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
import types
from pathlib import Path
from typing import Any

TOO_LARGE = "parsing the body takes more memory than this server allows"

_NICENESS = 5
"""Niceness of this process: below the process that answers requests, and like the workers."""


def main(connection: socket.socket, max_memory_bytes: int) -> None:
    """Answer calls until the connection closes: ``(function, body)`` by ``(result, None)`` or ``(None, error)``.

    Args:
        connection: connection to the parent.
        max_memory_bytes: address space of this process.
    """
    package = types.ModuleType("convexlayer_server")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules[package.__name__] = package
    from convexlayer_server import documents  # noqa: F401  # imports most of what the parent calls
    from convexlayer_server.shared.channel import receive, send

    _limit_resources(max_memory_bytes)
    gc.freeze()
    gc.disable()  # parsed values have no cycles, but millions of objects to scan for them
    while True:
        try:
            answer = _call(*receive(connection))
            send(connection, answer)
        except (EOFError, OSError):
            return
        del answer
        gc.collect()


def _call(function: Any, body: Any) -> tuple[Any, Exception | None]:
    from convexlayer_server.errors import MalformedError, RequestError

    try:
        return function(body), None
    except RequestError as error:
        return None, error.with_traceback(None)
    except MemoryError:
        return None, MalformedError(TOO_LARGE)
    except Exception as error:  # a bug, for the log of the parent
        return None, RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    except BaseException:  # a panic of pydantic-core, which could not allocate memory
        return None, MalformedError(TOO_LARGE)


def _limit_resources(max_memory_bytes: int) -> None:
    """Limit memory and lower the priority; a body that expands to gigabytes then fails here, without harm to others."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, max_memory_bytes))
    os.nice(_NICENESS)


if __name__ == "__main__":
    main(socket.socket(fileno=0), int(sys.argv[1]))
