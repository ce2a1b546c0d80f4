"""The process that reads large bodies, run as a script: it calls functions with them, one after another.

It imports what those functions need and no more of the service, whose own imports would take seconds and most of the
memory that it may have: so the package that it sees is this folder without what ``__init__`` imports.
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

_TOO_LARGE = "reading it takes more memory than this server gives"

_NICE = 5
"""It stands back behind the process that takes requests, but not behind the workers."""


def main(connection: socket.socket, max_memory_bytes: int) -> None:
    """Answer calls to the end of the connection: ``(function, body)`` by ``(outcome, None)`` or ``(None, error)``.

    Args:
        connection: to the process that asks.
        max_memory_bytes: address space of this process.
    """
    package = types.ModuleType("convexlayer_server")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules[package.__name__] = package
    from convexlayer_server import documents  # noqa: F401  # most of what is called, and what that imports
    from convexlayer_server.channel import receive, send

    _limit(max_memory_bytes)
    gc.freeze()
    gc.disable()  # there are no cycles in what is read, but millions of objects to look for them in
    while True:
        try:
            answer = _called(*receive(connection))
            send(connection, answer)
        except (EOFError, OSError):
            return
        del answer
        gc.collect()


def _called(function: Any, body: Any) -> tuple[Any, Exception | None]:
    from convexlayer_server.errors import MalformedError, RequestError

    try:
        return function(body), None
    except RequestError as error:
        return None, error.with_traceback(None)
    except MemoryError:
        return None, MalformedError(_TOO_LARGE)
    except Exception as error:  # a bug, for the log of the process that asked
        return None, RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    except BaseException:  # that of pydantic's core for memory that it was not given
        return None, MalformedError(_TOO_LARGE)


def _limit(max_memory_bytes: int) -> None:
    """Let a text that becomes gigabytes of empty lists fail here, not the machine."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, max_memory_bytes))
    os.nice(_NICE)


if __name__ == "__main__":
    main(socket.socket(fileno=0), int(sys.argv[1]))
