"""The grammar of expressions and constraints.

    precedence, loosest first:   <= >= == << >>    + -    * @ /    unary -    **    x[i]  x.T  f(x)

It is a subset of Python's: no attribute but ``.T``, no statements, no comprehensions, and no names but those that the
document declares. The LALR(1) parser builds the tree bottom up with an explicit stack, so it never recurses.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from ..errors import DocumentError
from ..settings import Settings
from .advice import character_advice, token_advice
from .syntax import Binary, Call, Comparison, Index, Literal, Name, Negation, Node, Position, Sequence, Sum, Transpose

__all__ = ["RESERVED", "Grammar"]

RESERVED = frozenset({"True", "true", "False", "false", "None", "none", "null"})
"""Words that cannot be names."""

_GRAMMAR = r"""
?constraint: expression
    | expression COMPARISON expression          -> comparison

?expression: product
    | product (SIGN product)+                   -> sum

?product: unary
    | product (STAR | FACTOR) unary             -> binary

?unary: power
    | SIGN unary                                -> signed

?power: postfix
    | postfix POWER unary                       -> binary

?postfix: primary
    | postfix TRANSPOSE                         -> transpose
    | postfix LEFT_BRACKET key ("," key)* "]"   -> index

?primary: NUMBER                                -> number
    | STRING                                    -> string
    | TRUE                                      -> true
    | FALSE                                     -> false
    | NONE                                      -> none
    | NAME                                      -> name
    | NAME "(" (argument ("," argument)*)? ","? ")"                     -> call
    | LEFT_BRACKET (expression ("," expression)*)? ","? "]"             -> sequence
    | "(" expression ")"

argument: [NAME "="] expression

?key: integer
    | [integer] COLON [integer] [":" [integer]] -> slice
    | LEFT_BRACKET integer ("," integer)* ","? "]"                      -> integers

integer: SIGN? NUMBER

COMPARISON: "<=" | ">=" | "==" | "<<" | ">>"
SIGN: "+" | "-"
STAR: "*"
FACTOR: "@" | "/"
POWER: "**"
TRANSPOSE: /\.[ \t]*T(?![A-Za-z0-9_])/
COLON: ":"
LEFT_BRACKET: "["
NUMBER: /(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?(?![A-Za-z0-9_])/
STRING: /"[^"\\\n]*"|'[^'\\\n]*'/
TRUE.2: /(True|true)(?![A-Za-z0-9_])/
FALSE.2: /(False|false)(?![A-Za-z0-9_])/
NONE.2: /(None|none|null)(?![A-Za-z0-9_])/
NAME: /[A-Za-z_][A-Za-z0-9_]*/
%ignore /[ \t\r\n]+/
"""

_MAX_NUMBER = 40
"""Characters of a number at most; more digits do not change its double."""

_MAX_ALTERNATIVES = 7
"""Expected tokens that a message lists; more would not help."""

_SPELLING = {
    "COMPARISON": "a comparison",
    "SIGN": "'+' or '-'",
    "STAR": "'*'",
    "FACTOR": "'@' or '/'",
    "POWER": "'**'",
    "TRANSPOSE": "'.T'",
    "COLON": "':'",
    "LEFT_BRACKET": "'['",
    "RSQB": "']'",
    "LPAR": "'('",
    "RPAR": "')'",
    "COMMA": "','",
    "EQUAL": "'='",
    "NUMBER": "a number",
    "STRING": "a string",
    "NAME": "a name",
    "$END": "the end",
}


class Grammar:
    """The parser of expressions and constraints.

    Args:
        settings: ``max_text_length`` and ``max_depth``.
    """

    def __init__(self, settings: Settings) -> None:
        self._max_length = settings.max_text_length
        self._parser = Lark(
            _GRAMMAR,
            parser="lalr",
            start=["expression", "constraint"],
            transformer=_Builder(settings.max_depth),
            maybe_placeholders=True,
        )

    def expression(self, text: str, where: str) -> Node:
        """Parse an expression.

        Args:
            text: the expression.
            where: JSON pointer of the text, for errors.

        Raises:
            DocumentError: the text is not an expression; the message has line and column.
        """
        return self._parse(text, where, "expression")

    def constraint(self, text: str, where: str) -> Node:
        """Parse a constraint: a comparison, or the call of a constraint function. Arguments as for ``expression``."""
        return self._parse(text, where, "constraint")

    def _parse(self, text: str, where: str, start: str) -> Node:
        if len(text) > self._max_length:
            message = f"has {len(text)} characters; the limit is {self._max_length}; share parts with 'let'"
            raise DocumentError.at(where, message)
        try:
            tree: Any = self._parser.parse(text, start=start)
        except UnexpectedInput as error:
            raise DocumentError.at(where, _explain(error, text, start)) from error
        except _TreeError as error:
            raise DocumentError.at(where, str(error)) from error
        if not isinstance(tree, Node):
            raise DocumentError.at(where, "expected an expression")
        return tree


class _TreeError(Exception):
    """The text matches the grammar, but is invalid."""


@v_args(inline=True)
class _Builder(Transformer[Token, Any]):
    """The actions of the grammar; each creates one node, bottom up."""

    def __init__(self, max_depth: int) -> None:
        super().__init__()
        self._max_depth = max_depth

    def number(self, token: Token) -> Node:
        return Literal(_position(token), value=_number(token))

    def string(self, token: Token) -> Node:
        return Literal(_position(token), value=str(token)[1:-1])

    def true(self, token: Token) -> Node:
        return Literal(_position(token), value=True)

    def false(self, token: Token) -> Node:
        return Literal(_position(token), value=False)

    def none(self, token: Token) -> Node:
        return Literal(_position(token), value=None)

    def name(self, token: Token) -> Node:
        return Name(_position(token), name=str(token))

    def sequence(self, bracket: Token, *items: Node) -> Node:
        return self._bounded(Sequence(_position(bracket), items))

    def sum(self, first: Node, *rest: Any) -> Node:
        signs = (1, *(-1 if token == "-" else 1 for token in rest[::2]))
        return self._bounded(Sum(_position(rest[0]), (first, *rest[1::2]), signs=signs))

    def signed(self, sign: Token, operand: Node) -> Node:
        if sign == "+":
            return operand
        if isinstance(operand, Literal) and type(operand.value) in (int, float):
            return Literal(operand.position, value=-operand.value)  # type: ignore[operator]  # a number, by the test above
        return self._bounded(Negation(_position(sign), (operand,)))

    def binary(self, left: Node, operator: Token, right: Node) -> Node:
        return self._bounded(Binary(_position(operator), (left, right), operator=str(operator)))

    def comparison(self, left: Node, operator: Token, right: Node) -> Node:
        return Comparison(_position(operator), (left, right), operator=str(operator))

    def transpose(self, operand: Node, token: Token) -> Node:
        return self._bounded(Transpose(_position(token), (operand,)))

    def index(self, operand: Node, bracket: Token, *key: int | slice | list[int]) -> Node:
        return self._bounded(Index(_position(bracket), (operand,), key=key))

    def argument(self, keyword: Token | None, value: Node) -> tuple[Token | None, Node]:
        return keyword, value

    def call(self, name: Token, *arguments: tuple[Token | None, Node]) -> Node:
        keywords = [str(keyword) for keyword, _ in arguments if keyword is not None]
        if any(keyword is not None for keyword, _ in arguments[: len(arguments) - len(keywords)]):
            raise _TreeError(f"{_position(name)}: {name}(...) has a positional argument after a keyword")
        if len(set(keywords)) < len(keywords):
            raise _TreeError(f"{_position(name)}: {name}(...) repeats a keyword")
        values = tuple(value for _, value in arguments)
        return self._bounded(Call(_position(name), values, name=str(name), keywords=tuple(keywords)))

    def integer(self, *tokens: Token) -> int:
        value = _number(tokens[-1])
        if not isinstance(value, int):
            raise _TreeError(f"{_position(tokens[-1])}: an index must be an integer, got {tokens[-1]}")
        return -value if tokens[0] == "-" else value

    def integers(self, bracket: Token, *values: int) -> list[int]:
        return list(values)

    def slice(self, start: int | None, colon: Token, stop: int | None, step: int | None = None) -> slice:
        if step == 0:
            raise _TreeError(f"{_position(colon)}: the step of a slice must not be zero")
        return slice(start, stop, step)

    def _bounded(self, node: Node) -> Node:
        if node.depth > self._max_depth:
            raise _TreeError(f"{node.position}: nested deeper than {self._max_depth}; use fewer brackets")
        return node


def _position(token: Token) -> Position:
    return Position(token.line or 1, token.column or 1)


def _number(token: Token) -> int | float:
    if len(token) > _MAX_NUMBER:
        raise _TreeError(f"{_position(token)}: a number has {len(token)} characters; the limit is {_MAX_NUMBER}")
    value = int(token) if token.isdigit() else float(token)
    if value in (float("inf"), float("-inf")):
        raise _TreeError(f"{_position(token)}: the number {token} is too large for double precision")
    return value


def _explain(error: UnexpectedInput, text: str, start: str) -> str:
    """Describe a syntax error in words."""
    if isinstance(error, UnexpectedToken):
        at_end = error.token.type == "$END"
        found = "the text ends" if at_end else f"unexpected {str(error.token)[:_MAX_NUMBER]!r}"
        position = _end(text) if at_end else _position(error.token)
        advice = "" if at_end else _advice(error, text, start)
        return f"{position}: {found}{_alternatives(error.expected)}{advice}"
    if isinstance(error, UnexpectedCharacters):
        advice = character_advice(text, error.pos_in_stream or 0)
        return f"{Position(error.line, error.column)}: unexpected character {error.char!r}{advice}"
    return "not an expression"


def _advice(error: UnexpectedToken, text: str, start: str) -> str:
    operator = not error.expected.isdisjoint({"STAR", "$END"})
    before = text[: error.token.start_pos]
    return token_advice(str(error.token), before, constraint=start == "constraint", operator=operator)


def _end(text: str) -> Position:
    lines = text.split("\n")
    return Position(len(lines), len(lines[-1]) + 1)


def _alternatives(terminals: AbstractSet[str]) -> str:
    words = sorted({_SPELLING[terminal] for terminal in terminals if terminal in _SPELLING})
    if not 0 < len(words) <= _MAX_ALTERNATIVES:
        return ""
    return "; expected " + (", ".join(words[:-1]) + " or " if len(words) > 1 else "") + words[-1]
