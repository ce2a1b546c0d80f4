"""Checks of parameter values: shapes, batch sizes, finiteness, and the attributes that parameters declare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convexlayer.canon import ParameterSpec
from convexlayer.errors import ProblemError, ShapeError
from convexlayer.program import Array

__all__ = ["batch_size", "check_values"]

TOLERANCE = 1e-6
"""Violation of an attribute, relative to the largest entry (at least 1), that counts as rounding."""


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
    if not np.all(np.isfinite(value)):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        raise ProblemError(f"parameter {spec.name!r} is not finite: entry {list(where)} is {value[where]}")
    if not attributes or not value.size:
        return
    limit = TOLERANCE * max(1.0, float(np.max(np.abs(value))))
    for attribute in sorted(spec.attributes):
        excess = _violation(attribute, spec, value)
        if excess > limit or (attribute in ("pos", "neg") and excess >= 0):
            raise ProblemError(
                f"parameter {spec.name!r} is declared {attribute}, but the value violates that by {abs(excess):.3g}; "
                "change the value (or, in the library, pass check_attributes=False)"
            )


def _violation(attribute: str, spec: ParameterSpec, value: Array) -> float:
    """By how much an attribute is violated; negative or zero where it holds."""
    if attribute in ("nonneg", "pos"):
        return float(-np.min(value))
    if attribute in ("nonpos", "neg"):
        return float(np.max(value))
    if attribute == "diag":
        return float(np.max(np.abs(value * (1.0 - np.eye(value.shape[-1])))))
    if attribute == "sparse":
        outside = np.ones(spec.size, dtype=bool)
        outside[list(spec.sparsity or ())] = False
        return float(np.max(np.abs(value.reshape(-1, spec.size)[:, outside]), initial=0.0))
    asymmetry = float(np.max(np.abs(value - np.swapaxes(value, -1, -2))))
    if attribute == "symmetric":
        return asymmetry
    signed = value if attribute == "PSD" else -value
    smallest = float(np.min(np.linalg.eigvalsh(0.5 * (signed + np.swapaxes(signed, -1, -2)))))
    return max(asymmetry, -smallest)
