from __future__ import annotations

import pytest

from convexlayer_server.documents.grammar import Grammar
from convexlayer_server.documents.syntax import (
    Binary,
    Call,
    Comparison,
    Index,
    Literal,
    Name,
    Negation,
    Node,
    Sequence,
    Sum,
    Transpose,
    names_in,
)
from convexlayer_server.errors import DocumentError
from convexlayer_server.settings import Settings

GRAMMAR = Grammar(Settings())


def shown(node: Node) -> str:
    """The tree with all brackets."""
    parts = [shown(child) for child in node.children]
    match node:
        case Literal():
            return repr(node.value)
        case Name():
            return node.name
        case Sum():
            terms = zip(node.signs, parts, strict=True)
            return "(" + " ".join(("+" if sign > 0 else "-") + part for sign, part in terms) + ")"
        case Negation():
            return f"(-{parts[0]})"
        case Binary() | Comparison():
            return f"({parts[0]} {node.operator} {parts[1]})"
        case Transpose():
            return f"{parts[0]}.T"
        case Index():
            return f"{parts[0]}[{', '.join(map(str, node.key))}]"
        case Sequence():
            return f"[{', '.join(parts)}]"
        case Call():
            first = len(parts) - len(node.keywords)
            named = [f"{keyword}={part}" for keyword, part in zip(node.keywords, parts[first:], strict=True)]
            return f"{node.name}({', '.join(parts[:first] + named)})"
    raise AssertionError(node)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a + b * c", "(+a +(b * c))"),
        ("a - b - c", "(+a -b -c)"),
        ("a - (b - c)", "(+a -(+b -c))"),
        ("a * b @ c / d", "(((a * b) @ c) / d)"),
        ("-a * b", "((-a) * b)"),
        ("-a ** 2", "(-(a ** 2))"),
        ("a ** -2", "(a ** -2)"),
        ("a ** b ** c", "(a ** (b ** c))"),
        ("a + -b", "(+a +(-b))"),
        ("--a", "(-(-a))"),
        ("+a", "a"),
        ("-2", "-2"),
        ("1.5e-3 * .5", "(0.0015 * 0.5)"),
        ("x.T @ P @ x", "((x.T @ P) @ x)"),
        ("x[0].T ** 2", "(x[0].T ** 2)"),
        ("x[-1]", "x[-1]"),
        ("x[1:3]", "x[slice(1, 3, None)]"),
        ("x[::-2]", "x[slice(None, None, -2)]"),
        ("X[:, 0]", "X[slice(None, None, None), 0]"),
        ("X[[0, -1], 1:]", "X[[0, -1], slice(1, None, None)]"),
        ("f(x)[0]", "f(x)[0]"),
        ("f()", "f()"),
        ("f(a, [1, 2], p='fro', axis=None, keep=True,)", "f(a, [1, 2], p='fro', axis=None, keep=True)"),
        ("[[1, -2], [3, 4],]", "[[1, -2], [3, 4]]"),
        ("norm + 1", "(+norm +1)"),
        ("truest * Nonet", "(truest * Nonet)"),
        ("\n a\n\t+ b ", "(+a +b)"),
    ],
)
def test_precedence(text: str, tree: str) -> None:
    assert shown(GRAMMAR.expression(text, "")) == tree


@pytest.mark.parametrize("operator", ["<=", ">=", "==", "<<", ">>"])
def test_comparisons(operator: str) -> None:
    assert shown(GRAMMAR.constraint(f"a + b {operator} -c", "")) == f"((+a +b) {operator} (-c))"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <= b <= c", "line 1, column 8: unexpected '<='; expected the end; split it into two constraints"),
        ("a < b", "line 1, column 3: unexpected character '<'; write <="),
        ("a > b", "line 1, column 3: unexpected character '>'; write >="),
        ("a +\n + * b", "line 2, column 4: unexpected '*'"),
        ("a +", "line 1, column 4: the text ends"),
        ("a\n  [", "line 2, column 4: the text ends"),
        ("x[1.5]", "line 1, column 3: an index must be an integer"),
        ("x[::0]", "line 1, column 3: the step of a slice must not be zero"),
        ("x[y]", "line 1, column 3: unexpected 'y'"),
        ("f(p=1, a)", "line 1, column 1: f(...) has a positional argument after a keyword"),
        ("1 + f(p=1, p=2)", "line 1, column 5: f(...) repeats a keyword"),
        ("2x", "line 1, column 1: unexpected character '2'"),
        ("x.y", "line 1, column 2: unexpected character '.'"),
        ("x.Ty", "line 1, column 2: unexpected character '.'"),
        ("x = 1", "line 1, column 3: unexpected '='"),
        ("lambda: 1", "line 1, column 7: unexpected ':'"),
        ("'abc", "line 1, column 1: unexpected character"),
        ("9" * 41, "line 1, column 1: a number has 41 characters; the limit is 40"),
        ("1e999", "line 1, column 1: the number 1e999 is too large"),
        ("", "line 1, column 1: the text ends"),
        ("\ud800", "line 1, column 1: unexpected character"),
        ("x" + ".T" * 70, "nested deeper than 64"),
        ("-" * 70 + "x", "nested deeper than 64"),
        ("f(" * 5000 + "x" + ")" * 5000, "nested deeper than 64"),
        ("(" * 9000, "line 1, column 9001: the text ends"),
        ("a + " * 6000, "has 24000 characters; the limit is 20000"),
    ],
)
def test_errors_have_a_position(text: str, message: str) -> None:
    with pytest.raises(DocumentError) as error:
        GRAMMAR.constraint(text, "/subject_to/3")
    (field,) = error.value.errors
    assert field.pointer == "/subject_to/3"
    assert message in field.detail


def test_brackets_and_sums_do_not_add_depth() -> None:
    assert GRAMMAR.expression("(" * 5000 + "x" + ")" * 5000, "").depth == 1
    assert GRAMMAR.expression(" + ".join(["x"] * 5000), "").depth == 2


def test_names() -> None:
    assert sorted(names_in(GRAMMAR.expression("f(a, p=b)[0] + [a, c]", ""))) == ["a", "a", "b", "c"]


def test_comparisons_are_not_expressions() -> None:
    with pytest.raises(DocumentError, match="comparisons belong in subject_to"):
        GRAMMAR.expression("a <= b", "/minimize")
