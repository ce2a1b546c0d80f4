"""Vectors of V doubles as values in compiled code, so that kernels read like scalar code.

``load(lanes, array, row)`` takes a row of a C-contiguous array (rows, V) into one LLVM vector; ``+ - * /``, negation,
comparisons, ``where`` and the functions here act on all lanes at once; ``store(array, row, x)`` puts it back. V is the
length of the tuple ``lanes``, so it is known when a kernel is compiled. A float stands for a vector of equal entries.

Written out because no loop over lanes in plain code becomes vector instructions: LLVM unrolls a loop of eight before it
looks at it, and then may not reorder loads and stores of arrays that could overlap.

Every operation is rounded by itself. Products and sums are not fused, which LLVM would do in vectors of one width and
not of another, if it were allowed to: so a lane's numbers depend neither on V nor on the processor.

A comparison with NaN is false, as everywhere; nothing here branches on a lane's value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

__all__ = [
    "absolute",
    "any_lane",
    "load",
    "maximum",
    "minimum",
    "pow2",
    "splat",
    "split",
    "spread",
    "sqrt",
    "store",
    "where",
]

_DOUBLE, _INDEX, _BITS = ir.DoubleType(), ir.IntType(64), ir.IntType(1)

# To its users an intrinsic lacks the first parameter that its definition has, which its type does not say.
_intrinsic: Any = intrinsic


class _Vector(types.Type):
    """V doubles."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Vector({count})")


class _Mask(types.Type):
    """V truth values."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Mask({count})")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(_DOUBLE, kind.count))


@register_model(_Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(_BITS, kind.count))


def _spread(builder: Any, value: Any, count: int) -> Any:
    """A double as a vector; a vector as it is."""
    if isinstance(value.type, ir.VectorType):
        return value
    vector = ir.VectorType(_DOUBLE, count)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), count), None)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), everywhere)


def _widest(left: Any, right: Any) -> Any:
    """The vector type of an operation on two operands, at least one of them a vector; None where there is none."""
    match left, right:
        case _Vector(), _Vector() if left is right or left == right:
            return left
        case _Vector(), types.Float():
            return left
        case types.Float(), _Vector():
            return right
    return None


def _operation(function: Callable[..., Any], generate: Callable[..., Any], *, compares: bool = False) -> None:
    """Teaches the compiler a binary operator on vectors, or on a vector and a float."""

    @type_callable(function)
    def typer(_: Any) -> Any:
        def typed(left: Any, right: Any) -> Any:
            kind = _widest(left, right)
            return _Mask(kind.count) if kind is not None and compares else kind

        return typed

    def implementation(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = signature.return_type.count
        return generate(builder, *(_spread(builder, argument, count) for argument in arguments))

    for kinds in ((_Vector, _Vector), (_Vector, types.Float), (types.Float, _Vector)):
        lower_builtin(function, *kinds)(implementation)


def _comparison(sign: str) -> Callable[..., Any]:
    return lambda builder, left, right: builder.fcmp_ordered(sign, left, right)


_operation(operator.add, lambda builder, left, right: builder.fadd(left, right))
_operation(operator.sub, lambda builder, left, right: builder.fsub(left, right))
_operation(operator.mul, lambda builder, left, right: builder.fmul(left, right))
_operation(operator.truediv, lambda builder, left, right: builder.fdiv(left, right))
for _function, _sign in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">=")):
    _operation(_function, _comparison(_sign), compares=True)


def _logic(function: Callable[..., Any], generate: Callable[..., Any]) -> None:
    """Teaches the compiler a binary operator on masks."""

    @type_callable(function)
    def typer(_: Any) -> Any:
        return lambda left, right: left if isinstance(left, _Mask) and left == right else None

    lower_builtin(function, _Mask, _Mask)(lambda _, builder, signature, arguments: generate(builder, *arguments))


_logic(operator.and_, lambda builder, left, right: builder.and_(left, right))
_logic(operator.or_, lambda builder, left, right: builder.or_(left, right))


def _unary(function: Callable[..., Any], accepted: type, generate: Callable[..., Any]) -> None:
    """Teaches the compiler a unary operator."""

    @type_callable(function)
    def typer(_: Any) -> Any:
        return lambda operand: operand if isinstance(operand, accepted) else None

    lower_builtin(function, accepted)(lambda _, builder, signature, arguments: generate(builder, *arguments))


_unary(operator.neg, _Vector, lambda builder, x: builder.fneg(x))
_unary(operator.invert, _Mask, lambda builder, x: builder.not_(x))


def _address(context: Any, builder: Any, kind: Any, array: Any, row: Any, count: int) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    start = builder.gep(data, [builder.mul(row, _INDEX(count))], inbounds=True)
    return builder.bitcast(start, ir.VectorType(_DOUBLE, count).as_pointer())


@_intrinsic
def load(_: Any, lanes: Any, array: Any, row: Any) -> Any:
    """Row ``row`` of an array (rows, V); of an array (V,), row 0."""
    count = lanes.count

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(_address(context, builder, signature.args[1], arguments[1], arguments[2], count))
        loaded.align = 8
        return loaded

    return _Vector(count)(lanes, array, types.int64), generate


@_intrinsic
def spread(_: Any, lanes: Any, array: Any, row: Any) -> Any:
    """Row ``row`` of an array (rows, V); the same number in every lane of an array (rows,) that all lanes share."""
    count = lanes.count

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[1]
        width = count if kind.ndim == 2 else 1
        loaded = builder.load(_address(context, builder, kind, arguments[1], arguments[2], width))
        loaded.align = 8
        return loaded if width == count else _spread(builder, builder.extract_element(loaded, _INDEX(0)), count)

    return _Vector(count)(lanes, array, types.int64), generate


@_intrinsic
def store(_: Any, array: Any, row: Any, x: Any) -> Any:
    """Array[row] <- x."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1], signature.args[2].count)
        stored = builder.store(arguments[2], address)
        stored.align = 8
        return context.get_dummy_value()

    return types.void(array, types.int64, x), generate


@_intrinsic
def splat(_: Any, lanes: Any, value: Any) -> Any:
    """A vector of equal entries."""
    count = lanes.count

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return _spread(builder, arguments[1], count)

    return _Vector(count)(lanes, types.float64), generate


@_intrinsic
def where(_: Any, mask: Any, yes: Any, no: Any) -> Any:
    """``yes`` in the lanes of the mask, ``no`` elsewhere."""
    count = mask.count

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        chosen, *values = arguments
        return builder.select(chosen, *(_spread(builder, value, count) for value in values))

    return _Vector(count)(mask, yes, no), generate


@_intrinsic
def any_lane(_: Any, mask: Any) -> Any:
    """Whether the mask holds in some lane."""

    def generate(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = ir.IntType(signature.args[0].count)
        return builder.icmp_unsigned("!=", builder.bitcast(arguments[0], bits), bits(0))

    return types.boolean(mask), generate


def _llvm(name: str, arity: int) -> Any:
    """An LLVM function on vectors."""

    def declared(builder: Any, arguments: Any) -> Any:
        vector = arguments[0].type
        kind = ir.FunctionType(vector, [vector] * arity)
        callee = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{vector.count}f64")
        return builder.call(callee, arguments)

    return declared


@_intrinsic
def sqrt(_: Any, x: Any) -> Any:
    """Square root."""
    return x(x), lambda _, builder, __, arguments: _llvm("sqrt", 1)(builder, arguments)


@_intrinsic
def absolute(_: Any, x: Any) -> Any:
    """Absolute value."""
    return x(x), lambda _, builder, __, arguments: _llvm("fabs", 1)(builder, arguments)


@_intrinsic
def split(_: Any, x: Any) -> Any:
    """(m, k) with x = m 2^k and sqrt(1/2) <= m < sqrt 2, for normal x > 0; k is integral but a double."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = signature.args[0].count
        integers = ir.VectorType(_INDEX, count)
        bits = builder.bitcast(arguments[0], integers)
        root_half = ir.Constant(integers, [0x3FE6A09E667F3BCD] * count)
        shift = ir.Constant(integers, [52] * count)
        exponent = builder.ashr(builder.sub(bits, root_half), shift)
        mantissa = builder.bitcast(builder.sub(bits, builder.shl(exponent, shift)), arguments[0].type)
        return context.make_tuple(
            builder, signature.return_type, (mantissa, builder.sitofp(exponent, arguments[0].type))
        )

    return types.Tuple((x, x))(x), generate


@_intrinsic
def pow2(_: Any, k: Any) -> Any:
    """2^k for integral k in -1022 ... 1023, given as doubles."""

    def generate(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = signature.args[0].count
        integers = ir.VectorType(_INDEX, count)
        # 1.5 2^52 + k has k in its lowest bits, without a conversion whose result would be undefined for NaN.
        magic = ir.Constant(arguments[0].type, [6755399441055744.0] * count)
        bits = builder.bitcast(builder.fadd(arguments[0], magic), integers)
        biased = builder.add(bits, ir.Constant(integers, [1023] * count))
        return builder.bitcast(builder.shl(biased, ir.Constant(integers, [52] * count)), arguments[0].type)

    return k(k), generate


@_intrinsic
def maximum(_: Any, x: Any, y: Any) -> Any:
    """The larger of the two; y where either is NaN."""
    return _choose(">", x, y)


@_intrinsic
def minimum(_: Any, x: Any, y: Any) -> Any:
    """The smaller of the two; y where either is NaN."""
    return _choose("<", x, y)


def _choose(sign: str, x: Any, y: Any) -> Any:
    kind = _widest(x, y)

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        left, right = (_spread(builder, argument, kind.count) for argument in arguments)
        return builder.select(builder.fcmp_ordered(sign, left, right), left, right)

    return kind(x, y), generate
