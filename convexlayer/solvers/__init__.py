"""Solver adapters: one file a solver, one contract."""

from convexlayer.solvers.base import AbstractSolver, SolverState
from convexlayer.solvers.options import Clock, Options

__all__ = ["AbstractSolver", "Clock", "Options", "SolverState"]
