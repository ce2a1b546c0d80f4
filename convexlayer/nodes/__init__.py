"""Declarative nodes: functions defined by an optimisation problem, given by torch functions."""

from convexlayer.nodes.batch import Batch
from convexlayer.nodes.implicit import Equation, solve_implicitly
from convexlayer.nodes.linear import AbstractLinearSolver, Dense, LinearSolve, Operator

__all__ = [
    "AbstractLinearSolver",
    "Batch",
    "Dense",
    "Equation",
    "LinearSolve",
    "Operator",
    "solve_implicitly",
]
