"""Solver adapters, one module per solver, with one interface (``base``)."""

from convexlayer.solvers.base import AbstractSolver, SolverState
from convexlayer.solvers.options import Clock, Options

__all__ = ["AbstractSolver", "Clock", "Options", "SolverState"]
