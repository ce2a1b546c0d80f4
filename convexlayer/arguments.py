"""Checks of the types and ranges of arguments, with messages that name the expected and the received value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexlayer.errors import ProblemError

__all__ = [
    "INTEGER",
    "MAX_LISTED",
    "REAL",
    "as_array",
    "check_bool",
    "check_integer",
    "check_kind",
    "check_number",
    "describe",
]

INTEGER = (int, np.integer)
REAL = (*INTEGER, float, np.floating)
"""Types of real numbers, for ``check_kind``, which does not count booleans as numbers."""

SHORT = 40
"""Maximum length of a value that a message repeats, in characters."""

MAX_LISTED = 8
"""Number of elements of a batch that a message lists."""


def check_kind(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Check the type of an argument.

    Args:
        name: name of the argument, for the message.
        value: its value.
        kinds: allowed types, as for isinstance; booleans do not count as numbers.
        expected: description of the allowed types, for the message.

    Raises:
        ProblemError: the value has another type.
    """
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds in (INTEGER, REAL)):
        raise ProblemError(f"{name} must be {expected}, got {describe(value)}")


def check_bool(name: str, value: object) -> None:
    """Check that an argument is a boolean; see ``check_kind``."""
    check_kind(name, value, (bool, np.bool_), "True or False")


def check_integer(name: str, value: object, *, least: int) -> None:
    """Check that an argument is an integer of at least ``least``; see ``check_kind``."""
    expected = f"an integer of at least {least}"
    check_kind(name, value, INTEGER, expected)
    if value < least:  # type: ignore[operator]  # check_kind has shown that it is an integer
        raise ProblemError(f"{name} must be {expected}, got {describe(value)}")


def check_number(name: str, value: object, *, least: float) -> None:
    """Check that an argument is a number of at least ``least``, infinity allowed; see ``check_kind``."""
    expected = f"a number of at least {least:g}"
    check_kind(name, value, REAL, expected)
    if not value >= least:  # type: ignore[operator]  # check_kind has shown that it is a number, or NaN
        raise ProblemError(f"{name} must be {expected}, got {describe(value)}")


def as_array(name: str, value: object) -> NDArray[np.float64]:
    """Convert a value to a float64 array, without a copy if it is one.

    Raises:
        ProblemError: the value is not an array of real numbers.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"it holds values of type {array.dtype}")
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors that require gradients
        received = f"{describe(value)}: {error}"
        raise ProblemError(f"{name}: expected an array of real numbers, got {received}") from error


def describe(value: Any) -> str:
    """Describe a value in a message: its repr if short, and its type."""
    if value is None:
        return "None"
    kind, text = type(value).__name__, repr(value)
    return f"{text} ({kind})" if len(text) <= SHORT and "\n" not in text else f"a value of type {kind}"
