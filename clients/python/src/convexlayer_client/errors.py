"""What can go wrong between a client and a Convexlayer server.

ClientError
├── TransportError                 no answer came: refused, cut off, or the client is closed
│   └── RequestTimeoutError        none came in the time that was allowed; also the built-in TimeoutError
├── ProtocolError                  an answer came that is not this API's
├── ApiError                       the server refused or failed; one class a status
│   ├── MalformedError             400  the body is not JSON
│   ├── UnauthenticatedError       401  no key, or an unknown one
│   ├── ForbiddenError             403  the key may not do this
│   ├── NotFoundError              404  no such problem
│   ├── ConflictError              409  the state of the thing does not allow this
│   ├── GoneError                  410  the state was dropped
│   ├── TooLargeError              413  the body exceeds a limit
│   ├── MediaTypeError             415  the body is of a type that is not read
│   ├── InvalidError               422  a field of the request is wrong; ``errors`` says which
│   ├── TooManyRequestsError       429  come again after ``retry_after_s``
│   ├── InternalError              500  a defect of the server
│   ├── UnavailableError           503  come again after ``retry_after_s``
│   └── DeadlineError              504  the time allowed was not enough
├── EncodingError                  what was given is no JSON, or no array; found before anything is sent
├── UnsupportedExpressionError     a CVXPY problem that no document states
├── ShapeError                     a tensor does not fit its parameter, or a batch its state; found before it is sent
├── DerivativeError                a derivative may not exist, and the layer was told to raise
└── FailedElementsError            elements of a batch have no solution

An infeasible or unbounded problem is no error of the service: it is an answer with a status.
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
    "DerivativeError",
    "EncodingError",
    "FailedElementsError",
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
    """Base of every error of this package; all of them can be pickled, so that they reach other processes."""

    def __reduce__(self) -> tuple[Callable[..., ClientError], tuple[Any, ...], dict[str, Any]]:
        return _made, (type(self), *self.args), vars(self)


def _made(kind: type[ClientError], *arguments: Any) -> ClientError:
    """An error as it was, whatever its __init__ takes."""
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    return error


class TransportError(ClientError):
    """No answer came from the server, and the cause is the HTTP library's error; or the client is closed."""


@final
class RequestTimeoutError(TransportError, TimeoutError):
    """No answer came in the time that was allowed.

    Attributes:
        timeout_s: That time.
    """

    def __init__(self, message: str, *, timeout_s: float) -> None:
        super().__init__(message)
        self.timeout_s = timeout_s


@final
class ProtocolError(ClientError):
    """The server's answer is not one that this client can read."""


@dataclass(frozen=True)
class FieldError:
    """One wrong place of a request.

    Attributes:
        pointer: JSON pointer (RFC 6901) into the body; empty for the whole body.
        detail: What was expected, what came, what to try.
    """

    pointer: str
    detail: str


class ApiError(ClientError):
    """The server refused the request, or failed (a problem document of RFC 9457).

    Attributes:
        status: HTTP status.
        type: URI of the kind of error, finer than the status: ``urn:convexlayer:problem:...``.
        title: The kind of error in words.
        detail: This occurrence in words.
        errors: The wrong places of the request.
        request_id: What the server's log calls this request; None where it did not say.
        retry_after_s: Seconds after which to try again; None where the server did not say.
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
    """400: the body is not JSON."""


@final
class UnauthenticatedError(ApiError):
    """401: no key was sent, or one that the server does not know."""


@final
class ForbiddenError(ApiError):
    """403: the key may not do this."""


@final
class NotFoundError(ApiError):
    """404: there is no such problem; register it first."""


@final
class ConflictError(ApiError):
    """409: the state of what is addressed does not allow this."""


@final
class GoneError(ApiError):
    """410: the state that was referred to has been dropped; send the parameters instead."""


@final
class TooLargeError(ApiError):
    """413: the body, or what it decodes to, exceeds a limit of the server."""


@final
class MediaTypeError(ApiError):
    """415: the body is of a media type that the server does not read."""


@final
class InvalidError(ApiError):
    """422: a field of the request is wrong; ``errors`` says which and why."""


@final
class TooManyRequestsError(ApiError):
    """429: a limit on requests is reached; try again after ``retry_after_s``."""


@final
class InternalError(ApiError):
    """500: a defect of the server."""


@final
class UnavailableError(ApiError):
    """503: the server cannot serve this now; try again after ``retry_after_s``."""


@final
class DeadlineError(ApiError):
    """504: the time that was allowed did not suffice."""


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
"""The class of each status; any other status is an ``ApiError`` itself."""


@final
class EncodingError(ClientError):
    """A document is not plain JSON, or a value is not an array of numbers."""


@final
class UnsupportedExpressionError(ClientError):
    """A CVXPY problem holds something that a problem document cannot state."""


@final
class ShapeError(ClientError):
    """A tensor does not have its parameter's shape, or batches, or a batch and its state, differ in size."""


@final
class DerivativeError(ClientError):
    """A derivative may not exist or is inaccurate, and the layer was told to raise."""


@final
class FailedElementsError(ClientError):
    """Elements of a batch have no solution.

    Attributes:
        indices: Positions of the failed elements.
        outputs: What the layer would have returned, NaN in the failed rows; the others can be used and differentiated.
        report: The report of the call, with one status an element.
    """

    def __init__(self, message: str, *, indices: tuple[int, ...], outputs: Any, report: Any) -> None:
        super().__init__(message)
        self.indices = indices
        self.outputs = outputs
        self.report = report
