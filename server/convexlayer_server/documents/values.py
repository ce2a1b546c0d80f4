"""What expressions stand for while they are evaluated, and what they cost.

Shared subexpressions are shared objects, but CVXPY walks trees: ten lines that each double the one before make a
tree of a thousand leaves. So every value carries the nodes, the depth and the estimated coefficients of the tree that
it stands for.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np

from ..arrays import Array

__all__ = ["Value", "combine", "describe", "is_number", "plain", "similar", "to_array"]


@dataclass(frozen=True)
class Value:
    """What a node stands for.

    Attributes:
        content: an expression or constraint of CVXPY; a number, string, truth value or None; or a list of values.
        nodes: nodes of the tree, shared parts counted each time.
        depth: nesting of the tree, shared parts included.
        coefficients: estimated nonzero coefficients of the canonicalised tree.
    """

    content: Any
    nodes: int = 1
    depth: int = 1
    coefficients: int = 0


def combine(content: Any, parts: Sequence[Value]) -> Value:
    """The value of a node above some parts."""
    return Value(
        content,
        1 + sum(part.nodes for part in parts),
        1 + max((part.depth for part in parts), default=0),
        sum(part.coefficients for part in parts),
    )


def is_number(content: Any) -> bool:
    """Whether the content is an int or a float (and no truth value)."""
    return type(content) in (int, float)


def plain(value: Value) -> Any:
    """The content, with lists of values as lists of their contents."""
    return [plain(item) for item in value.content] if isinstance(value.content, list) else value.content


def to_array(value: Value) -> Array | None:
    """The array that a number or nested lists of numbers make; None for anything else, ragged lists included."""
    if is_number(value.content):
        return np.array(float(value.content))
    if not isinstance(value.content, list) or not value.content:
        return None
    rows = [to_array(item) for item in value.content]
    if any(row is None or row.shape != rows[0].shape for row in rows if rows[0] is not None) or rows[0] is None:
        return None
    return np.stack([row for row in rows if row is not None])


def describe(content: Any) -> str:
    """A few words on a content, for messages."""
    match content:
        case cp.Expression():
            return f"an expression of shape {list(content.shape)}"
        case list():
            return (
                "a list; lists of equally long lists of numbers are arrays, other lists only hstack and its like take"
            )
        case str():
            return f"the string {content[:40]!r}"
        case _:
            return f"{content!r}"


def similar(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: the names that come close, else those that there are."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:64], names, n=3)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; known are {', '.join(names[:30])}{', ...' if len(names) > 30 else ''}" if names else ""
