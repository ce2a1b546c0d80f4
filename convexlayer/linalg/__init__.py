"""Factorisations of batches of symmetric quasi-definite systems of one sparsity pattern."""

from convexlayer.linalg.base import AbstractBackend, AbstractFactor, BackendState
from convexlayer.linalg.choice import choose_backend
from convexlayer.linalg.refined import ACCEPTED, SINGULAR, RefinedFactor

__all__ = [
    "ACCEPTED",
    "SINGULAR",
    "AbstractBackend",
    "AbstractFactor",
    "BackendState",
    "RefinedFactor",
    "choose_backend",
]
