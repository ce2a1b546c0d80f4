"""Evaluation of syntax trees to CVXPY expressions; limits are checked at each node."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from typing import Any, TypeVar

import cvxpy as cp

from ..errors import DocumentError, FieldError
from ..settings import Settings
from .advice import function_advice, name_advice
from .atoms import ATOMS, CONSTRAINTS, Atom, product_coefficients
from .options import exponents
from .syntax import Binary, Call, Comparison, Index, Literal, Name, Negation, Node, Sequence, Sum, Transpose
from .values import Value, combine, describe, is_number, plain, suggestions, to_array

__all__ = ["Evaluator"]

_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<<": operator.lshift,
    ">>": operator.rshift,
}
_NUMBERS: Mapping[str, Callable[[float, float], float]] = {
    "*": operator.mul,
    "/": operator.truediv,
    "**": math.pow,
}

_ELEMENTWISE_COUNTERPARTS: Mapping[str, str] = {"max": "maximum", "min": "minimum"}
"""Elementwise functions that are often meant where a reduction is given several expressions."""

_MAX_APPROXIMATED = 64
"""Entries of an operand whose powers CVXPY approximates by fractions; the search takes cubic time or more."""

_MAX_MESSAGE = 300
"""Characters of an error message of CVXPY that a message quotes."""

_T = TypeVar("_T")


class Evaluator:
    """Evaluates the trees of one text.

    Args:
        scope: values by name; every content is a ``cp.Expression``.
        settings: limits on nodes, depth and sizes.
        where: JSON pointer of the text, for errors.
    """

    def __init__(self, scope: Mapping[str, Value], settings: Settings, where: str) -> None:
        self._scope = scope
        self._settings = settings
        self._where = where

    def expression(self, node: Node) -> Value:
        """Evaluate an expression; the content is a ``cp.Expression``, a constant for numbers and lists of numbers.

        Raises:
            DocumentError: the tree is invalid or exceeds a limit; the message has line and column.
        """
        return self._to_expression(node, self._evaluate(node))

    def constraint(self, node: Node) -> Value:
        """Evaluate a constraint; the content is a CVXPY constraint. Raises as ``expression`` does."""
        if isinstance(node, Comparison):
            return self._apply(node, _COMPARISONS[node.operator], [self.expression(child) for child in node.children])
        if isinstance(node, Call) and node.name in CONSTRAINTS:
            return self._call(node, CONSTRAINTS[node.name])
        expected = f"a constraint is a comparison with <=, >=, ==, << or >>, or one of {', '.join(CONSTRAINTS)}"
        if isinstance(node, Call) and node.name not in ATOMS:
            expected += self._function_advice(node.name)
        raise self._error(node, expected)

    def _error(self, node: Node, message: str) -> DocumentError:
        detail = f"{node.position}: {message}"
        return DocumentError(f"{self._where}: {detail}", [FieldError(self._where, detail)])

    def _evaluate(self, node: Node) -> Value:
        match node:
            case Literal():
                return Value(node.value)
            case Name():
                return self._look_up(node, node.name, self._scope, "name", name_advice)
            case Sequence():
                values = [self._evaluate(child) for child in node.children]
                return combine(values, values)
            case Sum():
                return self._sum(node)
            case Negation():
                return self._apply(node, operator.neg, [self.expression(node.children[0])])
            case Transpose():
                return self._apply(node, lambda x: x.T, [self.expression(node.children[0])])
            case Index():
                key = node.key if len(node.key) > 1 else node.key[0]
                return self._apply(node, lambda x: x[key], [self.expression(node.children[0])])
            case Binary():
                return self._binary(node)
            case Call() if node.name not in CONSTRAINTS:
                return self._call(node, self._look_up(node, node.name, ATOMS, "function", self._function_advice))
        raise self._error(node, "expected an expression, got a constraint")

    def _to_expression(self, node: Node, value: Value) -> Value:
        if isinstance(value.content, cp.Expression):
            return value
        array = to_array(value)
        if array is None:
            raise self._error(node, f"expected an expression, got {describe(value.content)}")
        return Value(cp.Constant(array), value.nodes, value.depth, array.size)

    def _sum(self, node: Sum) -> Value:
        values = [self._evaluate(child) for child in node.children]
        if all(is_number(value.content) for value in values):
            return self._folded(
                node, math.fsum(sign * value.content for sign, value in zip(node.signs, values, strict=True))
            )

        def add(first: cp.Expression, *rest: cp.Expression) -> cp.Expression:
            for sign, term in zip(node.signs[1:], rest, strict=True):
                first = first + term if sign > 0 else first - term
            return first

        return self._apply(node, add, list(map(self._to_expression, node.children, values)))

    def _binary(self, node: Binary) -> Value:
        values = [self._evaluate(child) for child in node.children]
        if node.operator in _NUMBERS and all(is_number(value.content) for value in values):
            return self._fold(node, *(float(value.content) for value in values))
        if node.operator == "**":
            base = self._to_expression(node.children[0], values[0])
            power = self._option(node.children[1], "the exponent", exponents, values[1])
            return self._apply(node, lambda x: cp.power(x, power.content), [base], [power])
        left, right = map(self._to_expression, node.children, values)
        if node.operator == "@":
            return self._apply(node, operator.matmul, [left, right], estimate=product_coefficients)
        if node.operator == "/":
            return self._apply(node, operator.truediv, [left, right])
        if not (left.content.is_scalar() or right.content.is_scalar()):
            shapes = f"{list(left.content.shape)} and {list(right.content.shape)}"
            raise self._error(node, f"'*' takes a scalar on one side, got {shapes}; write '@' or multiply(a, b)")
        return self._apply(node, cp.multiply, [left, right])

    def _fold(self, node: Binary, left: float, right: float) -> Value:
        try:
            return self._folded(node, _NUMBERS[node.operator](left, right))
        except (ArithmeticError, ValueError) as error:
            raise self._error(node, f"{left!r} {node.operator} {right!r}: {error}") from error

    def _folded(self, node: Node, number: float) -> Value:
        if not math.isfinite(number):
            raise self._error(node, "the number is too large for double precision")
        return Value(number)

    def _call(self, node: Call, atom: Atom) -> Value:
        positional = node.children[: len(node.children) - len(node.keywords)]
        named = dict(zip(node.keywords, node.children[len(positional) :], strict=True))
        rest: Items[Node] = ()
        widths: list[int] | None = None
        if atom.blocks:
            operands, widths = self._blocks(node, positional)
        else:
            operands, rest = _split(positional, atom)
        if len(operands) < atom.least:
            raise self._error(node, f"{node.name} takes at least {atom.least} expressions, got {len(operands)}")
        options = self._options(node, atom, rest, named)
        keywords = {name: option.content for name, option in options.items()}

        def function(*contents: cp.Expression) -> Any:
            if widths is not None:
                remaining = iter(contents)
                return atom.function([[next(remaining) for _ in range(width)] for width in widths], **keywords)
            return atom.function(list(contents), **keywords) if atom.listed else atom.function(*contents, **keywords)

        values = [self.expression(operand) for operand in operands]
        estimate = atom.coefficients
        if atom.approximated and keywords.get("approx", True):
            largest = max(value.content.size for value in values)
            if largest > _MAX_APPROXIMATED:
                raise self._error(
                    node,
                    f"{node.name} of {largest} entries exceeds the limit of {_MAX_APPROXIMATED}; pass approx=False",
                )
            estimate = _search_cost
        return self._apply(node, function, values, list(options.values()), estimate=estimate)

    def _blocks(self, node: Call, positional: Items[Node]) -> tuple[Items[Node], list[int]]:
        """Return the blocks of a block matrix by rows, and the number of blocks in each row."""
        rows = positional[0].children if len(positional) == 1 and isinstance(positional[0], Sequence) else ()
        if not rows or not all(isinstance(row, Sequence) and row.children for row in rows):
            raise self._error(node, f"{node.name} takes one list of rows, each a list of expressions")
        return [block for row in rows for block in row.children], [len(row.children) for row in rows]

    def _options(self, node: Call, atom: Atom, rest: Items[Node], named: Mapping[str, Node]) -> dict[str, Value]:
        if len(rest) > len(atom.options):
            names = f" and the options {', '.join(atom.options)}" if atom.options else ""
            raise self._error(node, f"too many arguments: {node.name} takes {atom.most} expressions{names}")
        if (
            rest
            and node.name in _ELEMENTWISE_COUNTERPARTS
            and isinstance(self._evaluate(rest[0]).content, cp.Expression)
        ):
            elementwise = _ELEMENTWISE_COUNTERPARTS[node.name]
            raise self._error(
                node, f"{node.name} reduces one expression; for several expressions write {elementwise}(...)"
            )
        given = dict(zip(atom.options, rest, strict=False))
        for name in named:
            self._look_up(node, name, atom.options, f"option of {node.name}")
            if name in given:
                raise self._error(node, f"{node.name} got {name} twice")
        given |= named
        missing = [name for name in list(atom.options)[: atom.required] if name not in given]
        if missing:
            raise self._error(node, f"{node.name} needs {', '.join(missing)}")
        options = {name: Value(default, nodes=0, depth=0) for name, default in atom.defaults.items()}
        for name, child in given.items():
            label = f"{name} of {node.name}"
            options[name] = self._option(child, label, atom.options[name], self._evaluate(child))
        return options

    def _option(self, node: Node, label: str, check: Callable[[Any], Any], value: Value) -> Value:
        try:
            return Value(check(plain(value)), value.nodes, value.depth, value.coefficients)
        except ValueError as error:
            raise self._error(node, f"{label}: {error}, got {describe(value.content)}") from error

    def _apply(
        self,
        node: Node,
        function: Callable[..., Any],
        operands: Items[Value],
        options: Items[Value] = (),
        *,
        estimate: Callable[..., int] | None = None,
    ) -> Value:
        """Apply a CVXPY function to its operands; check the limits, and add up nodes and coefficients."""
        total = combine(None, [*operands, *options])
        if total.nodes > self._settings.max_nodes:
            raise self._error(node, f"more than {self._settings.max_nodes} nodes, counting each use of a 'let'")
        if total.depth > self._settings.max_depth:
            raise self._error(node, f"nested deeper than {self._settings.max_depth}, counting the expressions of 'let'")
        contents = [operand.content for operand in operands]
        try:
            content = function(*contents)
        except Exception as error:  # CVXPY does not document which exceptions its atoms raise
            raise self._error(node, f"{_label(node)}: {_first_line(error)}") from error
        size = _size(content)
        if size > self._settings.max_expression_size:
            limit = self._settings.max_expression_size
            raise self._error(node, f"{_label(node)} has {size} entries; the limit is {limit}")
        own = size if estimate is None else estimate(*(operand.shape for operand in contents))
        if total.coefficients + own > self._settings.max_canonical_size:
            limit = self._settings.max_canonical_size
            raise self._error(node, f"the standard form would have more than {limit} coefficients")
        return Value(content, total.nodes, total.depth, total.coefficients + own)

    def _look_up(
        self, node: Node, name: str, known: Mapping[str, _T], kind: str, advice: Callable[[str], str] = lambda _: ""
    ) -> _T:
        if name not in known:
            raise self._error(node, f"unknown {kind} {name!r}{advice(name) or suggestions(name, known)}")
        return known[name]

    def _function_advice(self, name: str) -> str:
        """Return advice on an unknown function."""
        declared = f"; {name} is declared: write {name}[0] for an entry, {name} * y for a product"
        return declared if name in self._scope else function_advice(name)


def _split(positional: Items[Node], atom: Atom) -> tuple[Items[Node], Items[Node]]:
    """Split positional arguments into expressions and options.

    ``hstack([a, b])`` and ``hstack(a, b)`` are equal; if several arguments are lists, each is an array of numbers.
    """
    if not atom.listed:
        count = len(positional) if atom.most is None else atom.most
        return positional[:count], positional[count:]
    lists = [isinstance(argument, Sequence) for argument in positional]
    if lists[:1] == [True] and not any(lists[1:]):
        return positional[0].children, positional[1:]
    return positional, ()


def _search_cost(shape: tuple[int, ...]) -> int:
    """Return the cost of the search for fractions, in coefficients, so that it counts towards the document's limit."""
    return 4 * math.prod(shape) ** 3


def _label(node: Node) -> str:
    match node:
        case Call():
            return node.name
        case Binary() | Comparison():
            return f"'{node.operator}'"
        case Index():
            return "the index"
        case Sum():
            return "the sum"
        case _:
            return "the expression"


def _first_line(error: Exception) -> str:
    text = str(error.args[0] if error.args else error).strip()
    return text.split("\n")[0][:_MAX_MESSAGE] if text else f"CVXPY rejects the arguments ({type(error).__name__})"


def _size(content: Any) -> int:
    arguments = [content] if isinstance(content, cp.Expression) else content.args
    return sum(math.prod(int(length) for length in argument.shape) for argument in arguments)
