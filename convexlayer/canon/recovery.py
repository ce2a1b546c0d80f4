"""Recovery of the outputs (variables and dual variables) from the solution of the cone program, and its adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from convexlayer.canon.affine_map import AffineMap
from convexlayer.program import Array, IndexArray
from convexlayer.sparse import BatchedMatrix

__all__ = ["DirectTerm", "OutputSpec", "Recovery"]


@dataclass(frozen=True)
class OutputSpec:
    """An output of the solution map: a primal variable, or a dual variable of a constraint.

    Attributes:
        name: its name.
        shape: its shape, without the batch axis.
        log: whether the program is solved for its logarithm (the primal variables of a geometric program).
    """

    name: str
    shape: tuple[int, ...]
    log: bool = False

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=int))


@dataclass(frozen=True, eq=False)
class DirectTerm:
    """Direct dependence of the outputs on the features f: affine(f) + weight @ ((factor @ f) * (point @ (x, y))).

    Variables eliminated by presolve have offsets that depend on f. The duals of the eliminated rows follow from
    stationarity, in which the feature-dependent P and A multiply x and y. Gradients must include these terms.

    Attributes:
        affine: map from features to (entries of all outputs,).
        weight: (entries, products), sparse.
        factor: (products, features), sparse.
        point: (products, n + m), sparse.
    """

    affine: AffineMap
    weight: sp.csr_matrix
    factor: sp.csr_matrix
    point: sp.csr_matrix

    @cached_property
    def _adjoints(self) -> tuple[sp.csr_matrix, sp.csr_matrix, sp.csr_matrix]:
        return self.weight.T.tocsr(), self.factor.T.tocsr(), self.point.T.tocsr()

    def apply(self, features: Array, point: Array) -> Array:
        """Evaluate the term at features (B, features) and points (x, y), (B, n + m): values (B, entries)."""
        return self.affine.apply(features) + self.push_point(features, point)

    def push_point(self, features: Array, tangent: Array) -> Array:
        """Push forward tangents (B, n + m) of the point to (B, entries)."""
        return self._products(features, tangent)

    def push_features(self, point: Array, tangent: Array) -> Array:
        """Push forward tangents (B, features) of the features to (B, entries)."""
        return self.affine.push(tangent) + self._products(tangent, point)

    def terms(self, features: Array, point: Array) -> Array:
        """Sums of the absolute values of the terms in ``apply``, (B, entries): the scale of its rounding errors."""
        f, z = np.abs(features.T), np.abs(point.T)
        products = abs(self.weight) @ ((abs(self.factor) @ f) * (abs(self.point) @ z))
        whole: Array = (products + abs(self.affine.matrix) @ f).T + np.abs(self.affine.constant)
        return whole

    def pull_point(self, features: Array, cotangent: Array) -> Array:
        """Pull back cotangents (B, entries) to the point, (B, n + m)."""
        weight, _, point = self._adjoints
        pulled: Array = (point @ ((weight @ cotangent.T) * (self.factor @ features.T))).T
        return pulled

    def pull_features(self, point: Array, cotangent: Array) -> Array:
        """Pull back cotangents (B, entries) to the features, (B, features)."""
        weight, factor, _ = self._adjoints
        products = (weight @ cotangent.T) * (self.point @ point.T)
        return self.affine.pull(cotangent) + (factor @ products).T

    def _products(self, features: Array, point: Array) -> Array:
        values: Array = (self.weight @ ((self.factor @ features.T) * (self.point @ point.T))).T
        return values


@dataclass(frozen=True, eq=False)
class Recovery:
    """The map outputs = matrix @ (x, y) + direct(features, (x, y)), followed by exp for outputs with ``log``.

    Attributes:
        outputs: the outputs, in order.
        matrix: (entries of all outputs in row-major order, n + m), sparse.
        n: number of columns that belong to x.
        direct: direct dependence on the features; None if there is none.
    """

    outputs: tuple[OutputSpec, ...]
    matrix: sp.csr_matrix
    n: int
    direct: DirectTerm | None = None

    @cached_property
    def _forward(self) -> BatchedMatrix:
        return BatchedMatrix(self.matrix)

    @cached_property
    def _of_x(self) -> BatchedMatrix | None:
        """The part of the matrix that multiplies x; None if some output depends on y."""
        return None if self.matrix[:, self.n :].nnz else BatchedMatrix(self.matrix[:, : self.n])

    def _linear(self, x: Array, y: Array) -> Array:
        """Matrix @ (x, y), (B, entries)."""
        return self._forward.times(np.concatenate([x, y], axis=1)) if self._of_x is None else self._of_x.times(x)

    @cached_property
    def _adjoint(self) -> BatchedMatrix:
        return BatchedMatrix(self.matrix.T.tocsr())

    @cached_property
    def _slices(self) -> tuple[slice, ...]:
        ends = np.cumsum([0, *(spec.size for spec in self.outputs)]).tolist()
        return tuple(slice(start, stop) for start, stop in pairwise(ends))

    def entries_of(self, outputs: Sequence[bool]) -> IndexArray:
        """Positions of the entries of the selected outputs among the entries of all outputs."""
        return np.flatnonzero(np.repeat(np.asarray(outputs, dtype=bool), [spec.size for spec in self.outputs]))

    def apply(self, features: Array, x: Array, y: Array) -> tuple[Array, ...]:
        """Compute the outputs, each (B, *shape), from features (B, features), x (B, n) and y (B, m)."""
        flat = self._linear(x, y)
        if self.direct is not None:
            flat = flat + self.direct.apply(features, np.concatenate([x, y], axis=1))
        values = (flat[:, where].reshape(len(flat), *spec.shape) for spec, where in self._each)
        return tuple(np.exp(value) if spec.log else value for spec, value in zip(self.outputs, values, strict=True))

    def terms(self, features: Array, point: Array) -> Array:
        """Sums of the absolute values of the terms in the outputs, (B, entries): the scale of their rounding errors."""
        direct = 0.0 if self.direct is None else self.direct.terms(features, point)
        whole: Array = (abs(self.matrix) @ np.abs(point.T)).T + direct
        return whole

    def push_linear(self, features: Array, dx: Array, dy: Array) -> Array:
        """Push forward tangents of x and y to the entries of all outputs, (B, entries), before exp."""
        flat = self._linear(dx, dy)
        if self.direct is None:
            return flat
        return flat + self.direct.push_point(features, np.concatenate([dx, dy], axis=1))

    def push_direct(self, point: Array, tangent: Array) -> Array | float:
        """Push forward tangents (B, features) of the features at fixed (x, y), (B, n + m), to (B, entries)."""
        return 0.0 if self.direct is None else self.direct.push_features(point, tangent)

    def push(
        self,
        at: tuple[Array, Array, Array],
        values: Sequence[Array],
        tangents: tuple[Array, Array, Array],
    ) -> tuple[Array, ...]:
        """Push forward to the outputs, each (B, *shape).

        Args:
            at: features, x and y.
            values: the outputs there.
            tangents: tangents of features, x and y.
        """
        features, x, y = at
        moved, dx, dy = tangents
        flat = self.push_linear(features, dx, dy) + self.push_direct(np.concatenate([x, y], axis=1), moved)
        pushed = (flat[:, where].reshape(len(flat), *spec.shape) for spec, where in self._each)
        return tuple(
            tangent * value if spec.log else tangent
            for spec, value, tangent in zip(self.outputs, values, pushed, strict=True)
        )

    def pull(
        self, at: tuple[Array, Array, Array], values: Sequence[Array], cotangents: Sequence[Array | None]
    ) -> tuple[Array | None, Array, Array]:
        """Pull back cotangents of the outputs to features, x and y.

        Args:
            at: features, x and y.
            values: the outputs there.
            cotangents: one per output, (B, *shape); None is zero.

        Returns:
            Cotangents (B, features), None without a direct dependence on the features; (B, n); (B, m).
        """
        features, x, y = at
        parts = [
            np.zeros((len(x), spec.size))
            if cotangent is None
            else (cotangent * value if spec.log else cotangent).reshape(len(x), spec.size)
            for spec, value, cotangent in zip(self.outputs, values, cotangents, strict=True)
        ]
        flat = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        pulled = self._adjoint.times(flat)
        moved = None
        if self.direct is not None:
            pulled = pulled + self.direct.pull_point(features, flat)
            moved = self.direct.pull_features(np.concatenate([x, y], axis=1), flat)
        return moved, pulled[:, : self.n], pulled[:, self.n :]

    @property
    def _each(self) -> zip[tuple[OutputSpec, slice]]:
        return zip(self.outputs, self._slices, strict=True)
