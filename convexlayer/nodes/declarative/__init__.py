"""Nodes defined by an optimisation problem that is given by torch functions f, h and g (Gould et al. 2016)."""

from convexlayer.nodes.declarative.argmin import ArgmaxNode, ArgminNode, StationaryNode
from convexlayer.nodes.declarative.equality import EqualityNode
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver, Given, GivenBatch
from convexlayer.nodes.declarative.inequality import InequalityNode
from convexlayer.nodes.declarative.interior_point import InteriorPoint
from convexlayer.nodes.declarative.linear_equality import LinearEqualityNode, LinearForm
from convexlayer.nodes.declarative.node import AbstractNode
from convexlayer.nodes.declarative.node_options import NodeOptions
from convexlayer.nodes.declarative.nonlinear_program import Iterate, NonlinearProgram, Point
from convexlayer.nodes.declarative.scipy_ import ScipyMinimize
from convexlayer.nodes.declarative.stationary_newton import Stationary

__all__ = [
    "AbstractForwardSolver",
    "AbstractNode",
    "ArgmaxNode",
    "ArgminNode",
    "EqualityNode",
    "Given",
    "GivenBatch",
    "InequalityNode",
    "InteriorPoint",
    "Iterate",
    "LinearEqualityNode",
    "LinearForm",
    "NodeOptions",
    "NonlinearProgram",
    "Point",
    "ScipyMinimize",
    "Stationary",
    "StationaryNode",
]
