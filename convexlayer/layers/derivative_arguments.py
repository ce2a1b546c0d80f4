"""Checks of the arguments of vjp and jvp: cotangents, tangents and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convexlayer.arguments import as_array
from convexlayer.canon import OutputSpec, ParameterSpec, ParametricProgram
from convexlayer.errors import ShapeError
from convexlayer.program import Array

__all__ = ["checked_arrays", "checked_mask", "result_specs", "with_last"]


def result_specs(program: ParametricProgram) -> tuple[OutputSpec, ...]:
    """The outputs, and the objective value."""
    return (*program.outputs, OutputSpec("objective", ()))


def with_last(given: Sequence[Any], last: Any, results: Sequence[OutputSpec]) -> Sequence[Any]:
    """Append the entry of the objective value if it was left out."""
    return [*given, last] if len(given) == len(results) - 1 else given


def checked_mask(name: str, given: Sequence[bool] | None, size: int) -> list[bool]:
    """The mask ``given``, checked; all by default."""
    if given is not None and len(given) != size:
        raise ShapeError(f"expected {size} entries in {name}, got {len(given)}")
    return [True] * size if given is None else list(given)


def checked_arrays(
    what: str,
    values: Sequence[Array | None],
    specs: Sequence[ParameterSpec | OutputSpec],
    batch: int,
    *,
    shared: bool = False,
) -> list[Array | None]:
    """Convert cotangents or tangents to arrays and check their shapes; with ``shared``, the batch axis may lack."""
    if len(values) != len(specs):
        named = ", ".join(spec.name for spec in specs)
        raise ShapeError(f"expected {len(specs)} {what} (for {named}), got {len(values)}")
    arrays: list[Array | None] = []
    for spec, value in zip(specs, values, strict=True):
        if value is None:
            arrays.append(None)
            continue
        array, whole = as_array(f"{what} of {spec.name!r}", value), (batch, *spec.shape)
        if array.shape != whole and not (shared and array.shape == spec.shape):
            raise ShapeError(f"{what} of {spec.name!r}: expected shape {whole}, got {array.shape}")
        arrays.append(array)
    return arrays
