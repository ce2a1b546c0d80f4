"""SIMD vectors of V doubles as Numba values, so that kernels read like scalar code.

``load(lanes, array, row)`` loads a row of a C-contiguous array (rows, V) into an LLVM vector; ``+ - * /``, negation,
comparisons, ``where`` and the functions of this module act on all lanes at once; ``store(array, row, x)`` stores it. V
is the length of the tuple ``lanes``, so that it is known at compile time. A float operand is broadcast to all lanes.

Explicit vectors are needed because LLVM does not vectorise inner loops over lanes: it unrolls a loop of eight first,
and then may not reorder loads and stores of arrays that could overlap.

Every operation is rounded separately. Products and sums are not contracted to fused multiply-adds, which LLVM would do
for some vector widths only; so the result of a lane depends neither on V nor on the processor.

A comparison with NaN is false. No function branches on the value of a lane.
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
    "broadcast",
    "broadcast_load",
    "load",
    "maximum",
    "minimum",
    "pow2",
    "split",
    "sqrt",
    "store",
    "where",
]

_DOUBLE, _INDEX, _BITS = ir.DoubleType(), ir.IntType(64), ir.IntType(1)

# Callers of an intrinsic omit the first parameter of its definition (the typing context), which its type does not show.
_intrinsic: Any = intrinsic


class _Vector(types.Type):
    """V doubles."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Vector({count})")


class _Mask(types.Type):
    """V booleans."""

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
    """Broadcast a double to a vector; return a vector unchanged."""
    if isinstance(value.type, ir.VectorType):
        return value
    vector = ir.VectorType(_DOUBLE, count)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), count), None)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), everywhere)


def _widest(left: Any, right: Any) -> Any:
    """Result type of an operation on two operands, at least one of them a vector; None if it is not defined."""
    match left, right:
        case _Vector(), _Vector() if left is right or left == right:
            return left
        case _Vector(), types.Float():
            return left
        case types.Float(), _Vector():
            return right
    return None


def _operation(function: Callable[..., Any], generate: Callable[..., Any], *, compares: bool = False) -> None:
    """Register a binary operator on vectors, or on a vector and a float, with Numba."""

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
    """Register a binary operator on masks with Numba."""

    @type_callable(function)
    def typer(_: Any) -> Any:
        return lambda left, right: left if isinstance(left, _Mask) and left == right else None

    lower_builtin(function, _Mask, _Mask)(lambda _, builder, signature, arguments: generate(builder, *arguments))


_logic(operator.and_, lambda builder, left, right: builder.and_(left, right))
_logic(operator.or_, lambda builder, left, right: builder.or_(left, right))


def _unary(function: Callable[..., Any], accepted: type, generate: Callable[..., Any]) -> None:
    """Register a unary operator with Numba."""

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
    """Load row ``row`` of an array (rows, V), or row 0 of an array (V,)."""
    count = lanes.count

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(_address(context, builder, signature.args[1], arguments[1], arguments[2], count))
        loaded.align = 8
        return loaded

    return _Vector(count)(lanes, array, types.int64), generate


@_intrinsic
def broadcast_load(_: Any, lanes: Any, array: Any, row: Any) -> Any:
    """Load row ``row`` of an array (rows, V), or broadcast entry ``row`` of an array (rows,) to all lanes."""
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
    """Store x in row ``row`` of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1], signature.args[2].count)
        stored = builder.store(arguments[2], address)
        stored.align = 8
        return context.get_dummy_value()

    return types.void(array, types.int64, x), generate


@_intrinsic
def broadcast(_: Any, lanes: Any, value: Any) -> Any:
    """Broadcast a float to a vector."""
    count = lanes.count

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return _spread(builder, arguments[1], count)

    return _Vector(count)(lanes, types.float64), generate


@_intrinsic
def where(_: Any, mask: Any, yes: Any, no: Any) -> Any:
    """Select ``yes`` in the lanes of the mask, ``no`` elsewhere."""
    count = mask.count

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        chosen, *values = arguments
        return builder.select(chosen, *(_spread(builder, value, count) for value in values))

    return _Vector(count)(mask, yes, no), generate


@_intrinsic
def any_lane(_: Any, mask: Any) -> Any:
    """Whether the mask is true in any lane."""

    def generate(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = ir.IntType(signature.args[0].count)
        return builder.icmp_unsigned("!=", builder.bitcast(arguments[0], bits), bits(0))

    return types.boolean(mask), generate


def _llvm(name: str, arity: int) -> Any:
    """Call an LLVM intrinsic on vectors."""

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
    """(m, k) with x = m 2^k and sqrt(1/2) <= m < sqrt 2, for normal x > 0; k is an integer stored as a double."""

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
    """2^k for integers k in -1022 ... 1023, stored as doubles."""

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
    """The larger of x and y; y if either is NaN."""
    return _choose(">", x, y)


@_intrinsic
def minimum(_: Any, x: Any, y: Any) -> Any:
    """The smaller of x and y; y if either is NaN."""
    return _choose("<", x, y)


def _choose(sign: str, x: Any, y: Any) -> Any:
    kind = _widest(x, y)

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        left, right = (_spread(builder, argument, kind.count) for argument in arguments)
        return builder.select(builder.fcmp_ordered(sign, left, right), left, right)

    return kind(x, y), generate
