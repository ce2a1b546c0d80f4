"""Nodes defined by a fixed point, an iterate or a root: splitting algorithms, Bregman distances, Newton's method."""

from convexlayer.nodes.fixed_point.bregman import AbstractBregman, BoxEntropy, Euclidean, OrthantEntropy, SimplexEntropy
from convexlayer.nodes.fixed_point.differentiation import AbstractDerivative, ForwardMode, Implicit, Unrolled
from convexlayer.nodes.fixed_point.fixed_point_node import FixedPointNode
from convexlayer.nodes.fixed_point.polyhedron_entropy import PolyhedronEntropy
from convexlayer.nodes.fixed_point.root_node import RootNode
from convexlayer.nodes.fixed_point.splitting import ForwardBackward, PrimalDual, projected_gradient

__all__ = [
    "AbstractBregman",
    "AbstractDerivative",
    "BoxEntropy",
    "Euclidean",
    "FixedPointNode",
    "ForwardBackward",
    "ForwardMode",
    "Implicit",
    "OrthantEntropy",
    "PolyhedronEntropy",
    "PrimalDual",
    "RootNode",
    "SimplexEntropy",
    "Unrolled",
    "projected_gradient",
]
