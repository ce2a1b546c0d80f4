"""Problem documents from CVXPY problems.

If ``emitters`` supports every class in a problem, its document uses the server's grammar. Otherwise, if the library
``convexlayer`` is installed, the problem is canonicalised here and becomes a cone program document.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import cvxpy as cp
import numpy as np
from scipy import sparse

from convexlayer_client.arrays import encode
from convexlayer_client.emitters import CONSTRAINTS, EXPRESSIONS, Level, Text, literal
from convexlayer_client.errors import UnsupportedExpressionError

__all__ = ["ProblemDocument", "to_document"]

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_RESERVED = re.compile(r"true|false|none|null|True|False|None|objective|c\d+")  # literals, and names of outputs
_FLAGS = ("nonneg", "nonpos", "pos", "neg", "symmetric", "PSD", "NSD", "diag")
_OTHER_ATTRIBUTES = ("complex", "imag", "hermitian", "boolean", "integer", "sparsity")


@final
@dataclass(frozen=True)
class ProblemDocument:
    """The document of a problem, and the names of its parts there.

    Attributes:
        body: The document as plain JSON.
        parameters: Names of the parameters, in the given order.
        outputs: Names of the variables and dual variables, in the given order.
    """

    body: dict[str, Any]
    parameters: tuple[str, ...]
    outputs: tuple[str, ...]


def to_document(
    problem: cp.Problem, parameters: Sequence[cp.Parameter], variables: Sequence[cp.Variable], *, gp: bool = False
) -> ProblemDocument:
    """Express a CVXPY problem as a document.

    Args:
        problem: The problem.
        parameters: All parameters of the problem, in the order of a layer's arguments.
        variables: Variables of the problem, and dual variables of its constraints (``constraint.dual_variables[0]``).
        gp: Whether the problem is a geometric program.

    Raises:
        UnsupportedExpressionError: The grammar does not support the problem, and ``convexlayer``, which could
            canonicalise it here, is not installed.
        ValueError: ``parameters`` lacks one of the problem, or ``variables`` has one of another problem.
    """
    missing = [parameter.name() for parameter in problem.parameters() if not _holds(parameters, parameter)]
    if missing:
        raise ValueError(
            f"parameters must list every parameter of the problem; these are missing: {', '.join(missing)}"
        )
    names = _names([*parameters], "p", set())
    names |= _names(problem.variables(), "x", set(names.values()))
    outputs = _output_names(problem, names)
    unknown = [variable.name() for variable in variables if id(variable) not in outputs]
    if unknown:
        raise ValueError(
            f"variables must be of the problem, or duals of its constraints; these are not: {', '.join(unknown)}"
        )
    try:
        body = _expression_document(problem, parameters, names, gp)
    except UnsupportedExpressionError as error:
        return _cone_program(problem, parameters, variables, gp, error)
    return ProblemDocument(
        body=body,
        parameters=tuple(names[id(parameter)] for parameter in parameters),
        outputs=tuple(outputs[id(variable)] for variable in variables),
    )


def _holds(leaves: Iterable[Any], leaf: Any) -> bool:
    return any(leaf is other for other in leaves)  # ``in`` would compare expressions


def _names(leaves: Sequence[Any], prefix: str, taken: set[str]) -> dict[int, str]:
    """Return the user's name of each leaf if it is valid and unique, else the prefix and a number.

    CVXPY numbers its default names within the process; numbers within the problem give equal problems equal IDs.
    """
    given = Counter(leaf.name() for leaf in leaves)
    names: dict[int, str] = {}
    for leaf in leaves:
        name = leaf.name()
        default = name in (f"var{leaf.id}", f"param{leaf.id}")
        valid = _IDENTIFIER.fullmatch(name) and not _RESERVED.fullmatch(name)
        if valid and not default and given[name] == 1 and name not in taken:
            names[id(leaf)] = name
    fresh = _fresh(prefix, taken | set(names.values()))
    return {id(leaf): names.get(id(leaf)) or next(fresh) for leaf in leaves}


def _fresh(prefix: str, taken: set[str]) -> Iterator[str]:
    """Yield ``prefix0``, ``prefix1``, ..., but for taken names."""
    number = 0
    while True:
        name = f"{prefix}{number}"
        if name not in taken:
            yield name
        number += 1


def _output_names(problem: cp.Problem, names: dict[int, str]) -> dict[int, str]:
    """Return the names of outputs by id; the duals of constraint i are ``ci``, or ``ci.0``, ``ci.1``, ..."""
    outputs = {id(variable): names[id(variable)] for variable in problem.variables()}
    for position, constraint in enumerate(problem.constraints):
        duals = constraint.dual_variables
        for number, dual in enumerate(duals):
            outputs[id(dual)] = f"c{position}" if len(duals) == 1 else f"c{position}.{number}"
    return outputs


def _expression_document(
    problem: cp.Problem, parameters: Sequence[cp.Parameter], names: dict[int, str], gp: bool
) -> dict[str, Any]:
    variables = problem.variables()
    roots = [problem.objective.args[0], *(argument for con in problem.constraints for argument in con.args)]
    writer = _DocumentWriter(names, _shared(roots))
    sense = "maximize" if type(problem.objective) is cp.Maximize else "minimize"
    objective = writer.write(problem.objective.args[0]).code
    constraints = [_constraint(writer, constraint) for constraint in problem.constraints]
    constraints += [bound for variable in variables for bound in _bounds(writer, variable)]
    body: dict[str, Any] = {
        "kind": "expression",
        "parameters": {names[id(parameter)]: _leaf(parameter) for parameter in parameters},
        "variables": {names[id(variable)]: _leaf(variable) for variable in variables},
        "constants": writer.constants,
        "let": writer.let,
        sense: objective,
        "subject_to": constraints,
    }
    return body | {"gp": True} if gp else body


def _leaf(leaf: Any) -> dict[str, Any]:
    unsupported = [name for name in _OTHER_ATTRIBUTES if leaf.attributes[name]]
    if unsupported:
        raise UnsupportedExpressionError(f"{leaf.name()} is {', '.join(unsupported)}; documents have no such attribute")
    return {"shape": list(leaf.shape)} | {flag: True for flag in _FLAGS if leaf.attributes[flag]}


def _constraint(writer: _DocumentWriter, constraint: Any) -> str:
    emitter = CONSTRAINTS.get(type(constraint))
    if emitter is None:
        raise UnsupportedExpressionError(f"problem documents have no constraint {type(constraint).__name__}")
    return emitter(writer, constraint)


def _bounds(writer: _DocumentWriter, variable: Any) -> Iterator[str]:
    """Write the bounds of a variable as constraints; they follow all others, which so keep their positions."""
    for bound, comparison in zip(variable.bounds or (), (">=", "<="), strict=False):
        if isinstance(bound, cp.Expression):
            yield f"{writer.write(variable).code} {comparison} {writer.write(bound).code}"
        elif np.isfinite(bound).all():
            yield f"{writer.write(variable).code} {comparison} {writer.array(bound).code}"
        elif np.isfinite(bound).any():
            raise UnsupportedExpressionError(
                f"{variable.name()} is bounded in some entries only; state them one by one"
            )


def _shared(roots: Iterable[Any]) -> set[int]:
    """Return the ids of the subexpressions, other than leaves, that are used more than once."""
    seen: set[int] = set()
    shared: set[int] = set()
    stack = list(roots)
    while stack:
        expression = stack.pop()
        if id(expression) in seen:
            if expression.args:
                shared.add(id(expression))
            continue
        seen.add(id(expression))
        stack.extend(expression.args)
    return shared


@final
class _DocumentWriter:
    """Writes expressions, and collects their constants and shared subexpressions.

    Args:
        names: Names of parameters and variables by id.
        shared: Ids of the expressions to put under "let".
    """

    def __init__(self, names: dict[int, str], shared: set[int]) -> None:
        self.constants: dict[str, Any] = {}
        self.let: dict[str, str] = {}
        self._names = dict(names)
        self._shared = shared
        self._constant_names = _fresh("k", set(names.values()))
        self._let_names = _fresh("e", set(names.values()))
        self._arrays: dict[tuple[tuple[int, ...], bytes], str] = {}

    def write(self, expression: Any) -> Text:
        """Return the text of a CVXPY expression.

        Raises:
            UnsupportedExpressionError: There is no emitter for a class in it.
        """
        if id(expression) in self._names:
            return Text(self._names[id(expression)])
        if type(expression) is cp.Constant:
            return self.array(expression.value)
        emitter = EXPRESSIONS.get(type(expression))
        if emitter is None:
            raise UnsupportedExpressionError(f"problem documents have no {type(expression).__name__}")
        text = emitter(self, expression)
        if id(expression) in self._shared:
            text = self.share(text)
            self._names[id(expression)] = text.code
        return text

    def share(self, text: Text) -> Text:
        """Put a text under "let", and return its name."""
        name = next(self._let_names)
        self.let[name] = text.code
        return Text(name)

    def array(self, value: Any) -> Text:
        """Return a literal for a scalar; for an array, its name among the constants, shared by equal arrays.

        Raises:
            UnsupportedExpressionError: The value is complex or not finite.
        """
        dense = value.toarray() if sparse.issparse(value) else np.asarray(value)
        if np.iscomplexobj(dense) or not np.isfinite(dense).all():
            raise UnsupportedExpressionError(
                "a constant is complex or not finite; problem documents are real and finite"
            )
        if dense.ndim == 0:
            code = literal(dense.item())
            return Text(code, Level.UNARY if code.startswith("-") else Level.ATOM)
        dense = dense.astype(np.float64)
        key = (dense.shape, dense.tobytes())
        if key not in self._arrays:
            self._arrays[key] = next(self._constant_names)
            self.constants[self._arrays[key]] = encode(dense)
        return Text(self._arrays[key])


def _cone_program(
    problem: cp.Problem,
    parameters: Sequence[cp.Parameter],
    variables: Sequence[cp.Variable],
    gp: bool,
    reason: UnsupportedExpressionError,
) -> ProblemDocument:
    """Canonicalise the problem here; only this function uses the library."""
    try:
        from convexlayer import canonicalize
    except ImportError:
        raise UnsupportedExpressionError(
            f"{reason}. With convexlayer installed, the problem is canonicalised here and sent as a cone program."
        ) from reason
    program = canonicalize(problem, list(parameters), list(variables), gp=gp, presolve=False)
    return ProblemDocument(
        body={"kind": "cone_program", "program": program.to_document()},
        parameters=tuple(parameter.name for parameter in program.parameters),
        outputs=tuple(output.name for output in program.outputs),
    )
