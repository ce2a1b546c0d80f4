"""Reading and writing of program documents: plain JSON values, all validated on reading.

A document is a parametric cone program in the standard form of ``program.py``, before presolve:

{"version": 1, "n": 3,
 "parameters": [{"name", "shape", "attributes": [...], "sparsity": [...] or null}, ...],
 "log": [positions of the parameter entries whose logarithm is also a feature],
 "cones": {"zero", "nonnegative", "second_order": [...], "psd": [...], "exponential", "power": [exponents]},
 "P": {"rows", "cols"}, "A": {"rows", "cols"},                      patterns, column by column; both triangles of P
 "data": {"constant": [...], "rows", "cols", "values"},             features -> (P, q, r, A, b)
 "outputs": [{"name", "shape", "log"}, ...],
 "recovery": {"rows", "cols", "values"},                            (x, y) -> outputs
 "objective": {"maximize": false, "log": false}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from convexlayer.canon.naming import shortened
from convexlayer.errors import ProblemError
from convexlayer.program import Array, Cones, IndexArray, Pattern

__all__ = ["Reader", "write_matrix", "write_pattern"]

LARGEST = 2**31 - 1
"""Largest size and index in a document: the largest 32-bit index."""

MAX_AXES = 8
"""Maximum number of axes of a parameter or output, more than problems have."""


class Reader:
    """Validating reader of one JSON object; errors name the path of the invalid field.

    Args:
        value: the JSON value.
        path: JSON pointer of the value, for error messages.
        fields: the required fields; others are not allowed.

    Raises:
        ProblemError: by the constructor and all read methods, if the value does not have the expected form.
    """

    def __init__(self, value: Any, path: str, fields: Sequence[str]) -> None:
        if not isinstance(value, Mapping):
            raise ProblemError(f"{path}: expected an object, got {type(value).__name__}")
        unknown, missing = (
            [name for name in value if name not in fields],
            [name for name in fields if name not in value],
        )
        if unknown or missing:
            wrong = f"unknown field {unknown[0]!r}" if unknown else f"missing field {missing[0]!r}"
            raise ProblemError(f"{path}: {wrong}; the fields are {', '.join(fields)}")
        self._value = value
        self._path = path

    def fail(self, field: str, expected: str) -> ProblemError:
        """Build the error for an invalid field."""
        return ProblemError(f"{self._path}/{field}: expected {expected}, got {shortened(repr(self._value[field]))}")

    def items(self, field: str) -> list[Any]:
        """Read a list of any values."""
        value = self._value[field]
        if not isinstance(value, list | tuple):
            raise self.fail(field, "a list")
        return list(value)

    def child(self, field: str, fields: Sequence[str]) -> Reader:
        """Open a nested object."""
        return Reader(self._value[field], f"{self._path}/{field}", fields)

    def text(self, field: str) -> str:
        """Read a nonempty string."""
        value = self._value[field]
        if not isinstance(value, str) or not value:
            raise self.fail(field, "a string")
        return value

    def flag(self, field: str) -> bool:
        """Read a boolean."""
        value = self._value[field]
        if not isinstance(value, bool):
            raise self.fail(field, "true or false")
        return value

    def size(self, field: str) -> int:
        """Read a nonnegative integer."""
        value = self._value[field]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
            raise self.fail(field, "a nonnegative integer")
        return value

    def sizes(self, field: str, *, least: int = 0) -> tuple[int, ...]:
        """Read a list of integers that are at least ``least``."""
        values = self.items(field)
        if any(isinstance(v, bool) or not isinstance(v, int) or not least <= v <= LARGEST for v in values):
            raise self.fail(field, f"a list of integers of at least {least}")
        return tuple(values)

    def shape(self, field: str) -> tuple[int, ...]:
        """Read the shape of an array of at most MAX_AXES axes and LARGEST entries."""
        shape = self.sizes(field)
        entries = 1
        for length in shape:
            entries *= length
        if entries > LARGEST or len(shape) > MAX_AXES:
            raise self.fail(field, f"a shape of at most {MAX_AXES} axes and {LARGEST} entries")
        return shape

    def indices(self, field: str, below: int) -> IndexArray:
        """Read a list of indices below a bound."""
        values = self.sizes(field)
        if values and max(values) >= below:
            raise self.fail(field, f"indices below {below}")
        return np.array(values, dtype=np.int64)

    def numbers(self, field: str) -> Array:
        """Read a list of finite numbers."""
        values = self.items(field)
        if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            raise self.fail(field, "a list of numbers")
        try:
            array = np.array(values, dtype=np.float64)
        except OverflowError as error:
            raise self.fail(field, "numbers within double precision") from error
        if not np.all(np.isfinite(array)):
            raise self.fail(field, "finite numbers")
        return array

    def matrix(self, shape: tuple[int, int]) -> sp.csr_matrix:
        """Read this object's rows, cols and values as a sparse matrix without duplicates."""
        rows, cols, values = self.indices("rows", shape[0]), self.indices("cols", shape[1]), self.numbers("values")
        if not len(rows) == len(cols) == len(values):
            raise ProblemError(f"{self._path}: rows, cols and values must have equal lengths")
        if len(np.unique(rows * shape[1] + cols)) < len(rows):
            raise ProblemError(f"{self._path}: an entry is given twice")
        return sp.coo_matrix((values, (rows, cols)), shape=shape).tocsr()

    def pattern(self, field: str, shape: tuple[int, int], *, symmetric: bool) -> Pattern:
        """Read a nested object's rows and cols, which must be in column-major order, as a sparsity pattern."""
        child = self.child(field, ("rows", "cols"))
        rows, cols = child.indices("rows", shape[0]), child.indices("cols", shape[1])
        if len(rows) != len(cols):
            raise ProblemError(f"{self._path}/{field}: rows and cols must have equal lengths")
        keys = cols * max(shape[0], 1) + rows
        if np.any(np.diff(keys) <= 0):
            raise ProblemError(f"{self._path}/{field}: entries must come column by column, rows ascending, none twice")
        if symmetric and not np.array_equal(np.sort(rows * max(shape[0], 1) + cols), keys):
            raise ProblemError(f"{self._path}/{field}: the pattern must be symmetric")
        return Pattern(shape, rows, cols)

    def cones(self, field: str) -> Cones:
        """Read a nested object as cone sizes."""
        child = self.child(field, ("zero", "nonnegative", "second_order", "psd", "exponential", "power"))
        alphas = child.numbers("power")
        if np.any((alphas <= 0.0) | (alphas >= 1.0)):
            raise child.fail("power", "exponents between 0 and 1, excluded")
        return Cones(
            child.size("zero"),
            child.size("nonnegative"),
            child.sizes("second_order", least=1),
            child.sizes("psd", least=1),
            child.size("exponential"),
            tuple(alphas.tolist()),
        )


def write_pattern(pattern: Pattern) -> dict[str, Any]:
    """Write a sparsity pattern as plain lists."""
    return {"rows": pattern.rows.tolist(), "cols": pattern.cols.tolist()}


def write_matrix(matrix: sp.csr_matrix) -> dict[str, Any]:
    """Write a sparse matrix as plain lists."""
    entries = matrix.tocoo()
    return {"rows": entries.row.tolist(), "cols": entries.col.tolist(), "values": entries.data.tolist()}
