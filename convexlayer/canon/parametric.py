"""The parametric program: theta -> cone program, and its adjoint; solution -> outputs, and its adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from convexlayer.canon.affine_map import AffineMap, Features
from convexlayer.canon.recovery import OutputSpec, Recovery
from convexlayer.program import Array, ConeProgram, Structure

__all__ = ["Objective", "ParameterSpec", "ParametricProgram"]


@dataclass(frozen=True)
class ParameterSpec:
    """A parameter of the problem.

    Attributes:
        name: its name.
        shape: its shape, without the batch.
        attributes: what its values must be: nonneg, nonpos, pos, neg, symmetric, PSD, NSD, diag, sparse. A gradient with
            respect to a symmetric, PSD or NSD parameter is symmetric: its inner product with a symmetric direction is
            the directional derivative.
        sparsity: for a sparse parameter, the flat row-major positions that may be nonzero.
    """

    name: str
    shape: tuple[int, ...]
    attributes: frozenset[str] = frozenset()
    sparsity: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=int))


@dataclass(frozen=True)
class Objective:
    """How the problem's objective value follows from the program's: sign * value, or its exponential."""

    maximize: bool = False
    log: bool = False

    def value(self, program_value: Array) -> Array:
        """The objective values (B,) of the problem."""
        signed = -program_value if self.maximize else program_value
        return np.exp(signed) if self.log else signed

    def slope(self, program_value: Array) -> Array:
        """d value / d program_value, (B,)."""
        sign = -1.0 if self.maximize else 1.0
        return sign * self.value(program_value) if self.log else np.full_like(program_value, sign)


@dataclass(frozen=True, eq=False)
class ParametricProgram:
    """A family of cone programs, affine in features of its parameters.

    Attributes:
        parameters: the parameters, in order.
        structure: sparsity patterns and cones.
        features: parameters -> feature vector.
        data: feature vector -> values of (P, q, r, A, b), stacked in this order.
        recovery: (x, y) -> outputs.
        objective: the program's objective value -> the problem's.
    """

    parameters: tuple[ParameterSpec, ...]
    structure: Structure
    features: Features
    data: AffineMap
    recovery: Recovery
    objective: Objective

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """The outputs, in order."""
        return self.recovery.outputs

    @cached_property
    def _splits(self) -> list[int]:
        shape = self.structure
        return np.cumsum([shape.P.nnz, shape.n, 1, shape.A.nnz]).tolist()

    def instantiate(self, features: Array) -> ConeProgram:
        """The programs of feature vectors (B, features.size)."""
        return self._program(self.data.apply(features))

    def push(self, tangent: Array) -> ConeProgram:
        """Program tangent of a tangent (B, features.size) of the feature vectors."""
        return self._program(self.data.push(tangent))

    def pullback(self, cotangent: ConeProgram) -> Array:
        """Cotangent (B, features.size) of the feature vectors, of a program cotangent."""
        parts = [cotangent.P, cotangent.q, cotangent.r[:, None], cotangent.A, cotangent.b]
        return self.data.pull(np.concatenate(parts, axis=1))

    def split(self, flat: Sequence[Array]) -> tuple[Array, ...]:
        """Per-parameter arrays (B, entries) with their shapes (B, *shape)."""
        return tuple(part.reshape(-1, *spec.shape) for spec, part in zip(self.parameters, flat, strict=True))

    def _program(self, values: Array) -> ConeProgram:
        P, q, r, A, b = np.split(values, self._splits, axis=1)
        return ConeProgram(self.structure, P, q, r[:, 0], A, b)
