"""Solution -> named variables and duals, and the adjoint of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from convexlayer.program import Array, IndexArray

__all__ = ["OutputSpec", "Recovery"]


@dataclass(frozen=True)
class OutputSpec:
    """An output of the solution map: a primal variable, or a dual variable of a constraint.

    Attributes:
        name: its name.
        shape: its shape, without the batch.
        log: whether the program holds its logarithm (the primal variables of a geometric program).
    """

    name: str
    shape: tuple[int, ...]
    log: bool = False

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=int))


@dataclass(frozen=True, eq=False)
class Recovery:
    """outputs = matrix @ (x, y), exponentiated where a geometric program was solved in logarithms.

    Attributes:
        outputs: what comes out, in order.
        matrix: (entries of all outputs in row-major order, n + m), sparse.
        n: number of columns that belong to x.
    """

    outputs: tuple[OutputSpec, ...]
    matrix: sp.csr_matrix
    n: int

    @cached_property
    def _adjoint(self) -> sp.csr_matrix:
        return self.matrix.T.tocsr()

    @cached_property
    def _slices(self) -> tuple[slice, ...]:
        ends = np.cumsum([0, *(spec.size for spec in self.outputs)]).tolist()
        return tuple(slice(start, stop) for start, stop in pairwise(ends))

    def linear(self, x: Array, y: Array) -> Array:
        """All outputs' entries side by side, logarithms where a geometric program was solved in them, (B, entries)."""
        flat: Array = (self.matrix @ np.concatenate([x, y], axis=1).T).T
        return flat

    def of(self, outputs: Sequence[bool]) -> IndexArray:
        """Positions among all outputs' entries of those of these outputs."""
        return np.flatnonzero(np.repeat(np.asarray(outputs, dtype=bool), [spec.size for spec in self.outputs]))

    def apply(self, x: Array, y: Array) -> tuple[Array, ...]:
        """The outputs, each (B, *shape), of x (B, n) and y (B, m)."""
        flat = self.linear(x, y)
        values = (flat[:, where].reshape(len(flat), *spec.shape) for spec, where in self._each)
        return tuple(np.exp(value) if spec.log else value for spec, value in zip(self.outputs, values, strict=True))

    def push(self, values: Sequence[Array], dx: Array, dy: Array) -> tuple[Array, ...]:
        """Tangents of the outputs, at outputs ``values``, of tangents of x and y."""
        flat = self.linear(dx, dy)
        tangents = (flat[:, where].reshape(len(flat), *spec.shape) for spec, where in self._each)
        return tuple(
            tangent * value if spec.log else tangent
            for spec, value, tangent in zip(self.outputs, values, tangents, strict=True)
        )

    def pull(self, values: Sequence[Array], cotangents: Sequence[Array | None]) -> tuple[Array, Array]:
        """Cotangents (B, n) and (B, m) of x and y, of one cotangent an output (None is zero)."""
        batch = next((c.shape[0] for c in cotangents if c is not None), 0)
        flat = np.zeros((batch, self.matrix.shape[0]))
        for (spec, where), value, cotangent in zip(self._each, values, cotangents, strict=True):
            if cotangent is not None:
                flat[:, where] = (cotangent * value if spec.log else cotangent).reshape(batch, -1)
        pulled = (self._adjoint @ flat.T).T
        return np.ascontiguousarray(pulled[:, : self.n]), np.ascontiguousarray(pulled[:, self.n :])

    @property
    def _each(self) -> zip[tuple[OutputSpec, slice]]:
        return zip(self.outputs, self._slices, strict=True)
