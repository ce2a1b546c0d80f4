"""Solver adapters: one file a solver, one contract."""

from convexlayer.solvers.base import AbstractSolver, SolverState
from convexlayer.solvers.options import Options

__all__ = ["AbstractSolver", "Options", "SolverState"]
