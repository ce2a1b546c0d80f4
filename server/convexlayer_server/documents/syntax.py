"""Syntax trees of expressions, with the position of each node in its text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = [
    "Binary",
    "Call",
    "Comparison",
    "Index",
    "Literal",
    "Name",
    "Negation",
    "Node",
    "Position",
    "Sequence",
    "Sum",
    "Transpose",
    "names_in",
]


@dataclass(frozen=True)
class Position:
    """The position of a node in its text, counted from one."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


@dataclass(frozen=True)
class Node:
    """A node of an expression.

    Attributes:
        position: position of the operator, name or bracket that creates the node.
        children: the operands, in order.
        depth: height of the tree.
    """

    position: Position
    children: tuple[Node, ...] = ()
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", 1 + max((child.depth for child in self.children), default=0))


@dataclass(frozen=True)
class Literal(Node):
    """A number, string, Boolean or None."""

    value: float | int | str | bool | None = None


@dataclass(frozen=True)
class Name(Node):
    """A parameter, variable, constant or shared subexpression."""

    name: str = ""


@dataclass(frozen=True)
class Sequence(Node):
    """``[a, b, ...]``: an array of numbers, or a list of expressions for atoms such as ``hstack``."""


@dataclass(frozen=True)
class Sum(Node):
    """``a + b - c``, with a sign (+1 or -1) for each child. A sum of any length is one node, so it is not deep."""

    signs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Negation(Node):
    """``-a``."""


@dataclass(frozen=True)
class Binary(Node):
    """``a * b``, ``a @ b``, ``a / b`` or ``a ** b``."""

    operator: str = ""


@dataclass(frozen=True)
class Transpose(Node):
    """``a.T``."""


@dataclass(frozen=True)
class Index(Node):
    """``a[key]``."""

    key: tuple[int | slice | list[int], ...] = ()


@dataclass(frozen=True)
class Call(Node):
    """``name(a, b, option=c)``; the last ``len(keywords)`` children are the keyword arguments."""

    name: str = ""
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison(Node):
    """``a <= b``, and likewise ``>=``, ``==``, ``<<`` and ``>>`` (matrix inequalities)."""

    operator: str = ""


def names_in(node: Node) -> Iterator[str]:
    """Yield every name that the expression refers to, with repetitions."""
    stack = [node]
    while stack:
        current = stack.pop()
        if isinstance(current, Name):
            yield current.name
        stack.extend(current.children)
