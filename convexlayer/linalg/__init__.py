"""Factorisations of batches of symmetric quasi-definite systems of one sparsity pattern."""

from convexlayer.linalg.base import AbstractBackend, AbstractFactor, BackendState
from convexlayer.linalg.choice import choose_factoriser
from convexlayer.linalg.equilibration import equilibration, program_scales
from convexlayer.linalg.matrix_free import (
    AbstractInverse,
    AbstractMatrix,
    FactoredInverse,
    KrylovInverse,
    MatrixFree,
    MatrixFreeFactor,
)
from convexlayer.linalg.refined import (
    EPS,
    RESIDUAL_TOL,
    SINGULAR,
    AbstractFactoriser,
    RefinedFactor,
)

__all__ = [
    "EPS",
    "RESIDUAL_TOL",
    "SINGULAR",
    "AbstractBackend",
    "AbstractFactor",
    "AbstractFactoriser",
    "AbstractInverse",
    "AbstractMatrix",
    "BackendState",
    "FactoredInverse",
    "KrylovInverse",
    "MatrixFree",
    "MatrixFreeFactor",
    "RefinedFactor",
    "choose_factoriser",
    "equilibration",
    "program_scales",
]
