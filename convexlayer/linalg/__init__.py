"""Factorisations of batches of symmetric quasi-definite systems of one sparsity pattern."""

from convexlayer.linalg.base import AbstractBackend, AbstractFactor, BackendState
from convexlayer.linalg.choice import choose_factoriser
from convexlayer.linalg.refined import ACCEPTED, SINGULAR, AbstractFactoriser, RefinedFactor, equilibrated_product

__all__ = [
    "ACCEPTED",
    "SINGULAR",
    "AbstractBackend",
    "AbstractFactor",
    "AbstractFactoriser",
    "BackendState",
    "RefinedFactor",
    "choose_factoriser",
    "equilibrated_product",
]
