"""Elimination of a diagonal block from batches of dense quasi-definite systems.

    [ T   B ] [x]   [r]
    [ B'  C ] [u] = [t]      C diagonal:     (T - B C^-1 B') x = r - B C^-1 t,     u = C^-1 (t - B'x)

For the reduced KKT system of the derivative the Schur complement is P + B diag(1 / (1 - d + eps)) B', of order n. Rows
with d = 1 have weight 1 / eps, so that a solve loses about log10(1 / eps) digits, which refinement recovers.
"""

from __future__ import annotations

from typing import final

import numpy as np
import torch

from convexlayer.program import IndexArray, Pattern

__all__ = ["SchurFactor", "SchurPlaces", "trailing_diagonal"]


def trailing_diagonal(pattern: Pattern) -> int:
    """Size of the largest diagonal block at the end of a symmetric pattern, given by its upper triangle."""
    off = pattern.rows != pattern.cols
    return int(pattern.shape[0] - 1 - np.max(pattern.rows[off], initial=-1))


@final
class SchurPlaces:
    """Positions of a pattern's values in T, B and C.

    Args:
        pattern: upper triangle of a symmetric matrix, every diagonal entry stored.
        kept: order n of T.
        device: device of the index tensors.
    """

    def __init__(self, pattern: Pattern, kept: int, device: torch.device) -> None:
        def index(values: IndexArray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        rows, cols = pattern.rows, pattern.cols
        self.kept, self.eliminated = kept, pattern.shape[0] - kept
        self.split = int(np.searchsorted(cols, kept))
        T, beyond = slice(self.split), slice(self.split, None)
        self.upper = index(rows[T] * kept + cols[T])
        self.lower = index(cols[T] * kept + rows[T])
        # B with the diagonal of C as an additional row: every entry after the split belongs to one of them.
        self.bordered = index(np.minimum(rows[beyond], kept) * self.eliminated + cols[beyond] - kept)


@final
class SchurFactor:
    """Cholesky factors of the Schur complements.

    Attributes:
        failed: elements whose Schur complement is not positive definite, (B,); their solutions are meaningless.
    """

    def __init__(self, places: SchurPlaces, values: torch.Tensor) -> None:
        """Factorise the matrices whose upper triangles have values (B, nnz)."""
        batch, n, m = len(values), places.kept, places.eliminated
        T, beyond = values[:, : places.split], values[:, places.split :]
        remaining = values.new_zeros(batch, n * n).index_copy_(1, places.upper, T).index_copy_(1, places.lower, T)
        bordered = values.new_zeros(batch, (n + 1) * m).index_copy_(1, places.bordered, beyond).view(batch, n + 1, m)
        self._B, self._C = bordered[:, :n], bordered[:, n]
        self._F = self._B / self._C[:, None, :]
        remaining = torch.baddbmm(remaining.view(batch, n, n), self._F, self._B.mT, alpha=-1.0)
        self._L, info = torch.linalg.cholesky_ex(remaining)
        self.failed = info != 0

    def solve(self, rhs: torch.Tensor) -> torch.Tensor:
        """Solve for right-hand sides (B, N)."""
        n = self._L.shape[1]
        top, bottom = rhs[:, :n, None], rhs[:, n:, None]
        reduced = torch.baddbmm(top, self._F, bottom, alpha=-1.0)
        x = torch.linalg.solve_triangular(self._L, reduced, upper=False)
        x = torch.linalg.solve_triangular(self._L.mT, x, upper=True)
        u = (bottom - self._B.mT @ x) / self._C[..., None]
        return torch.cat((x, u), 1)[..., 0]
