"""Convexlayer: the solution map of a CVXPY problem as a function with derivatives."""

from convexlayer.canon import OutputSpec, ParameterSpec, ParametricProgram, canonicalize
from convexlayer.diff import DerivativeReport
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
from convexlayer.layers import ConvexLayer, Report, SolutionMap, SolvedBatch
from convexlayer.solution import Status
from convexlayer.solvers import Options

__version__ = "0.1.0"

__all__ = [
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
