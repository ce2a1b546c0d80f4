"""Checks of parameter values: shapes, batch sizes, finiteness, and the attributes that parameters declare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from convexlayer.arguments import as_array, describe
from convexlayer.canon import ParameterSpec
from convexlayer.errors import ProblemError, ShapeError
from convexlayer.layers.protocol import ArraySpec
from convexlayer.program import Array, is_finite, max_norm

__all__ = ["as_values", "batch_size", "invalid_values", "with_substitutes"]

TOLERANCE = 1e-6
"""Asymmetry or negative eigenvalue, relative to the element's largest entry, that counts as rounding. It admits values
computed in float32."""

SIGN_TOLERANCE = 1e-12
"""Entry of the wrong sign, relative to the element's largest entry, that counts as rounding (of float64)."""

SIGNS = ("nonneg", "pos", "nonpos", "neg")
"""Attributes that restrict the signs of the entries."""


def batch_size(specs: Sequence[ArraySpec], shapes: Sequence[tuple[int, ...]]) -> int | None:
    """Determine the common batch size of values with these shapes; None if no value has a batch axis.

    Raises:
        ShapeError: the wrong number of values, a shape that is neither the parameter's nor has one additional leading
            axis, or unequal batch sizes.
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
                f"parameter {spec.name!r}: expected shape {spec.shape}, optionally with one leading batch axis, "
                f"got {shape}"
            )
        if batch is not None and shape[0] != batch:
            raise ShapeError(
                f"parameter {spec.name!r} has batch size {shape[0]}, but {origin!r} has {batch}; they must be equal"
            )
        batch, origin = shape[0], spec.name
    return batch


def as_values(specs: Sequence[ParameterSpec], theta: Iterable[object]) -> list[Array]:
    """Convert parameter values to float64 arrays.

    Raises:
        ProblemError: they are not one array of real numbers per parameter.
    """
    if not isinstance(theta, Iterable):
        raise ProblemError(f"expected a list or tuple of one array per parameter, got {describe(theta)}")
    given = list(theta)
    names = [spec.name for spec in specs] if len(given) == len(specs) else [str(i) for i in range(len(given))]
    return [as_array(f"parameter {name!r}", value) for name, value in zip(names, given, strict=True)]


def invalid_values(spec: ParameterSpec, value: Array, *, attributes: bool) -> dict[int, str]:
    """Find the invalid values of one parameter; returns error messages by position of the element.

    Args:
        spec: the parameter.
        value: of the parameter's shape (one element), or with one additional leading batch axis.
        attributes: whether the parameter's attributes are checked.
    """
    finite = is_finite(value)
    if finite and (not attributes or not spec.attributes or not value.size):
        return {}
    elements = value.reshape(-1, *spec.shape)
    wrong = {} if finite else _not_finite(spec, elements)
    if not attributes:
        return wrong
    good = np.setdiff1d(np.arange(len(elements)), list(wrong)) if wrong else np.arange(len(elements))
    rows = elements[good] if wrong else elements
    largest = max_norm(rows.reshape(len(rows), spec.size))
    for attribute in sorted(spec.attributes) if rows.size else ():
        excess = _violation(attribute, spec, rows)
        limit = (SIGN_TOLERANCE if attribute in SIGNS else TOLERANCE) * largest
        for row in np.flatnonzero(excess >= 0 if attribute in ("pos", "neg") else excess > limit).tolist():
            wrong.setdefault(
                int(good[row]),
                f"parameter {spec.name!r} is declared {attribute}, but the value violates that by "
                f"{abs(excess[row]):.3g}; change the value (or, in the library, pass check_attributes=False)",
            )
    return wrong


def with_substitutes(specs: Sequence[ParameterSpec], values: Sequence[Array], invalid: Iterable[int]) -> list[Array]:
    """Replace the values of invalid elements by ones; results computed from them are not used."""
    index, substitutes = list(invalid), []
    for spec, value in zip(specs, values, strict=True):
        if value.shape == spec.shape:  # shared by all elements: if it is not finite, all elements are invalid
            substitutes.append(value if is_finite(value) else np.ones_like(value))
        else:
            whole = value.copy()
            whole[index] = 1.0
            substitutes.append(whole)
    return substitutes


def _not_finite(spec: ParameterSpec, elements: Array) -> dict[int, str]:
    """Error messages that name the first nonfinite entry of each element, by position.

    An entry is named by its place in its element: the element may have another position in the caller's batch.
    """
    wrong: dict[int, str] = {}
    for place in np.argwhere(~np.isfinite(elements)).tolist():
        element, *entry = place
        where = f"entry {entry}" if entry else "it"
        wrong.setdefault(element, f"parameter {spec.name!r} is not finite: {where} is {elements[tuple(place)]}")
    return wrong


def _violation(attribute: str, spec: ParameterSpec, elements: Array) -> Array:
    """Violation of an attribute by each element, (B,); not positive if the attribute holds."""
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
    """Smallest eigenvalue of each element (B, ..., k, k), (B,); zeros if none is below -slack (B,)."""
    shift = slack.reshape(-1, *[1] * (symmetric.ndim - 1)) * np.eye(symmetric.shape[-1])
    try:
        np.linalg.cholesky(symmetric + shift)  # several times faster than the eigenvalues
    except np.linalg.LinAlgError:
        return np.linalg.eigvalsh(symmetric).reshape(len(symmetric), -1).min(axis=1)
    return np.zeros(len(symmetric))
