"""Declarative nodes: functions defined by an optimisation problem, given by torch functions."""

from convexlayer.nodes.approximate import Diagonal, Neumann
from convexlayer.nodes.argmin import ArgmaxNode, ArgminNode, StationaryNode
from convexlayer.nodes.batch import Batch
from convexlayer.nodes.bilevel import BilevelResult, History, Stop, Stopped, solve_bilevel
from convexlayer.nodes.bregman import AbstractBregman, BoxEntropy, Euclidean, OrthantEntropy, SimplexEntropy
from convexlayer.nodes.curvature import Kind
from convexlayer.nodes.eigen import eigen_decomposition
from convexlayer.nodes.equality import EqualityNode
from convexlayer.nodes.fixed_point import FixedPointNode
from convexlayer.nodes.forward import AbstractForwardSolver, Given, GivenBatch
from convexlayer.nodes.implicit import Equation, solve_implicitly
from convexlayer.nodes.inequality import InequalityNode
from convexlayer.nodes.interior_point import InteriorPoint
from convexlayer.nodes.iteration import AbstractDerivative, ForwardMode, Implicit, Unrolled
from convexlayer.nodes.iterative import GMRES, ConjugateGradients, MinimalResidual
from convexlayer.nodes.kkt import KKT
from convexlayer.nodes.least_squares import least_squares, weighted_least_squares
from convexlayer.nodes.linear import AbstractLinearSolver, AbstractResidual, Dense, LinearSolve, Operator
from convexlayer.nodes.linear_equality import LinearEqualityNode, LinearForm
from convexlayer.nodes.minimality import Certificate
from convexlayer.nodes.node import AbstractNode
from convexlayer.nodes.nonlinear import Iterate, NonlinearProgram, Point
from convexlayer.nodes.optimizers import AbstractOptimizer, GradientDescent, IPiano, TorchOptimizer
from convexlayer.nodes.options import NodeOptions
from convexlayer.nodes.penalties import AbstractPenalty, Huber, PseudoHuber, Quadratic, TruncatedQuadratic, Welsch
from convexlayer.nodes.perspective import perspective_n_point, rotation_of
from convexlayer.nodes.polyhedron import PolyhedronEntropy
from convexlayer.nodes.pooling import robust_pool
from convexlayer.nodes.procrustes import nearest_simplex_etf, orthogonal_procrustes, simplex_etf
from convexlayer.nodes.projections import (
    project_l1_ball,
    project_l1_sphere,
    project_l2_ball,
    project_l2_sphere,
    project_linf_ball,
    project_linf_sphere,
    project_simplex,
)
from convexlayer.nodes.report import NodeReport
from convexlayer.nodes.root import RootNode
from convexlayer.nodes.scipy_ import ScipyMinimize
from convexlayer.nodes.splitting import ForwardBackward, PrimalDual, projected_gradient
from convexlayer.nodes.stationary import Stationary
from convexlayer.nodes.transport import optimal_transport
from convexlayer.nodes.upper import AbstractRegulariser, Box, L1Norm

__all__ = [
    "GMRES",
    "KKT",
    "AbstractBregman",
    "AbstractDerivative",
    "AbstractForwardSolver",
    "AbstractLinearSolver",
    "AbstractNode",
    "AbstractOptimizer",
    "AbstractPenalty",
    "AbstractRegulariser",
    "AbstractResidual",
    "ArgmaxNode",
    "ArgminNode",
    "Batch",
    "BilevelResult",
    "Box",
    "BoxEntropy",
    "Certificate",
    "ConjugateGradients",
    "Dense",
    "Diagonal",
    "EqualityNode",
    "Equation",
    "Euclidean",
    "FixedPointNode",
    "ForwardBackward",
    "ForwardMode",
    "Given",
    "GivenBatch",
    "GradientDescent",
    "History",
    "Huber",
    "IPiano",
    "Implicit",
    "InequalityNode",
    "InteriorPoint",
    "Iterate",
    "Kind",
    "L1Norm",
    "LinearEqualityNode",
    "LinearForm",
    "LinearSolve",
    "MinimalResidual",
    "Neumann",
    "NodeOptions",
    "NodeReport",
    "NonlinearProgram",
    "Operator",
    "OrthantEntropy",
    "Point",
    "PolyhedronEntropy",
    "PrimalDual",
    "PseudoHuber",
    "Quadratic",
    "RootNode",
    "ScipyMinimize",
    "SimplexEntropy",
    "Stationary",
    "StationaryNode",
    "Stop",
    "Stopped",
    "TorchOptimizer",
    "TruncatedQuadratic",
    "Unrolled",
    "Welsch",
    "eigen_decomposition",
    "least_squares",
    "nearest_simplex_etf",
    "optimal_transport",
    "orthogonal_procrustes",
    "perspective_n_point",
    "project_l1_ball",
    "project_l1_sphere",
    "project_l2_ball",
    "project_l2_sphere",
    "project_linf_ball",
    "project_linf_sphere",
    "project_simplex",
    "projected_gradient",
    "robust_pool",
    "rotation_of",
    "simplex_etf",
    "solve_bilevel",
    "solve_implicitly",
    "weighted_least_squares",
]
