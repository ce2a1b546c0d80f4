"""The KKT systems of a batch, solved by Cholesky factors of n x n matrices.

    [ P   E'   G' ] [x]   [r1]
    [ E   0    0  ] [v] = [r2]        E the rows of the zero cone, G the others, W the Nesterov-Todd scaling
    [ G   0   -W^2] [u]   [r3]

With F = W^-1 G, eliminating u leaves P + F'F. Adding E'E to it, and E'r2 to its right-hand side, does not change the
solution, and makes it positive definite also if only E determines a variable. The equalities are then eliminated by a
Schur complement of its Cholesky factor. F'F is formed from F, not from W^-2, so that it is semidefinite to rounding.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from convexlayer.interior_point.torch.cones import Scaling

__all__ = ["KktData", "KktFactor"]

STATIC_REG = 1e-10
"""Static regularisation of the equilibrated P, whose entries are about 1. It acts as a proximal term at the iterate: it
slows convergence slightly and does not change the limit. Refinement keeps it, because without it the system may be
inconsistent."""

DIAGONAL_REG = 1e-14
"""Relative increase of the diagonal entries before a Cholesky factorisation, 45 times the machine epsilon: covers the
rounding errors of a semidefinite matrix of moderate order."""


@final
class KktData:
    """The part of the KKT matrix that does not change between iterations.

    Args:
        P: (B, n, n).
        A: (B, p + rows, n), the p rows of the zero cone first.
        p: number of rows of the zero cone.
        regularisation: added to the diagonal of the equilibrated P.
    """

    def __init__(self, P: Tensor, A: Tensor, p: int, regularisation: float = STATIC_REG) -> None:
        self.P, self.A, self.p, self.regularisation = P, A, p, regularisation
        self.E, self.G = A[:, :p], A[:, p:]
        self.base = torch.baddbmm(P, self.E.mT, self.E) if p else P.clone()
        self.base.diagonal(dim1=1, dim2=2).add_(regularisation)

    def select(self, index: Tensor) -> KktData:
        """The elements at these positions."""
        return KktData(self.P[index], self.A[index], self.p, self.regularisation)


@final
class KktFactor:
    """Factorisation of the KKT matrices of one iteration. Solutions are NaN if a factorisation fails."""

    def __init__(self, data: KktData, scaling: Scaling) -> None:
        self._data = data
        self._scaling = scaling
        self._F = scaling.divide(data.G)
        self._L = _cholesky(torch.baddbmm(data.base, self._F.mT, self._F))
        if data.p:
            self._Y = torch.linalg.solve_triangular(self._L, data.E.mT, upper=False)
            self._S = _cholesky(self._Y.mT @ self._Y)

    def solve(self, top: Tensor, bottom: Tensor, *, refinements: int = 2) -> tuple[Tensor, Tensor]:
        """Solve for k right-hand sides (B, n, k) and (B, p + rows, k), refined against the (regularised) system.

        Two steps of refinement by default: with one, a few elements in a thousand stall (measured) if P is singular and
        constraints are weakly active.
        """
        x, z = self._once(top, bottom)
        for _ in range(refinements):
            Kx, Kz = self.multiply(x, z)
            dx, dz = self._once(top - Kx, bottom - Kz)
            x, z = x + dx, z + dz
        return x, z

    def multiply(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Product of the regularised KKT matrix with (x, z)."""
        data, scaling = self._data, self._scaling
        top = torch.baddbmm(data.A.mT @ z, data.P, x).add_(x, alpha=data.regularisation)
        bottom = data.A @ x
        bottom[:, data.p :] -= scaling.multiply(scaling.multiply(z[:, data.p :]))
        return top, bottom

    def _once(self, top: Tensor, bottom: Tensor) -> tuple[Tensor, Tensor]:
        data, p = self._data, self._data.p
        scaled = self._scaling.divide(bottom[:, p:])
        reduced = torch.baddbmm(top, self._F.mT, scaled)
        if p:
            reduced = torch.baddbmm(reduced, data.E.mT, bottom[:, :p])
        t = torch.linalg.solve_triangular(self._L, reduced, upper=False)
        if p:
            v = _cholesky_solve(self._S, self._Y.mT @ t - bottom[:, :p])
            t = t - self._Y @ v
        x = torch.linalg.solve_triangular(self._L.mT, t, upper=True)
        u = self._scaling.divide(self._F @ x - scaled)
        return x, torch.cat((v, u), 1) if p else u


def _cholesky(matrix: Tensor) -> Tensor:
    matrix.diagonal(dim1=1, dim2=2).mul_(1.0 + DIAGONAL_REG)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    factor[:, 0, 0] = torch.where(failed == 0, factor[:, 0, 0], torch.nan)  # makes every solution NaN
    return factor


def _cholesky_solve(factor: Tensor, rhs: Tensor) -> Tensor:
    t = torch.linalg.solve_triangular(factor, rhs, upper=False)
    return torch.linalg.solve_triangular(factor.mT, t, upper=True)
