"""The errors of requests whose worker ended."""

from __future__ import annotations

from ..errors import RETRY_S, DeadlineError, DocumentError, InvalidError, RequestError, UnavailableError, shutting_down
from ..settings import Settings
from .worker_messages import ExitReason

__all__ = ["failure"]


def failure(reason: ExitReason, settings: Settings, *, canonicalising: bool) -> RequestError:
    """Return the error of a request whose worker ended.

    Args:
        reason: why the worker ended.
        settings: the limits of workers.
        canonicalising: whether it was canonicalising a document, rather than computing.
    """
    limit_s = settings.canonicalise_limit_s if canonicalising else settings.deadline_s
    memory = f"more memory than a worker may use ({settings.worker_memory_bytes} bytes)"
    if reason == "deadline" and canonicalising:
        return DocumentError(f"canonicalising the problem took more than {limit_s:g} s")
    if reason == "deadline":
        return DeadlineError(f"the request took more than {limit_s:g} s")
    if reason == "memory" and canonicalising:
        return DocumentError(f"canonicalising the problem took {memory}")
    if reason == "memory":
        return InvalidError.at("/parameters", f"the request took {memory}; send fewer elements at a time")
    if reason == "requested":
        return shutting_down()
    return UnavailableError("the worker that computed the request ended; send it again", retry_after_s=RETRY_S)
