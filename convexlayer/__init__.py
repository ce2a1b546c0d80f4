"""Convexlayer: differentiable solution maps of CVXPY problems."""

from typing import TYPE_CHECKING

from convexlayer.errors import (
    ConvexLayerError,
    DerivativeError,
    FailedElementsError,
    InvalidElementsError,
    NotDPPError,
    NotInstalledError,
    ProblemError,
    ShapeError,
    SolverError,
    UnsupportedError,
)
from convexlayer.lazy import attach

if TYPE_CHECKING:
    from convexlayer.canon import OutputSpec, ParameterSpec, ParametricProgram
    from convexlayer.diff import DerivativeReport
    from convexlayer.layers import ChunkedBatch, ConvexLayer, Report, SolutionMap, SolvedBatch
    from convexlayer.layers.canonicalize import canonicalize
    from convexlayer.solvers import Options
    from convexlayer.status import Status
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "canon": ["OutputSpec", "ParameterSpec", "ParametricProgram"],
            "diff": ["DerivativeReport"],
            "layers": ["ChunkedBatch", "ConvexLayer", "Report", "SolutionMap", "SolvedBatch"],
            "layers.canonicalize": ["canonicalize"],
            "status": ["Status"],
            "solvers": ["Options"],
        },
    )

__version__ = "0.1.0"

__all__ = [
    "ChunkedBatch",
    "ConvexLayer",
    "ConvexLayerError",
    "DerivativeError",
    "DerivativeReport",
    "FailedElementsError",
    "InvalidElementsError",
    "NotDPPError",
    "NotInstalledError",
    "Options",
    "OutputSpec",
    "ParameterSpec",
    "ParametricProgram",
    "ProblemError",
    "Report",
    "ShapeError",
    "SolutionMap",
    "SolvedBatch",
    "SolverError",
    "Status",
    "UnsupportedError",
    "canonicalize",
]
