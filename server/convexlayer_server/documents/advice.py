"""Advice at the end of error messages, for notation of CVXPY, NumPy or mathematics that documents do not support."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import cvxpy as cp

from .atoms import ATOMS, CONSTRAINTS
from .syntax import Binary, Call, Literal, Node, Position, Transpose
from .values import suggestions

__all__ = ["character_advice", "convexity_advice", "function_advice", "name_advice", "token_advice"]

_MODULES = {"cp", "cvx", "cvxpy", "jnp", "math", "np", "numpy", "scipy", "sp", "torch"}
_NEARBY = 120
"""Characters before and after an error to examine."""

_DECLARED = "declare it in {group}, and write its name"
_ARRAY = "put the array in constants, and write its name"
_OBJECTIVE = "write the expression alone, as the document's {name}"
_INSTEAD: Mapping[str, str] = {
    **{name: _OBJECTIVE.format(name=name.lower()) for name in ("Minimize", "Maximize")},
    **{name: _DECLARED.format(group=f"{name.lower()}s") for name in ("Parameter", "Variable")},
    **dict.fromkeys(["Constant", "arange", "array", "eye", "full", "identity", "linspace", "ones", "zeros"], _ARRAY),
    "Problem": "the document itself is the problem, with minimize or maximize, and subject_to",
    "SOC": "write soc(t, x), as an entry of subject_to",
    "ExpCone": "write exp_cone(x, y, z), as an entry of subject_to",
    "PowCone3D": "write pow_cone(x, y, z, alpha), as an entry of subject_to",
    "PSD": "write X >> 0, as an entry of subject_to",
    "NonNeg": "write x >= 0, as an entry of subject_to",
    "NonPos": "write x <= 0, as an entry of subject_to",
    "Zero": "write x == 0, as an entry of subject_to",
    "dot": "write x @ y",
    "float": "write the number, or 'inf' for an option that accepts it",
    "inf": "write 'inf'",
    "inner": "write x @ y",
    "max_elemwise": "write maximum(x, y)",
    "max_entries": "write max(x)",
    "min_elemwise": "write minimum(x, y)",
    "min_entries": "write min(x)",
    "mul_elemwise": "write multiply(x, y)",
    "normNuc": "write norm_nuc(X)",
    "pi": "write the number",
    "sum_entries": "write sum(x)",
    "value": "write the name alone",
}
"""Replacements of unsupported names of CVXPY, of its older versions, and of NumPy."""

_CHARACTERS: Mapping[str, str] = {
    "<": "write <=",
    ">": "write >=",
    "≤": "write <=",
    "≥": "write >=",
    "⪯": "write <<",
    "⪰": "write >>",
    "\N{MINUS SIGN}": "write -",
    "·": "write * or @",
    "\N{MULTIPLICATION SIGN}": "write * or @",
    "²": "write ** 2",
    "^": "write ** for a power",
    "!": "a constraint with != is not convex",
    "&": "write each constraint as an entry of subject_to",
    "|": "a disjunction is not convex",
    "#": "comments are not supported",
    ";": "a text is a single expression or constraint",
    "{": "write lists with [ and ]",
    "\\": "a text may have several lines without it",
}
_QUADRATIC = "; the matrix of a quadratic form must be positive semidefinite: a constant, or a parameter declared PSD"
_WORDS: Mapping[str, str] = {
    "and": "write each constraint as an entry of subject_to",
    "or": "a disjunction is not convex",
    "not": "constraints cannot be negated",
    **dict.fromkeys(
        ["for", "in", "if", "else"], "loops and conditions are not supported; write the expression for whole arrays"
    ),
}


def function_advice(name: str) -> str:
    """Return advice on an unknown function."""
    if name in _INSTEAD:
        return f"; {_INSTEAD[name]}"
    folded = next((known for known in (*ATOMS, *CONSTRAINTS) if known == name.lower()), None)
    if folded is not None:
        return f"; write {folded}(...)"
    near = suggestions(name, ATOMS)
    if not near.startswith("; did") and callable(getattr(cp, name, None)):
        return "; this function of CVXPY is not supported here"
    return near


def name_advice(name: str) -> str:
    """Return advice on an undeclared name, or an empty string."""
    if name in _INSTEAD:
        return f"; {_INSTEAD[name]}"
    return f"; {name} is a function: write {name}(...)" if name in ATOMS else ""


def character_advice(text: str, at: int) -> str:
    """Return advice on an unexpected character, or an empty string.

    Args:
        text: the text.
        at: position of the character.
    """
    before, rest = text[max(0, at - _NEARBY) : at], text[at : at + _NEARBY]
    operand = re.search(r"[\w)\]]$", before)
    if rest[0] == ".":
        return _after_point(before, rest)
    if rest[0] == "'" and operand:
        return "; write .T for a transposed matrix"
    if rest[0] in "'\"":
        return "; a string must end with the quotation mark that it begins with, on the same line"
    number = re.match(r"(\d+(?:\.\d*)?)([A-Za-z_]\w*)", rest)
    if number:
        return f"; write {number[1]} * {number[2]}"
    if rest[0].isalpha():
        return "; names consist of the letters a to z, digits and _"
    return f"; {_CHARACTERS[rest[0]]}" if rest[0] in _CHARACTERS else ""


def _after_point(before: str, rest: str) -> str:
    if re.match(r"\.\s*[*/^]", rest):
        return "; write multiply(x, y), x / y or power(x, p) for elementwise operations"
    members = re.match(r"((?:\s*\.\s*[A-Za-z_]\w*)+)", rest)
    if members is None:
        return ""
    path, name = re.sub(r"\s", "", members[1]), re.findall(r"\w+", members[1])[-1]
    owner = re.search(r"([A-Za-z_]\w*)\s*$", before)
    known = name in ATOMS or name in CONSTRAINTS
    if owner and owner[1] in _MODULES:
        alone = f"write {name}(...), without {owner[1]}{path[: -len(name)]} before it" if known else ""
        return f"; {alone}" if known else f"; there is no {owner[1]}{path}{function_advice(name)}"
    if known:
        return f"; write {name}(...) around it"
    return f"; {_INSTEAD[name]}" if name in _INSTEAD else "; .T is the only attribute"


def token_advice(word: str, before: str, *, constraint: bool, operator: bool) -> str:
    """Return advice on an unexpected token, or an empty string.

    Args:
        word: the token.
        before: the text before it.
        constraint: whether the text is a constraint.
        operator: whether an operator would have been valid.
    """
    if word in ("<=", ">=", "==", "<<", ">>"):
        if not constraint:
            return "; comparisons belong in subject_to"
        listed = before.lstrip().startswith("[")
        return (
            "; write each constraint as an entry of subject_to, without brackets"
            if listed
            else "; split it into two constraints"
        )
    if word in _WORDS:
        return f"; {_WORDS[word]}"
    if word == "=" and constraint:
        return "; write <=, >= or =="
    if word == "," and operator and constraint:
        return "; write each constraint as an entry of subject_to"
    if re.search(r"\blambda\s+$", before[-_NEARBY:]):
        return "; functions cannot be defined; write the expression itself"
    if word[:1] in "'\"":
        return "; write .T for a transposed matrix" if operator and word[0] == "'" else ""
    if operator and re.match(r"[\w(]", word):
        return "; an operator such as * or @ is missing before it"
    return ""


def convexity_advice(node: Node) -> str:
    """Return advice on an expression that is convex, but not by CVXPY's rules; or an empty string."""
    stack = [node]
    while stack:
        current = stack.pop()
        match current:
            case Binary(operator="@", children=(Binary(operator="@", children=(left, _)), right)) if _same(left, right):
                return _QUADRATIC
            case Call(name="quad_form"):
                return _QUADRATIC
            case Binary(operator="@" | "*", children=(left, right)) if _same(left, right):
                return "; write sum_squares(x) for x.T @ x, and square(x) for x * x"
            case Call(name="sqrt", children=(Call(name="sum_squares" | "sum"),)):
                return "; write norm(x) for sqrt(sum_squares(x))"
            case Binary(operator="**", children=(Call(name="sum_squares" | "sum"), Literal(value=0.5))):
                return "; write norm(x) for sum_squares(x) ** 0.5"
        stack.extend(current.children)
    return ""


def _same(left: Node, right: Node) -> bool:
    """Whether two trees are equal, up to a transposition of the first."""
    return _without_positions(left.children[0] if isinstance(left, Transpose) else left) == _without_positions(right)


def _without_positions(node: Node) -> Node:
    return replace(node, position=Position(0, 0), children=tuple(map(_without_positions, node.children)))
