"""Assertions of the contracts, with messages that name the program, the element and what was expected.

Failures are raised, not asserted, so that they do not depend on the rewriting of assertions by a test framework, and
survive ``python -O``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import SkipTest

import numpy as np

__all__ = ["expect", "expect_all", "expect_close", "expect_equal", "expect_raises", "skip"]

_MAX_LISTED = 5
"""Elements that a message lists."""


def skip(reason: str) -> None:
    """Skip the test, for pytest and unittest alike."""
    raise SkipTest(reason)


def expect(condition: object, message: str) -> None:
    """Fail with the message unless the condition holds.

    Raises:
        AssertionError: it does not.
    """
    if not condition:
        raise AssertionError(message)


def expect_equal(actual: object, expected: object, what: str) -> None:
    """Fail unless two values are equal; raises as ``expect``."""
    expect(actual == expected, f"{what}: expected {expected!r}, got {actual!r}")


def expect_all(holds: Any, statement: str) -> None:
    """Fail unless a statement holds at every point; names the points where it does not."""
    wrong = np.flatnonzero(~holds)
    where = ", ".join(map(str, wrong[:_MAX_LISTED].tolist())) + (", ..." if len(wrong) > _MAX_LISTED else "")
    expect(not len(wrong), f"{statement}: false at {len(wrong)} of {len(holds)} points ({where})")


def expect_close(actual: Any, expected: Any, what: str, *, rtol: float = 0.0, atol: float | Any = 0.0) -> None:
    """Fail unless arrays (B, ...) agree entry by entry, NaN with NaN; names the elements that differ.

    Args:
        actual: what the tested code returned.
        expected: what it should return, of the same shape.
        what: name of the quantity.
        rtol: tolerance relative to the expected entry.
        atol: absolute tolerance, a number or an array that broadcasts.

    Raises:
        AssertionError: shapes or entries differ.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    expect_equal(actual.shape, expected.shape, f"shape of {what}")
    with np.errstate(invalid="ignore"):
        close = np.abs(actual - expected) <= np.asarray(atol) + rtol * np.abs(expected)
    wrong = ~(close | (actual == expected) | ((actual != actual) & (expected != expected)))
    if not wrong.any():
        return
    first = tuple(np.argwhere(wrong)[0].tolist())
    elements = np.unique(np.argwhere(wrong)[:, 0]).tolist() if wrong.ndim else []
    listed = ", ".join(map(str, elements[:_MAX_LISTED])) + (", ..." if len(elements) > _MAX_LISTED else "")
    raise AssertionError(
        f"{what}: {np.count_nonzero(wrong)} of {wrong.size} entries differ, in elements {listed}; the first is "
        f"{first}: expected {expected[first]!r} within rtol={rtol:g}, atol={np.max(atol):g}, got {actual[first]!r}"
    )


@contextmanager
def expect_raises(kind: type[Exception], *words: str, what: str) -> Iterator[None]:
    """Fail unless the block raises this kind of exception with a message that contains the words."""
    try:
        yield
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        expect(not missing, f"{what}: the message should name {', '.join(missing)}, got {str(error)!r}")
    else:
        raise AssertionError(f"{what}: expected a {kind.__name__}, but nothing was raised")
