"""Derivatives of the solution map of a cone program."""

from convexlayer.diff.base import AbstractDifferentiator, SolutionCotangent, SolutionTangent
from convexlayer.diff.exact import ExactDifferentiator, RelativeChange
from convexlayer.diff.kkt_system import KKTFactor, KKTSystem
from convexlayer.diff.lane_differentiator import exact_differentiator
from convexlayer.diff.modes import DerivativeMode, derivative_mode
from convexlayer.diff.polish import Polished, polish, polished
from convexlayer.diff.report import DerivativeReport

__all__ = [
    "AbstractDifferentiator",
    "DerivativeMode",
    "DerivativeReport",
    "ExactDifferentiator",
    "KKTFactor",
    "KKTSystem",
    "Polished",
    "RelativeChange",
    "SolutionCotangent",
    "SolutionTangent",
    "derivative_mode",
    "exact_differentiator",
    "polish",
    "polished",
]
