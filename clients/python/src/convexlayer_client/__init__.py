"""Client of a Convexlayer server.

``Client`` and ``AsyncClient`` send requests; ``convexlayer_client.wire`` has the calls of the API as values, for jobs.
``RemoteSolutionMap`` is a CVXPY problem as a function with derivatives; it needs CVXPY, and so does
``convexlayer_client.expression`` (to_document), which must be imported by name.
"""

from convexlayer_client.account import Capabilities, DayUsage, Solver, Usage
from convexlayer_client.async_client import AsyncClient
from convexlayer_client.client import Client
from convexlayer_client.errors import (
    ApiError,
    ClientError,
    ConflictError,
    DeadlineError,
    EncodingError,
    FieldError,
    ForbiddenError,
    GoneError,
    InternalError,
    InvalidError,
    MalformedError,
    MediaTypeError,
    NotFoundError,
    ProtocolError,
    RequestTimeoutError,
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
    SplitState,
    VjpResult,
)
from convexlayer_client.solution_map import RemoteSolutionMap
from convexlayer_client.version import __version__

__all__ = [
    "ApiError",
    "AsyncClient",
    "Capabilities",
    "Client",
    "ClientError",
    "ConflictError",
    "DayUsage",
    "DeadlineError",
    "DerivativeReport",
    "EncodingError",
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
    "RemoteSolutionMap",
    "RequestTimeoutError",
    "Residuals",
    "ShapeError",
    "SolveResult",
    "Solver",
    "SplitState",
    "TooLargeError",
    "TooManyRequestsError",
    "TransportError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedExpressionError",
    "Usage",
    "VjpResult",
    "__version__",
]
