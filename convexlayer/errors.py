"""The errors that Convexlayer raises, and nothing else raises.

ConvexLayerError
├── ProblemError             the problem, or a value given to it, cannot be used
│   ├── NotDPPError          not a disciplined parametrised program
│   ├── ShapeError           a tensor's shape does not fit its parameter or variable
│   └── UnsupportedError     legal CVXPY that Convexlayer does not (yet) know
├── SolverError              a solver cannot be used, or failed
│   ├── NotInstalledError    the solver's package is missing
│   └── FailedElementsError  some elements of a batch have no solution
│       └── InvalidElementsError   of some the values cannot be used; a ProblemError too
└── DerivativeError          the derivative cannot be had

Third-party exceptions are wrapped with ``raise ... from``. A message says what was expected, what came and what
to try.
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
    """Base of every error of this package."""


class ProblemError(ConvexLayerError):
    """The problem, or a value given to it, cannot be used."""


class NotDPPError(ProblemError):
    """The problem is not a disciplined parametrised program (DPP)."""


class ShapeError(ProblemError):
    """A tensor's shape does not fit the parameter or variable it belongs to."""


class UnsupportedError(ProblemError):
    """The problem is legal CVXPY, but uses a feature that Convexlayer does not know."""


class SolverError(ConvexLayerError):
    """A solver cannot be used here, or failed."""


class NotInstalledError(SolverError):
    """The package of a solver is not installed."""


class FailedElementsError(SolverError):
    """Some elements of a batch have no solution.

    Attributes:
        indices: positions of the failed elements in the batch.
        outputs: what the layer would have returned, NaN in the failed rows; the others can be used and differentiated.
        report: the report of the solve, with one status an element.
    """

    def __init__(self, message: str, *, indices: tuple[int, ...], outputs: Any, report: Any) -> None:
        super().__init__(message)
        self.indices = indices
        self.outputs = outputs
        self.report = report


class InvalidElementsError(FailedElementsError, ProblemError):
    """Some elements have values that cannot be used: not finite, against an attribute, or of no convex problem."""


class DerivativeError(ConvexLayerError):
    """The derivative cannot be computed."""
