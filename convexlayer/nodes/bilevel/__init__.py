"""Bilevel optimisation by the gradient of the lower solution or with its KKT conditions as constraints."""

from convexlayer.nodes.bilevel.kkt_form import KKT
from convexlayer.nodes.bilevel.lower_certificate import Certificate
from convexlayer.nodes.bilevel.optimizers import AbstractOptimizer, GradientDescent, IPiano, TorchOptimizer
from convexlayer.nodes.bilevel.progress import History, Stop, Stopped
from convexlayer.nodes.bilevel.regularisers import AbstractRegulariser, Box, L1Norm
from convexlayer.nodes.bilevel.solve import BilevelResult, solve_bilevel

__all__ = [
    "KKT",
    "AbstractOptimizer",
    "AbstractRegulariser",
    "BilevelResult",
    "Box",
    "Certificate",
    "GradientDescent",
    "History",
    "IPiano",
    "L1Norm",
    "Stop",
    "Stopped",
    "TorchOptimizer",
    "solve_bilevel",
]
