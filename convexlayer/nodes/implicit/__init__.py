"""Differentiation of solutions of R(z, theta) = 0 by the implicit function theorem, and its linear systems."""

from convexlayer.nodes.implicit.approximate_inverse import Diagonal, Neumann
from convexlayer.nodes.implicit.dense_lu import Dense
from convexlayer.nodes.implicit.equation import Equation, solve_implicitly
from convexlayer.nodes.implicit.krylov import GMRES, ConjugateGradients, MinimalResidual
from convexlayer.nodes.implicit.node_report import NodeReport
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, AbstractResidual, LinearSolve, Operator
from convexlayer.nodes.implicit.stationary_kind import Kind

__all__ = [
    "GMRES",
    "AbstractLinearSolver",
    "AbstractResidual",
    "ConjugateGradients",
    "Dense",
    "Diagonal",
    "Equation",
    "Kind",
    "LinearSolve",
    "MinimalResidual",
    "Neumann",
    "NodeReport",
    "Operator",
    "solve_implicitly",
]
