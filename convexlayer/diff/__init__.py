"""Derivatives of the solution map of a cone program."""

from convexlayer.diff.base import AbstractDifferentiator, SolutionCotangent, SolutionTangent
from convexlayer.diff.kkt import ExactDifferentiator, ReducedSystem
from convexlayer.diff.modes import DerivativeMode, derivative_mode
from convexlayer.diff.polish import polish
from convexlayer.diff.report import DerivativeReport

__all__ = [
    "AbstractDifferentiator",
    "DerivativeMode",
    "DerivativeReport",
    "ExactDifferentiator",
    "ReducedSystem",
    "SolutionCotangent",
    "SolutionTangent",
    "derivative_mode",
    "polish",
]
