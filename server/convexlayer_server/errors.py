"""Errors of the service, and how requests report them.

ServerError
├── SettingsError              a setting is invalid
├── StoreError                 the store cannot be opened, read or written
└── RequestError               reported as application/problem+json (RFC 9457)
    ├── MalformedError         400  the body cannot be parsed
    ├── UnauthenticatedError   401  no key, or an invalid one
    ├── QuotaError             403  the key, or the server, stores too much already
    ├── NotFoundError          404  there is no such problem or job
    ├── ConflictError          409  the job is not in the required state
    ├── GoneError              410  the state or the job's result has expired, or never existed
    ├── TooLargeError          413  the body is too large, or the method has none
    ├── TooManyError           429  a limit of the key or of the server is reached
    ├── ClientDisconnectedError 499 for the access log alone: the client disconnected before the response
    ├── UnavailableError       503  a worker ended, or the problem is quarantined; try again
    ├── DeadlineError          504  computing took too long
    └── InvalidError           422  a field of the request is invalid
        ├── DocumentError      422  a problem document is invalid
        ├── SolverChoiceError  422  the requested solver cannot be used
        └── DerivativeError    422  the derivative cannot be computed

Errors of HTTP itself (an unsupported media type, an unknown path) get the same form in ``http.problem_details``. The
``type`` of an error is ``urn:convexlayer:problem:<slug>``, by which clients distinguish errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

__all__ = [
    "MAX_QUOTED",
    "RETRY_S",
    "ClientDisconnectedError",
    "ConflictError",
    "DeadlineError",
    "DerivativeError",
    "DocumentError",
    "FieldError",
    "GoneError",
    "InvalidError",
    "MalformedError",
    "NotFoundError",
    "QuotaError",
    "RequestError",
    "ServerError",
    "SettingsError",
    "SolverChoiceError",
    "TooLargeError",
    "TooManyError",
    "UnavailableError",
    "abbreviate",
    "pointer",
    "shutting_down",
]

RETRY_S = 1.0
"""Retry-After in seconds of a request that was refused for a reason that may end at any moment."""

MAX_QUOTED = 80
"""Characters of a client's value that a message quotes at most."""


def abbreviate(value: Any) -> str:
    """Return a value as text, shortened to ``MAX_QUOTED`` characters."""
    text = str(value)
    return text if len(text) <= MAX_QUOTED else f"{text[: MAX_QUOTED - 3]}..."


def pointer(*path: str | int) -> str:
    """Return the JSON pointer (RFC 6901) of a path of keys and positions; the empty path is the whole document.

    Long keys are cut, since messages quote pointers.
    """
    return "".join("/" + str(step)[:MAX_QUOTED].replace("~", "~0").replace("/", "~1") for step in path)


@dataclass(frozen=True)
class FieldError:
    """One invalid field of a request.

    Attributes:
        pointer: JSON pointer into the body.
        detail: what was expected, and what was given.
    """

    pointer: str
    detail: str


class ServerError(Exception):
    """Base class of all errors of the service."""


class SettingsError(ServerError):
    """A setting is invalid."""


class StoreError(ServerError):
    """The store cannot be opened, read or written."""


class RequestError(ServerError):
    """An error of a request, reported as problem details.

    Attributes:
        detail: a sentence that explains the error.
        errors: the invalid fields, if known.
        retry_after_s: seconds after which the same request may succeed, sent as Retry-After; None if it would not.
    """

    status: ClassVar[int] = 400
    slug: ClassVar[str] = "request"
    title: ClassVar[str] = "The request cannot be served"

    def __init__(self, detail: str, errors: Sequence[FieldError] = (), *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Callable[..., RequestError], tuple[Any, ...]]:
        return partial(type(self), retry_after_s=self.retry_after_s), (self.detail, self.errors)


class MalformedError(RequestError):
    """The body cannot be parsed as its media type, or holds too many values."""

    status = 400
    slug = "malformed"
    title = "Malformed body"


class UnauthenticatedError(RequestError):
    """The request has no key, or an invalid one."""

    status = 401
    slug = "unauthenticated"
    title = "Unauthenticated"


class QuotaError(RequestError):
    """The key, or all keys together, store as much as they may."""

    status = 403
    slug = "quota"
    title = "Quota exceeded"


class NotFoundError(RequestError):
    """There is no problem or job of this ID."""

    status = 404
    slug = "not-found"
    title = "Not found"


class ConflictError(RequestError):
    """The job is not in the required state."""

    status = 409
    slug = "conflict"
    title = "Conflict"


class TooLargeError(RequestError):
    """The body is too large, or the method has none."""

    status = 413
    slug = "too-large"
    title = "Body too large"


class TooManyError(RequestError):
    """A limit of the key, or of the server, is reached."""

    status = 429
    slug = "too-many"
    title = "Too many requests"


class ClientDisconnectedError(RequestError):
    """The client disconnected before the response; nothing is sent."""

    status = 499
    slug = "client-disconnected"
    title = "Client disconnected"


class GoneError(RequestError):
    """The state or result has expired, was evicted, or never existed."""

    status = 410
    slug = "gone"
    title = "Gone"


class UnavailableError(RequestError):
    """The request could not be served now; its worker ended, or its problem is quarantined."""

    status = 503
    slug = "unavailable"
    title = "Unavailable"


def shutting_down() -> UnavailableError:
    """Return the error of requests that a server that shuts down does not serve."""
    return UnavailableError("the server is shutting down", retry_after_s=RETRY_S)


class DeadlineError(RequestError):
    """Computing the request took longer than the server allows."""

    status = 504
    slug = "deadline"
    title = "Deadline exceeded"


class InvalidError(RequestError):
    """A field of the request is invalid."""

    status = 422
    slug = "invalid-request"
    title = "Invalid request"

    @classmethod
    def at(cls, where: str, detail: str) -> Self:
        """Return the error of one field, by its JSON pointer."""
        return cls(f"{where or 'the body'}: {detail}", [FieldError(where, detail)])


class DocumentError(InvalidError):
    """A problem document is invalid, or cannot be canonicalised."""

    slug = "invalid-problem"
    title = "Invalid problem document"


class SolverChoiceError(InvalidError):
    """The requested solver is unknown, not installed, or does not accept the problem."""

    slug = "solver"
    title = "Solver unavailable"


class DerivativeError(InvalidError):
    """The derivative cannot be computed."""

    slug = "derivative"
    title = "Derivative unavailable"
