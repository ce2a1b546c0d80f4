"""Checks of parameter values: shapes, batch sizes, finiteness, and the attributes that parameters declare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convexlayer.canon import ParameterSpec
from convexlayer.errors import ProblemError, ShapeError
from convexlayer.program import Array, is_finite, max_norm

__all__ = ["batch_size", "check_values"]

TOLERANCE = 1e-6
"""Asymmetry, or negative eigenvalue, relative to the largest entry of the element, that counts as rounding."""

SIGN_TOLERANCE = 1e-12
"""Entry of the wrong sign, relative to the largest entry of the element, that counts as rounding."""

SIGNS = ("nonneg", "pos", "nonpos", "neg")


def batch_size(specs: Sequence[ParameterSpec], shapes: Sequence[tuple[int, ...]]) -> int | None:
    """The common batch size of values with these shapes; None where no value has a batch axis.

    Raises:
        ShapeError: the wrong number of values, a shape that is neither the parameter's nor that behind one batch axis,
            or unequal batch sizes.
    """
    if len(specs) != len(shapes):
        names = ", ".join(spec.name for spec in specs)
        raise ShapeError(f"expected {len(specs)} values (for {names}), got {len(shapes)}")
    batch: int | None = None
    origin = ""
    for spec, shape in zip(specs, shapes, strict=True):
        if shape == spec.shape:
            continue
        if shape[1:] != spec.shape or len(shape) != len(spec.shape) + 1:
            raise ShapeError(
                f"parameter {spec.name!r}: expected shape {spec.shape}, alone or behind one leading batch axis, "
                f"got {shape}"
            )
        if batch is not None and shape[0] != batch:
            raise ShapeError(
                f"parameter {spec.name!r} has batch size {shape[0]}, but {origin!r} has {batch}; they must be equal"
            )
        batch, origin = shape[0], spec.name
    return batch


def check_values(spec: ParameterSpec, value: Array, *, attributes: bool) -> None:
    """Check one parameter's values, of its shape or behind a batch axis.

    Raises:
        ProblemError: NaN or infinite entries; an attribute violated (unless the check is switched off).
    """
    if not is_finite(value):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        raise ProblemError(f"parameter {spec.name!r} is not finite: entry {list(where)} is {value[where]}")
    if not attributes or not spec.attributes or not value.size:
        return
    elements = value.reshape(-1, *spec.shape)
    largest = max_norm(elements.reshape(len(elements), -1))
    for attribute in sorted(spec.attributes):
        excess = _violation(attribute, spec, elements)
        limit = (SIGN_TOLERANCE if attribute in SIGNS else TOLERANCE) * largest
        wrong = np.flatnonzero(excess >= 0 if attribute in ("pos", "neg") else excess > limit)
        if len(wrong):
            raise ProblemError(
                f"parameter {spec.name!r} is declared {attribute}, but the value violates that by "
                f"{np.max(np.abs(excess[wrong])):.3g}; change the value (or, in the library, pass "
                "check_attributes=False)"
            )


def _violation(attribute: str, spec: ParameterSpec, elements: Array) -> Array:
    """By how much an attribute is violated by each element, (B,); negative or zero where it holds."""
    flat = elements.reshape(len(elements), -1)
    if attribute in ("nonneg", "pos"):
        return -np.min(flat, axis=1)
    if attribute in ("nonpos", "neg"):
        return np.max(flat, axis=1)
    if attribute == "diag":
        return max_norm((elements * (1.0 - np.eye(spec.shape[-1]))).reshape(flat.shape))
    if attribute == "sparse":
        outside = np.ones(spec.size, dtype=bool)
        outside[list(spec.sparsity or ())] = False
        return max_norm(flat[:, outside])
    transposed = np.swapaxes(elements, -1, -2)
    asymmetry = max_norm((elements - transposed).reshape(flat.shape))
    if attribute == "symmetric":
        return asymmetry
    symmetric = 0.5 * (elements + transposed) * (1.0 if attribute == "PSD" else -1.0)
    return np.maximum(asymmetry, -_least_eigenvalues(symmetric, TOLERANCE * max_norm(flat)))


def _least_eigenvalues(symmetric: Array, slack: Array) -> Array:
    """The least eigenvalue of each element (B, ..., k, k), (B,); 0 for all of them where none is below -slack (B,)."""
    shift = slack.reshape(-1, *[1] * (symmetric.ndim - 1)) * np.eye(symmetric.shape[-1])
    try:
        np.linalg.cholesky(symmetric + shift)  # several times quicker than the eigenvalues
    except np.linalg.LinAlgError:
        return np.linalg.eigvalsh(symmetric).reshape(len(symmetric), -1).min(axis=1)
    return np.zeros(len(symmetric))
