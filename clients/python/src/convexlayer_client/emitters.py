"""Emitters: how each CVXPY class is written in a problem document.

The server evaluates the text to the same CVXPY tree: shapes are exact, and promotions of scalars, which CVXPY inserts
itself, are omitted where it would insert them again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Protocol

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine import wraps
from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression
from cvxpy.atoms.affine.concatenate import Concatenate
from cvxpy.atoms.affine.diag import diag_mat, diag_vec
from cvxpy.atoms.affine.hstack import Hstack
from cvxpy.atoms.affine.index import index, special_index
from cvxpy.atoms.affine.promote import Promote
from cvxpy.atoms.affine.unary_operators import NegExpression
from cvxpy.atoms.affine.vstack import Vstack

from convexlayer_client.errors import UnsupportedExpressionError

__all__ = ["CONSTRAINTS", "EXPRESSIONS", "Level", "Text", "Writer"]


class Level(IntEnum):
    """Precedence of a text's outermost operator; an operand of lower precedence is put in parentheses."""

    SUM = 1
    PRODUCT = 2
    UNARY = 3
    ATOM = 4


@dataclass(frozen=True)
class Text:
    """The text of an expression, and the precedence of its outermost operator."""

    code: str
    level: Level = Level.ATOM

    def at(self, level: Level) -> str:
        """Return the text as an operand of at least a precedence."""
        return self.code if self.level >= level else f"({self.code})"


class Writer(Protocol):
    """The document writer, as emitters see it."""

    def write(self, expression: Any) -> Text:
        """Return the text of a CVXPY expression."""

    def array(self, value: Any) -> Text:
        """Return the text of a constant: a literal for a scalar; for an array, its name among the constants."""

    def share(self, text: Text) -> Text:
        """Put a text under "let", and return its name."""


Emitter = Callable[[Writer, Any], Text]
ConstraintEmitter = Callable[[Writer, Any], str]


# Calls: name(args..., more, keyword=value)


@dataclass(frozen=True)
class Keyword:
    """A keyword argument: its attribute of the CVXPY object, and the default, which is omitted."""

    name: str
    attribute: str
    default: Any = None


AXIS = Keyword("axis", "axis")
KEEPDIMS = Keyword("keepdims", "keepdims", False)
MAX_DENOM = Keyword("max_denom", "max_denom", 1024)
OFFSET = Keyword("k", "k", 0)


def literal(value: Any) -> str:
    """Return a number, string, Boolean or sequence as a literal of the grammar."""
    if value is None or isinstance(value, bool | np.bool_ | str):
        return json.dumps(value if value is None or isinstance(value, str) else bool(value))
    if isinstance(value, Iterable):
        return "[" + ", ".join(literal(entry) for entry in value) + "]"
    if isinstance(value, int | np.integer):
        return repr(int(value))
    return repr(float(value))


def _call(name: str, positional: Iterable[str], expression: Any, keywords: Iterable[Keyword]) -> Text:
    options = [
        f"{keyword.name}={literal(value)}"
        for keyword in keywords
        if (value := getattr(expression, keyword.attribute)) != keyword.default
    ]
    return Text(f"{name}({', '.join([*positional, *options])})")


def function(name: str, *keywords: Keyword) -> Emitter:
    """Writes ``name(argument, ..., keyword=value, ...)``."""

    def emit(writer: Writer, expression: Any) -> Text:
        return _call(name, [writer.write(argument).code for argument in expression.args], expression, keywords)

    return emit


def function_of_list(name: str, *keywords: Keyword) -> Emitter:
    """Writes ``name([argument, ...], keyword=value, ...)``."""

    def emit(writer: Writer, expression: Any) -> Text:
        arguments = ", ".join(writer.write(argument).code for argument in expression.args)
        return _call(name, [f"[{arguments}]"], expression, keywords)

    return emit


def function_with(name: str, attribute: str, *keywords: Keyword) -> Emitter:
    """Writes ``name(argument, ..., attribute, keyword=value, ...)``; the attribute may be an expression."""

    def emit(writer: Writer, expression: Any) -> Text:
        value = getattr(expression, attribute)
        last = writer.write(value).code if isinstance(value, cp.Expression) else literal(value)
        arguments = [writer.write(argument).code for argument in expression.args]
        return _call(name, [*arguments, last], expression, keywords)

    return emit


def exact(emit_approximate: Emitter) -> Emitter:
    """Write an atom with ``approx=false``: by power cones, not approximated by second-order cones."""

    def emit(writer: Writer, expression: Any) -> Text:
        return Text(emit_approximate(writer, expression).code[:-1] + ", approx=false)")

    return emit


# Operators

MAX_SUM_LENGTH = 4000
"""Characters from which a sum continues in another text; servers limit the length of one (20,000 by default)."""


def _bare(expression: Any) -> Any:
    """Return the scalar of a promotion that an elementwise operator inserts itself, else the expression."""
    return expression.args[0] if type(expression) is Promote and expression.size > 1 else expression


def _bare_pair(left: Any, right: Any) -> tuple[Any, Any]:
    """Omit the promotion of at most one operand; without both, the shape would be lost."""
    return (left, _bare(right)) if type(right) is Promote else (_bare(left), right)


def _sum(writer: Writer, expression: Any) -> Text:
    first, *others = expression.args[:2]
    if others:
        first, *others = _bare_pair(first, *others)
    code = writer.write(first).code
    for term in map(writer.write, [*others, *map(_bare, expression.args[2:])]):
        negative = term.level is Level.UNARY
        code += f" - {term.code[1:]}" if negative else f" + {term.at(Level.PRODUCT)}"
        if len(code) > MAX_SUM_LENGTH:
            code = writer.share(Text(code)).code
    return Text(code, Level.SUM)


def _negation(writer: Writer, expression: Any) -> Text:
    return Text(f"-{writer.write(expression.args[0]).at(Level.ATOM)}", Level.UNARY)


def _binary(operator: str, left: Text, right: Text) -> Text:
    return Text(f"{left.at(Level.PRODUCT)} {operator} {right.at(Level.ATOM)}", Level.PRODUCT)


def _matrix_product(writer: Writer, expression: Any) -> Text:
    return _binary("@", *map(writer.write, expression.args))


def _elementwise_product(writer: Writer, expression: Any) -> Text:
    operands = _bare_pair(*expression.args)
    left, right = map(writer.write, operands)
    if any(operand.shape == () for operand in operands):
        return _binary("*", left, right)
    return Text(f"multiply({left.code}, {right.code})")


def _quotient(writer: Writer, expression: Any) -> Text:
    return _binary("/", *map(writer.write, _bare_pair(*expression.args)))


def _transpose(writer: Writer, expression: Any) -> Text:
    argument = writer.write(expression.args[0])
    if expression.axes is None:
        return Text(f"{argument.at(Level.ATOM)}.T")
    return Text(f"transpose({argument.code}, axes={literal(expression.axes)})")


def _index(writer: Writer, expression: Any) -> Text:
    key = expression.get_data()[1]
    entries = key if isinstance(key, tuple) else (key,)
    return Text(f"{writer.write(expression.args[0]).at(Level.ATOM)}[{', '.join(map(_index_entry, entries))}]")


def _index_entry(entry: Any) -> str:
    if not isinstance(entry, slice):
        return str(int(entry))
    start, stop, step = ("" if part is None else str(int(part)) for part in (entry.start, entry.stop, entry.step))
    return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"


def _selection(writer: Writer, expression: Any) -> Text:
    """Write indexing by lists or masks: as a list of integers if possible, else by CVXPY's selection matrix."""
    argument = expression.args[0]
    key = expression.key
    if argument.ndim == 1 and isinstance(key, list | np.ndarray) and np.ndim(key) == 1:
        integers = np.arange(argument.size)[key]
        return Text(f"{writer.write(argument).at(Level.ATOM)}[{literal(integers)}]")
    positions = np.arange(argument.size).reshape(argument.shape, order="F")[expression.key]
    selection = np.eye(argument.size)[positions.ravel(order="F")]
    vector = f'reshape({writer.write(argument).code}, {literal((argument.size,))}, order="F")'
    return Text(f'reshape({writer.array(selection).code} @ {vector}, {literal(expression.shape)}, order="F")')


# Atoms that CVXPY stores in another form


def _sum_of_squares(writer: Writer, expression: Any) -> Text:
    numerator, denominator = expression.args
    if type(denominator) is cp.Constant and denominator.value == 1:
        return _call("sum_squares", [writer.write(numerator).code], expression, [AXIS, KEEPDIMS])
    return function("quad_over_lin", AXIS, KEEPDIMS)(writer, expression)


def _power(writer: Writer, expression: Any) -> Text:
    exponent = expression.p
    written = literal(exponent.value.item()) if type(exponent) is cp.Constant else writer.write(exponent).code
    return _call("power", [writer.write(expression.args[0]).code, written], expression, [MAX_DENOM])


def _geometric_mean(writer: Writer, expression: Any) -> Text:
    weights = np.zeros(len(expression._keep))
    weights[expression._keep] = expression.p
    arguments = [writer.write(expression.args[0]).code]
    if not (weights == 1).all():
        arguments.append(f"p={literal(weights)}")
    return _call("geo_mean", arguments, expression, [MAX_DENOM, AXIS, KEEPDIMS])


def _real_part(writer: Writer, expression: Any) -> Text:
    """Write the real part or conjugate of a real expression: the expression itself."""
    argument = expression.args[0]
    if not argument.is_real():
        raise UnsupportedExpressionError(f"{type(expression).__name__} of a complex expression: documents are real")
    return writer.write(argument)


_PNORM = function_with("pnorm", "original_p", AXIS, KEEPDIMS, MAX_DENOM)

EXPRESSIONS: Mapping[type, Emitter] = MappingProxyType(
    {
        # operators
        cp.AddExpression: _sum,
        NegExpression: _negation,
        MulExpression: _matrix_product,
        cp.multiply: _elementwise_product,
        DivExpression: _quotient,
        cp.transpose: _transpose,
        index: _index,
        special_index: _selection,
        # affine
        Promote: function_with("promote", "promoted_shape"),
        cp.broadcast_to: function_with("broadcast_to", "broadcast_shape"),
        cp.reshape: function_with("reshape", "shape", Keyword("order", "order")),
        cp.Sum: function("sum", AXIS, KEEPDIMS),
        cp.Trace: function("trace"),
        Hstack: function_of_list("hstack"),
        Vstack: function_of_list("vstack"),
        Concatenate: function_of_list("concatenate", Keyword("axis", "axis", 0)),
        cp.cumsum: function("cumsum", Keyword("axis", "axis", 0)),
        cp.kron: function("kron"),
        cp.conv: function("conv"),
        cp.convolve: function("convolve"),
        diag_vec: function("diag", OFFSET),
        diag_mat: function("diag", OFFSET),
        cp.upper_tri: function("upper_tri"),
        cp.conj: _real_part,
        cp.real: _real_part,
        # elementwise
        cp.abs: function("abs"),
        cp.exp: function("exp"),
        cp.log: function("log"),
        cp.log1p: function("log1p"),
        cp.xexp: function("xexp"),
        cp.logistic: function("logistic"),
        cp.entr: function("entr"),
        cp.kl_div: function("kl_div"),
        cp.rel_entr: function("rel_entr"),
        cp.huber: function_with("huber", "M"),
        cp.maximum: function("maximum"),
        cp.minimum: function("minimum"),
        cp.Power: exact(_power),
        cp.PowerApprox: _power,
        # of vectors
        cp.max: function("max", AXIS, KEEPDIMS),
        cp.min: function("min", AXIS, KEEPDIMS),
        cp.cummax: function("cummax", Keyword("axis", "axis", 0)),
        cp.norm1: function("norm1", AXIS, KEEPDIMS),
        cp.norm_inf: function("norm_inf", AXIS, KEEPDIMS),
        cp.Pnorm: exact(_PNORM),
        cp.PnormApprox: _PNORM,
        cp.GeoMean: exact(_geometric_mean),
        cp.GeoMeanApprox: _geometric_mean,
        cp.Prod: function("prod", AXIS, KEEPDIMS),
        cp.log_sum_exp: function("log_sum_exp", AXIS, KEEPDIMS),
        cp.sum_largest: function_with("sum_largest", "k", AXIS, KEEPDIMS),
        cp.dotsort: function("dotsort"),
        cp.QuadForm: function("quad_form"),
        cp.quad_over_lin: _sum_of_squares,
        # of matrices
        cp.lambda_max: function("lambda_max"),
        cp.lambda_sum_largest: function_with("lambda_sum_largest", "k"),
        cp.log_det: function("log_det"),
        cp.MatrixFrac: function("matrix_frac"),
        cp.normNuc: function("norm_nuc"),
        cp.sigma_max: function("sigma_max"),
        cp.tr_inv: function("tr_inv"),
        # wraps
        wraps.psd_wrap: function("psd_wrap"),
        wraps.symmetric_wrap: function("symmetric_wrap"),
        # of geometric programs
        cp.one_minus_pos: function("one_minus_pos"),
        cp.eye_minus_inv: function("eye_minus_inv"),
        cp.pf_eigenvalue: function("pf_eigenvalue"),
        cp.gmatmul: lambda writer, expression: Text(
            f"gmatmul({writer.write(expression.A).code}, {writer.write(expression.args[0]).code})"
        ),
    }
)


# Constraints


def _comparison(operator: str, right: str | None = None) -> ConstraintEmitter:
    """Writes ``left operator right``; ``right`` is by default the second argument."""

    def emit(writer: Writer, constraint: Any) -> str:
        left, *others = (writer.write(argument).code for argument in constraint.args)
        return f"{left} {operator} {right or others[0]}"

    return emit


def _call_of(emitter: Emitter) -> ConstraintEmitter:
    return lambda writer, constraint: emitter(writer, constraint).code


def _power_cone(writer: Writer, constraint: Any) -> str:
    alpha = constraint.alpha.value
    if alpha is None or np.ndim(alpha) > 1:
        raise UnsupportedExpressionError("in a problem document, alpha of PowCone3D is a number or a vector")
    arguments = [writer.write(argument).code for argument in constraint.args]
    exponents = alpha if np.ptp(alpha) else np.ravel(alpha)[0]
    return f"pow_cone({', '.join(arguments)}, alpha={literal(exponents)})"


CONSTRAINTS: Mapping[type, ConstraintEmitter] = MappingProxyType(
    {
        cp.constraints.Equality: _comparison("=="),
        cp.constraints.Inequality: _comparison("<="),
        cp.constraints.Zero: _comparison("==", "0"),
        cp.NonNeg: _comparison(">=", "0"),
        cp.NonPos: _comparison("<=", "0"),
        cp.constraints.PSD: _comparison(">>", "0"),
        cp.SOC: _call_of(function("soc", Keyword("axis", "axis", 0))),
        cp.constraints.ExpCone: _call_of(function("exp_cone")),
        cp.PowCone3D: _power_cone,
    }
)
