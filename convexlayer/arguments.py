"""Arguments of the wrong kind: told what is expected and what came, before anything else fails on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convexlayer.errors import ProblemError

__all__ = ["INTEGER", "REAL", "as_array", "check_kind", "check_truth", "described"]

INTEGER = (int, np.integer)
REAL = (*INTEGER, float, np.floating)
"""Kinds of numbers; True and False are none."""

SHORT = 40
"""Characters of a value that a message repeats."""


def check_kind(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Refuse a value that is of none of these kinds.

    Args:
        name: of the argument.
        value: what came.
        kinds: as for isinstance; a truth value does not count as a number.
        expected: the same in words.

    Raises:
        ProblemError: it is of another kind.
    """
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds in (INTEGER, REAL)):
        raise ProblemError(f"{name} must be {expected}, got {described(value)}")


def check_truth(name: str, value: object) -> None:
    """Refuse what is neither True nor False, as ``check_kind``."""
    check_kind(name, value, (bool, np.bool_), "True or False")


def as_array(what: str, value: object, of: str) -> NDArray[np.float64]:
    """A value as an array of doubles; a view where it is one.

    Args:
        what: what it is: a parameter, or the cotangent of an output.
        value: the value.
        of: the name of the parameter or the output.

    Raises:
        ProblemError: it is no array of real numbers.
    """
    if type(value) is np.ndarray and value.dtype == np.float64:
        return value
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"it holds values of type {array.dtype}")
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors that require gradients
        came = f"{described(value)}: {error}"
        raise ProblemError(f"{what} {of!r}: expected an array of real numbers, got {came}") from error


def described(value: Any) -> str:
    """A value in a message: in full where that is short, and of what type it is."""
    if value is None:
        return "None"
    kind, text = type(value).__name__, repr(value)
    return f"{text} ({kind})" if len(text) <= SHORT and "\n" not in text else f"a value of type {kind}"
