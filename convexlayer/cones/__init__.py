"""The cones: projection onto the dual cone and its derivative, one module per cone."""

from __future__ import annotations

from convexlayer.cones.base import AbstractCone, ConePoint, Eigenbasis, RankTwo
from convexlayer.cones.exponential import Exponential
from convexlayer.cones.kronecker import KroneckerBasis, SymmetricVectors, symmetric_vectors
from convexlayer.cones.nonnegative import Nonnegative
from convexlayer.cones.power import Power
from convexlayer.cones.product import Group, Piece, ProductCone, ProductDerivative, ProductPoint, product_cone
from convexlayer.cones.psd import PositiveSemidefinite
from convexlayer.cones.second_order import SecondOrder
from convexlayer.cones.zero import Zero

__all__ = [
    "AbstractCone",
    "ConePoint",
    "Eigenbasis",
    "Exponential",
    "Group",
    "KroneckerBasis",
    "Nonnegative",
    "Piece",
    "PositiveSemidefinite",
    "Power",
    "ProductCone",
    "ProductDerivative",
    "ProductPoint",
    "RankTwo",
    "SecondOrder",
    "SymmetricVectors",
    "Zero",
    "product_cone",
    "symmetric_vectors",
]
