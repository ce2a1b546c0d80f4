"""Client of a Convexlayer server.

``Client`` speaks the API. Two modules need more than this package installs and are imported by name:
``convexlayer_client.expression`` (to_document; CVXPY), ``convexlayer_client.layer`` (RemoteConvexLayer; CVXPY, torch).
"""

from convexlayer_client.client import Client
from convexlayer_client.errors import (
    ApiError,
    ClientError,
    ConflictError,
    DeadlineError,
    DerivativeError,
    FailedElementsError,
    FieldError,
    ForbiddenError,
    GoneError,
    InternalError,
    InvalidError,
    MalformedError,
    MediaTypeError,
    NotFoundError,
    ProtocolError,
    ShapeError,
    TooLargeError,
    TooManyRequestsError,
    TransportError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedExpressionError,
)
from convexlayer_client.results import (
    DerivativeReport,
    JvpResult,
    Options,
    Problem,
    Residuals,
    SolveResult,
    VjpResult,
)

__all__ = [
    "ApiError",
    "Client",
    "ClientError",
    "ConflictError",
    "DeadlineError",
    "DerivativeError",
    "DerivativeReport",
    "FailedElementsError",
    "FieldError",
    "ForbiddenError",
    "GoneError",
    "InternalError",
    "InvalidError",
    "JvpResult",
    "MalformedError",
    "MediaTypeError",
    "NotFoundError",
    "Options",
    "Problem",
    "ProtocolError",
    "Residuals",
    "ShapeError",
    "SolveResult",
    "TooLargeError",
    "TooManyRequestsError",
    "TransportError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedExpressionError",
    "VjpResult",
]
