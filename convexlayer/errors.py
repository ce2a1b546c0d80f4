"""The exception hierarchy of Convexlayer.

ConvexLayerError
├── ProblemError             the problem, or an argument, is invalid
│   ├── NotDPPError          not a disciplined parametrised program
│   ├── ShapeError           a tensor's shape does not match its parameter or variable
│   └── UnsupportedError     valid CVXPY that Convexlayer does not support
├── SolverError              a solver is unavailable or failed
│   ├── NotInstalledError    the solver's package is not installed
│   └── FailedElementsError  some elements of a batch have no solution
│       └── InvalidElementsError   some elements have invalid parameter values; also a ProblemError
└── DerivativeError          the derivative cannot be computed

Third-party exceptions are wrapped with ``raise ... from``. Messages state what was expected, what was received, and
what to try.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ConvexLayerError",
    "DerivativeError",
    "FailedElementsError",
    "InvalidElementsError",
    "NotDPPError",
    "NotInstalledError",
    "ProblemError",
    "ShapeError",
    "SolverError",
    "UnsupportedError",
]


class ConvexLayerError(Exception):
    """Base class of all errors of this package."""


class ProblemError(ConvexLayerError):
    """The problem, or an argument, is invalid."""


class NotDPPError(ProblemError):
    """The problem is not a disciplined parametrised program (DPP)."""


class ShapeError(ProblemError):
    """The shape of a tensor does not match its parameter or variable."""


class UnsupportedError(ProblemError):
    """The problem is valid in CVXPY, but uses a feature that Convexlayer does not support."""


class SolverError(ConvexLayerError):
    """A solver is unknown, unavailable or unsuitable, or it failed."""


class NotInstalledError(SolverError):
    """The package of a solver is not installed."""


class FailedElementsError(SolverError):
    """Some elements of a batch have no solution.

    Attributes:
        indices: positions of the failed elements in the batch.
        outputs: the outputs of the layer, NaN for failed elements; those of the others are valid and differentiable.
        report: the report of the solve, with one status per element.
    """

    def __init__(self, message: str, *, indices: tuple[int, ...], outputs: Any, report: Any) -> None:
        super().__init__(message)
        self.indices = indices
        self.outputs = outputs
        self.report = report


class InvalidElementsError(FailedElementsError, ProblemError):
    """Some elements have invalid parameter values: not finite, against an attribute, or with a nonconvex objective."""


class DerivativeError(ConvexLayerError):
    """The derivative cannot be computed."""
