"""What can go wrong in the service, and what the caller is told.

ServerError
├── SettingsError              the environment holds a value that cannot be used
├── StoreError                 the store cannot be opened, or a key cannot be kept
└── RequestError               answered as application/problem+json (RFC 9457)
    ├── MalformedError         400  the body is not of the form that its media type says
    ├── UnauthenticatedError   401  no key, or one that is not good
    ├── QuotaError             403  the caller or the server keeps too much already
    ├── NotFoundError          404  no such problem
    ├── ConflictError          409  not in the state that it is in
    ├── GoneError              410  the state or the job's result is not, or no longer, here
    ├── TooLargeError          413  the body is larger than is read, or there is one where none is
    ├── TooManyError           429  more than one caller may have, or all together, at a time
    ├── CallerLeftError        499  for the log alone: the caller did not wait for the answer
    ├── UnavailableError       503  a worker ended or the problem is quarantined; to be tried again
    ├── DeadlineError          504  it took longer than the server allows
    └── InvalidError           422  a field of the request is wrong
        ├── DocumentError      422  a problem document is wrong
        ├── SolverChoiceError  422  the solver asked for cannot solve this
        └── DerivativeError    422  the derivative cannot be had

Errors of HTTP itself (a body of another type; no such path) get the same form in
``problems``. The ``type`` of a problem is ``urn:convexlayer:problem:<slug>``; clients tell errors apart by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

__all__ = [
    "CallerLeftError",
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
    "brief",
    "pointer",
]

_MAX_QUOTED = 80


def brief(value: Any) -> str:
    """A value as a message quotes it: its beginning, where it is long."""
    text = str(value)
    return text if len(text) <= _MAX_QUOTED else f"{text[: _MAX_QUOTED - 3]}..."


def pointer(*path: str | int) -> str:
    """JSON pointer (RFC 6901) of a path of keys and positions; the empty path is the whole document.

    Longer keys than any that is known are cut, since messages are made of pointers.
    """
    return "".join("/" + str(step)[:_MAX_QUOTED].replace("~", "~0").replace("/", "~1") for step in path)


@dataclass(frozen=True)
class FieldError:
    """One wrong place of a request.

    Attributes:
        pointer: JSON pointer into the body.
        detail: what was expected, what came, what to try.
    """

    pointer: str
    detail: str


class ServerError(Exception):
    """Base of every error of the service."""


class SettingsError(ServerError):
    """The environment holds a value that cannot be used."""


class StoreError(ServerError):
    """The store cannot be opened, or what is to be kept there cannot be."""


class RequestError(ServerError):
    """A request that is answered with a problem document.

    Attributes:
        detail: one sentence for the reader.
        errors: the places that are wrong, where they are known.
        retry_after_s: seconds after which the same request may succeed, sent as Retry-After; None where it would not.
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
    """The body is not of the form that its media type says, or holds more than can be of use."""

    status = 400
    slug = "malformed"
    title = "The body cannot be read"


class UnauthenticatedError(RequestError):
    """The request shows no key, or one that is not good."""

    status = 401
    slug = "unauthenticated"
    title = "A key is needed"


class QuotaError(RequestError):
    """The caller, or all callers together, keep as much as they may already."""

    status = 403
    slug = "quota"
    title = "The quota is used up"


class NotFoundError(RequestError):
    """There is no problem of this id."""

    status = 404
    slug = "not-found"
    title = "Not found"


class ConflictError(RequestError):
    """What is asked for cannot be had in the state that things are in."""

    status = 409
    slug = "conflict"
    title = "Not in this state"


class TooLargeError(RequestError):
    """The body is larger than is read."""

    status = 413
    slug = "too-large"
    title = "The body is too large"


class TooManyError(RequestError):
    """The caller, or all callers together, have or have sent as much as the server can do."""

    status = 429
    slug = "too-many"
    title = "Too many"


class CallerLeftError(RequestError):
    """The caller closed the connection before the answer was there: nobody will read this one."""

    status = 499
    slug = "caller-left"
    title = "Nobody waits for this"


class GoneError(RequestError):
    """What is asked for was here, perhaps, but is no longer: dropped for its age or size, or another's."""

    status = 410
    slug = "gone"
    title = "No longer here"


class UnavailableError(RequestError):
    """The request could not be served now, through no fault that can be laid to it."""

    status = 503
    slug = "unavailable"
    title = "Try again"


class DeadlineError(RequestError):
    """The request took longer than the server allows."""

    status = 504
    slug = "deadline"
    title = "Out of time"


class InvalidError(RequestError):
    """A field of the request is wrong."""

    status = 422
    slug = "invalid-request"
    title = "The request is not valid"

    @classmethod
    def at(cls, where: str, detail: str) -> Self:
        """The error of one field, by its JSON pointer."""
        return cls(f"{where or 'the body'}: {detail}", [FieldError(where, detail)])


class DocumentError(InvalidError):
    """A problem document cannot be compiled."""

    slug = "invalid-problem"
    title = "The problem document is not valid"


class SolverChoiceError(InvalidError):
    """The solver asked for is unknown, not installed, or does not take this problem."""

    slug = "solver"
    title = "The solver cannot be used"


class DerivativeError(InvalidError):
    """The derivative cannot be computed."""

    slug = "derivative"
    title = "The derivative cannot be had"
