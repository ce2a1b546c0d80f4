"""Errors of the client.

ClientError
├── TransportError                 no response: connection refused or broken, or the client is closed
│   └── RequestTimeoutError        no response in time; also a TimeoutError
├── ProtocolError                  the response is not one of this API
├── ApiError                       the server responded with an error; a class for each status
│   ├── MalformedError             400  the body cannot be parsed
│   ├── UnauthenticatedError       401  no key, or an unknown one
│   ├── ForbiddenError             403  the key stores as much as it may
│   ├── NotFoundError              404  no such problem or job
│   ├── ConflictError              409  the job is not in the required state
│   ├── GoneError                  410  the state or the job's result has expired
│   ├── TooLargeError              413  the body exceeds a limit
│   ├── MediaTypeError             415  the media type is not supported
│   ├── InvalidError               422  a field of the request is invalid; see ``errors``
│   ├── TooManyRequestsError       429  try again after ``retry_after_s``
│   ├── InternalError              500  a bug in the server
│   ├── UnavailableError           503  try again after ``retry_after_s``
│   └── DeadlineError              504  computing took too long
├── EncodingError                  an argument is not JSON, or not an array; raised before sending
├── UnsupportedExpressionError     a CVXPY problem cannot be expressed as a document
└── ShapeError                     shapes or batch sizes do not match; raised before sending

An infeasible or unbounded problem is not an error of the service: the result has a status.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

__all__ = [
    "API_ERRORS",
    "ApiError",
    "ClientError",
    "ConflictError",
    "DeadlineError",
    "EncodingError",
    "FieldError",
    "ForbiddenError",
    "GoneError",
    "InternalError",
    "InvalidError",
    "MalformedError",
    "MediaTypeError",
    "NotFoundError",
    "ProtocolError",
    "RequestTimeoutError",
    "ShapeError",
    "TooLargeError",
    "TooManyRequestsError",
    "TransportError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedExpressionError",
]


class ClientError(Exception):
    """Base class of all errors of this package. They can be pickled."""

    def __reduce__(self) -> tuple[Callable[..., ClientError], tuple[Any, ...], dict[str, Any]]:
        return _made, (type(self), *self.args), vars(self)


def _made(kind: type[ClientError], *arguments: Any) -> ClientError:
    """Restore an error without calling its __init__."""
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    return error


class TransportError(ClientError):
    """No response arrived; the cause is the error of the HTTP library, unless the client is closed."""


@final
class RequestTimeoutError(TransportError, TimeoutError):
    """No response arrived in time.

    Attributes:
        timeout_s: The timeout.
    """

    def __init__(self, message: str, *, timeout_s: float) -> None:
        super().__init__(message)
        self.timeout_s = timeout_s


@final
class ProtocolError(ClientError):
    """The response is not one of this API."""


@dataclass(frozen=True)
class FieldError:
    """One invalid field of a request.

    Attributes:
        pointer: JSON pointer (RFC 6901) into the body; empty for the whole body.
        detail: What was expected, and what was given.
    """

    pointer: str
    detail: str


class ApiError(ClientError):
    """The server responded with an error (problem details of RFC 9457).

    Attributes:
        status: HTTP status.
        type: URI of the kind of error, finer than the status: ``urn:convexlayer:problem:...``.
        title: Summary of the kind of error.
        detail: Explanation of this occurrence.
        errors: The invalid fields of the request.
        request_id: ID of the request in the server's log, if known.
        retry_after_s: Seconds after which to try again, if known.
    """

    def __init__(
        self,
        *,
        status: int,
        type: str,
        title: str,
        detail: str,
        errors: Sequence[FieldError] = (),
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        places = "".join(f"\n  {error.pointer or '(body)'}: {error.detail}" for error in errors)
        reference = f" (request {request_id})" if request_id else ""
        super().__init__(f"{status} {title}: {detail}{reference}{places}")
        self.status = status
        self.type = type
        self.title = title
        self.detail = detail
        self.errors = tuple(errors)
        self.request_id = request_id
        self.retry_after_s = retry_after_s


@final
class MalformedError(ApiError):
    """400: the body cannot be parsed as its media type."""


@final
class UnauthenticatedError(ApiError):
    """401: the request has no key, or an invalid one."""


@final
class ForbiddenError(ApiError):
    """403: the key, or all keys together, store as much as they may."""


@final
class NotFoundError(ApiError):
    """404: the key has no such problem or job; a problem must be registered first."""


@final
class ConflictError(ApiError):
    """409: the job is not in the required state."""


@final
class GoneError(ApiError):
    """410: the state has expired, so send the parameters instead; or the job was cancelled."""


@final
class TooLargeError(ApiError):
    """413: the body exceeds a limit of the server."""


@final
class MediaTypeError(ApiError):
    """415: the server does not support the media type of the body."""


@final
class InvalidError(ApiError):
    """422: a field of the request is invalid; ``errors`` has the details."""


@final
class TooManyRequestsError(ApiError):
    """429: a limit on requests is reached; try again after ``retry_after_s``."""


@final
class InternalError(ApiError):
    """500: a bug in the server."""


@final
class UnavailableError(ApiError):
    """503: the server cannot serve this now; try again after ``retry_after_s``."""


@final
class DeadlineError(ApiError):
    """504: computing took longer than the server allows."""


API_ERRORS = MappingProxyType[int, type[ApiError]](
    {
        400: MalformedError,
        401: UnauthenticatedError,
        403: ForbiddenError,
        404: NotFoundError,
        409: ConflictError,
        410: GoneError,
        413: TooLargeError,
        415: MediaTypeError,
        422: InvalidError,
        429: TooManyRequestsError,
        500: InternalError,
        503: UnavailableError,
        504: DeadlineError,
    }
)
"""The class for each status; other statuses raise ``ApiError`` itself."""


@final
class EncodingError(ClientError):
    """A document is not plain JSON, or a value is not an array of numbers; raised before sending."""


@final
class UnsupportedExpressionError(ClientError):
    """A CVXPY problem cannot be expressed as a problem document."""


@final
class ShapeError(ClientError):
    """An array has another shape than its parameter, or batch sizes differ; raised before sending."""
