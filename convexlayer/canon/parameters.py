"""Parameter specifications: shapes, attributes and structural nonzeros; random values for the self-check."""

from __future__ import annotations

from dataclasses import dataclass

import cvxpy as cp
import numpy as np

from convexlayer.program import Array, IndexArray

__all__ = ["ATTRIBUTES", "ParameterSpec", "random_value", "specification"]

ATTRIBUTES = ("nonneg", "nonpos", "pos", "neg", "symmetric", "PSD", "NSD", "diag")
"""The supported attributes of a CVXPY parameter, besides ``sparse``."""


@dataclass(frozen=True)
class ParameterSpec:
    """A parameter of the problem.

    Attributes:
        name: its name.
        shape: its shape, without the batch axis.
        attributes: properties that its values must have: nonneg, nonpos, pos, neg, symmetric, PSD, NSD, diag, sparse.
            A gradient with respect to a symmetric, PSD or NSD parameter is symmetric: its inner product with a
            symmetric direction is the directional derivative.
        sparsity: for a sparse parameter, the flat row-major positions of its structural nonzeros.
    """

    name: str
    shape: tuple[int, ...]
    attributes: frozenset[str] = frozenset()
    sparsity: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=int))

    @property
    def entries(self) -> IndexArray | None:
        """Ascending flat row-major positions of the structural nonzeros; None if all entries may be nonzero."""
        if self.sparsity is not None:
            return np.unique(np.array(self.sparsity, dtype=np.int64))
        if "diag" in self.attributes:
            return np.flatnonzero(np.broadcast_to(np.eye(self.shape[-1]), self.shape))
        return None


def specification(parameter: cp.Parameter) -> ParameterSpec:
    """Read the specification of a CVXPY parameter."""
    attributes = {name for name in ATTRIBUTES if parameter.attributes[name]}
    sparsity = None
    if parameter.sparse_idx is not None:
        attributes.add("sparse")
        sparsity = tuple(np.ravel_multi_index(parameter.sparse_idx, parameter.shape).tolist())
    return ParameterSpec(parameter.name(), parameter.shape, frozenset(attributes), sparsity)


def random_value(spec: ParameterSpec, rng: np.random.Generator) -> Array:
    """Draw a value with the parameter's attributes; entries have magnitudes of order 1 (uniform in [0.5, 1.5])."""
    value = rng.uniform(0.5, 1.5, spec.shape)
    signed = spec.attributes & {"nonneg", "pos", "nonpos", "neg"}
    if not signed:
        value = value * rng.choice([-1.0, 1.0], spec.shape)
    elif signed & {"nonpos", "neg"}:
        value = -value
    if spec.attributes & {"PSD", "NSD"}:
        sign = -1.0 if "NSD" in spec.attributes else 1.0
        return np.asarray(sign * (value @ np.swapaxes(value, -1, -2)))
    if "symmetric" in spec.attributes:
        return np.asarray(0.5 * (value + np.swapaxes(value, -1, -2)))
    entries = spec.entries
    if entries is None:
        return np.asarray(value)
    kept = np.zeros(spec.size)
    kept[entries] = value.ravel()[entries]
    return kept.reshape(spec.shape)
