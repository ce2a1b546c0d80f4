"""Client of a Convexlayer server.

``Client`` and ``AsyncClient`` speak the API; ``convexlayer_client.wire`` has its calls as values, for jobs. Two modules
need more than this package installs and are imported by name:
``convexlayer_client.expression`` (to_document; CVXPY), ``convexlayer_client.layer`` (RemoteConvexLayer; CVXPY, torch).
"""

from convexlayer_client.async_client import AsyncClient
from convexlayer_client.client import Client
from convexlayer_client.errors import (
    ApiError,
    ClientError,
    ConflictError,
    DeadlineError,
    DerivativeError,
    EncodingError,
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
    Job,
    JobStatus,
    JvpResult,
    Options,
    PortableState,
    Problem,
    Residuals,
    SolveResult,
    VjpResult,
)

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "ClientError",
    "ConflictError",
    "DeadlineError",
    "DerivativeError",
    "DerivativeReport",
    "EncodingError",
    "FailedElementsError",
    "FieldError",
    "ForbiddenError",
    "GoneError",
    "InternalError",
    "InvalidError",
    "Job",
    "JobStatus",
    "JvpResult",
    "MalformedError",
    "MediaTypeError",
    "NotFoundError",
    "Options",
    "PortableState",
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
