"""Values of expressions during evaluation, and their cost.

Shared subexpressions are shared objects, but CVXPY traverses trees: ten lines that each double the previous one make a
tree of a thousand leaves. So every value carries the number of nodes, the depth and the estimated coefficients of its
tree.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np

from ..encodings.arrays import Array
from ..errors import MAX_QUOTED

__all__ = ["Value", "combine", "describe", "is_number", "plain", "suggestions", "to_array"]

_MAX_SIMILAR = 3
"""Similar names that a message suggests."""

_MAX_LISTED = 30
"""Names that a message lists."""


@dataclass(frozen=True)
class Value:
    """The value of a node.

    Attributes:
        content: a CVXPY expression or constraint; a number, string, Boolean or None; or a list of values.
        nodes: nodes of the tree, counting each use of a shared part.
        depth: height of the tree, including shared parts.
        coefficients: estimated nonzero coefficients of the canonicalised tree.
    """

    content: Any
    nodes: int = 1
    depth: int = 1
    coefficients: int = 0


def combine(content: Any, parts: Sequence[Value]) -> Value:
    """Return the value of a node with some children."""
    return Value(
        content,
        1 + sum(part.nodes for part in parts),
        1 + max((part.depth for part in parts), default=0),
        sum(part.coefficients for part in parts),
    )


def is_number(content: Any) -> bool:
    """Whether the content is an int or a float (not a Boolean)."""
    return type(content) in (int, float)


def plain(value: Value) -> Any:
    """Return the content, with lists of values as lists of contents."""
    return [plain(item) for item in value.content] if isinstance(value.content, list) else value.content


def to_array(value: Value) -> Array | None:
    """Return a number or nested lists of numbers as an array; None for anything else, including ragged lists."""
    if is_number(value.content):
        return np.array(float(value.content))
    if not isinstance(value.content, list) or not value.content:
        return None
    rows = [to_array(item) for item in value.content]
    if any(row is None or row.shape != rows[0].shape for row in rows if rows[0] is not None) or rows[0] is None:
        return None
    return np.stack([row for row in rows if row is not None])


def describe(content: Any) -> str:
    """Describe a content in a message."""
    match content:
        case cp.Expression():
            return f"an expression of shape {list(content.shape)}"
        case list():
            return "a list; equally long lists of numbers form an array, only functions such as hstack take others"
        case str():
            return f"the string {content[:MAX_QUOTED]!r}"
        case _:
            return f"{content!r}"


def suggestions(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: similar names, or else all known ones."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:MAX_QUOTED], names, n=_MAX_SIMILAR)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    more = ", ..." if len(names) > _MAX_LISTED else ""
    return f"; known are {', '.join(names[:_MAX_LISTED])}{more}" if names else ""
