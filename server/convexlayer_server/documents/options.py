"""Validators of the options of atoms: numbers, axes, shapes and words.

An option is a function from the evaluated argument (a number, string, Boolean, None, nested lists of these, or a CVXPY
expression) to the value for CVXPY. It raises ``ValueError`` with what it expected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cvxpy as cp

from .model import MAX_LENGTH

__all__ = [
    "Option",
    "axes",
    "axis",
    "boolean",
    "choice",
    "exponent",
    "exponents",
    "integer",
    "integers",
    "norm_order",
    "number",
    "number_or_expression",
    "shape",
    "weights",
]

Option = Callable[[Any], Any]

_MAX_EXPONENT = 1024
"""Absolute value of an exponent at most: larger ones overflow doubles for any base of 2 or more."""

_MAX_DIMENSIONS = 32
"""Dimensions of an array at most, NumPy's limit before version 2; the limit of the settings is lower."""


def number(value: Any) -> int | float:
    """A number; those of the grammar are finite."""
    if type(value) not in (int, float):
        raise ValueError("expected a number")
    return value


def integer(low: int, high: int) -> Option:
    """An integer from ``low`` to ``high``."""

    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"expected an integer from {low} to {high}")
        return value

    return check


def integers(value: Any) -> list[int]:
    """A list of small integers."""
    if not isinstance(value, list) or not all(type(item) is int and abs(item) <= MAX_LENGTH for item in value):
        raise ValueError("expected a list of integers")
    return value


def boolean(value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError("expected True or False")
    return value


def axis(value: Any) -> int | None:
    """An axis, or None."""
    return None if value is None else integer(-_MAX_DIMENSIONS, _MAX_DIMENSIONS - 1)(value)


def axes(value: Any) -> int | tuple[int, ...] | None:
    """An axis, a list of axes, or None."""
    return tuple(integers(value)) if isinstance(value, list) else axis(value)


def shape(value: Any) -> tuple[int, ...]:
    """A length, or a list of lengths; -1 is the remaining length."""
    lengths = value if isinstance(value, list) else [value]
    known = [length for length in integers(lengths) if length != -1]
    if any(length < 1 for length in known) or math.prod(known) > MAX_LENGTH:
        raise ValueError("expected a list of positive lengths")
    return tuple(lengths)


def choice(*words: str) -> Option:
    """One of ``words``."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"expected one of {', '.join(map(repr, words))}")
        return value

    return check


def norm_order(value: Any) -> int | float | str:
    """The p of a norm."""
    return exponent(value) if type(value) in (int, float) else choice("inf", "fro", "nuc")(value)


def exponent(value: Any) -> int | float:
    """A number within ``_MAX_EXPONENT``."""
    if not abs(number(value)) <= _MAX_EXPONENT:
        raise ValueError(f"expected an exponent from {-_MAX_EXPONENT} to {_MAX_EXPONENT}")
    return value


def number_or_expression(value: Any) -> int | float | cp.Expression:
    """A number, or an expression such as a parameter."""
    return value if isinstance(value, cp.Expression) else number(value)


def exponents(value: Any) -> int | float | cp.Expression:
    """An exponent, or an expression such as a parameter of a geometric program."""
    return value if isinstance(value, cp.Expression) else exponent(value)


def weights(value: Any) -> int | float | list[float] | None:
    """A number, a list of numbers, or None."""
    if value is None or type(value) in (int, float):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("expected a number or a list of numbers")
    return [number(item) for item in value]
