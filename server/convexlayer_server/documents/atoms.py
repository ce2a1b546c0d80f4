"""The functions that expressions may call: a static allowlist.

An atom takes expressions first, then options, by position (in the order of this table) or by keyword. Options have
CVXPY's names and defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import cvxpy as cp

from .options import (
    Option,
    axes,
    axis,
    boolean,
    choice,
    exponents,
    integer,
    integers,
    norm_order,
    number,
    number_or_expression,
    shape,
    weights,
)

__all__ = ["ATOMS", "CONSTRAINTS", "Atom", "product_coefficients"]


@dataclass(frozen=True)
class Atom:
    """One function of the grammar.

    Attributes:
        function: creates the CVXPY expression or constraint.
        least: minimum number of expressions.
        most: maximum number of expressions; None for any number.
        options: name and validator of each option, in order.
        required: number of leading options that must be given.
        defaults: values of options that are passed even if they are not given.
        listed: whether the function takes the expressions as one list; a call may have one list, too.
        blocks: whether the function takes a list of lists of expressions.
        approximated: whether CVXPY approximates powers by fractions unless ``approx=False`` is given: a search that
            runs when the atom is created, and whose time grows steeply with the entries of the operand.
        coefficients: estimates the coefficients of the standard form from the shapes of the expressions; by default the
            entries of the result.
    """

    function: Callable[..., Any]
    least: int = 1
    most: int | None = 1
    options: Mapping[str, Option] = field(default_factory=dict)
    required: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)
    listed: bool = False
    blocks: bool = False
    approximated: bool = False
    coefficients: Callable[..., int] | None = None


def product_coefficients(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Return the scalar multiplications of a matrix product: the coefficients of its standard form."""
    return math.prod(left) * (math.prod(right) // right[0] if len(right) > 1 else 1)


def _pairs(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Return one coefficient for each pair of entries."""
    return math.prod(left) * math.prod(right)


def _cubic(*shapes: tuple[int, ...]) -> int:
    """Return the coefficients of a matrix of the argument's size for each of its rows."""
    return max(math.prod(shape) * max(shape, default=1) for shape in shapes)


def _convolution(left: cp.Expression, right: cp.Expression) -> cp.Expression:
    """Return the convolution of two vectors, as a column if one of them is: CVXPY's deprecated ``conv``."""
    for operand in (left, right):
        if not operand.is_vector():
            raise ValueError("conv takes vectors")
    result = cp.convolve(cp.vec(left, order="F"), cp.vec(right, order="F"))
    return cp.reshape(result, (result.size, 1), order="F") if 2 in (left.ndim, right.ndim) else result


_REDUCTION: Mapping[str, Option] = {"axis": axes, "keepdims": boolean}
_ORDER: Mapping[str, Option] = {"order": choice("F", "C")}
_COLUMN_MAJOR = {"order": "F"}
_MAX_DENOMINATOR = 4096
"""Largest ``max_denom``: CVXPY's approximation of a power has about its logarithm of second-order cones."""

_APPROXIMATION: Mapping[str, Option] = {"max_denom": integer(1, _MAX_DENOMINATOR), "approx": boolean}
"""Options of atoms that CVXPY may approximate by second-order cones."""

_OFFSET = integer(-(10**4), 10**4)
"""A diagonal above (positive) or below the main one; an offset makes the matrix larger by as many rows."""

_DIFFERENCES = integer(0, 16)
"""How many times to take differences; each time nests the expression deeper."""

_COUNT = integer(0, 10**6)
"""A number of entries, such as the k of ``sum_largest``; the sizes of documents are limited further below."""

_ELEMENTWISE = {
    "abs": Atom(cp.abs),
    "entr": Atom(cp.entr),
    "exp": Atom(cp.exp),
    "huber": Atom(cp.huber, options={"M": number_or_expression}),
    "inv_pos": Atom(cp.inv_pos),
    "kl_div": Atom(cp.kl_div, 2, 2),
    "log": Atom(cp.log),
    "log1p": Atom(cp.log1p),
    "log_normcdf": Atom(cp.log_normcdf),
    "loggamma": Atom(cp.loggamma),
    "logistic": Atom(cp.logistic),
    "maximum": Atom(cp.maximum, 2, None),
    "minimum": Atom(cp.minimum, 2, None),
    "multiply": Atom(cp.multiply, 2, 2),
    "neg": Atom(cp.neg),
    "one_minus_pos": Atom(cp.one_minus_pos),
    "pos": Atom(cp.pos),
    "power": Atom(cp.power, options={"p": exponents, **_APPROXIMATION}, required=1),
    "rel_entr": Atom(cp.rel_entr, 2, 2),
    "scalene": Atom(cp.scalene, options={"alpha": number_or_expression, "beta": number_or_expression}, required=2),
    "sqrt": Atom(cp.sqrt),
    "square": Atom(cp.square),
    "diff_pos": Atom(cp.diff_pos, 2, 2),
    "xexp": Atom(cp.xexp),
}

_SCALAR_VALUED = {
    "cvar": Atom(cp.cvar, options={"beta": number}, required=1),
    "dotsort": Atom(cp.dotsort, 2, 2),
    "geo_mean": Atom(cp.geo_mean, options={"p": weights, **_APPROXIMATION, **_REDUCTION}, approximated=True),
    "harmonic_mean": Atom(cp.harmonic_mean),
    "inv_prod": Atom(cp.inv_prod, options={"approx": boolean}, approximated=True),
    "lambda_max": Atom(cp.lambda_max),
    "lambda_min": Atom(cp.lambda_min),
    "lambda_sum_largest": Atom(cp.lambda_sum_largest, options={"k": _COUNT}, required=1),
    "lambda_sum_smallest": Atom(cp.lambda_sum_smallest, options={"k": _COUNT}, required=1),
    "log_det": Atom(cp.log_det),
    "log_sum_exp": Atom(cp.log_sum_exp, options=_REDUCTION),
    "matrix_frac": Atom(cp.matrix_frac, 2, 2),
    "max": Atom(cp.max, options=_REDUCTION),
    "mean": Atom(cp.mean, options=_REDUCTION),
    "min": Atom(cp.min, options=_REDUCTION),
    "mixed_norm": Atom(cp.mixed_norm, options={"p": norm_order, "q": norm_order}),
    "norm": Atom(cp.norm, options={"p": norm_order, **_REDUCTION}),
    "norm1": Atom(cp.norm1, options=_REDUCTION),
    "norm2": Atom(cp.norm2, options={"axis": axes}),
    "norm_fro": Atom(lambda x: cp.norm(x, "fro")),
    "norm_inf": Atom(cp.norm_inf, options=_REDUCTION),
    "norm_nuc": Atom(cp.normNuc),
    "pf_eigenvalue": Atom(cp.pf_eigenvalue),
    "pnorm": Atom(cp.pnorm, options={"p": norm_order, **_REDUCTION, **_APPROXIMATION}),
    "prod": Atom(cp.prod, options=_REDUCTION),
    "ptp": Atom(cp.ptp, options=_REDUCTION),
    "quad_form": Atom(cp.quad_form, 2, 2),
    "quad_over_lin": Atom(cp.quad_over_lin, 2, 2, options=_REDUCTION),
    "scalar_product": Atom(cp.scalar_product, 2, 2),
    "sigma_max": Atom(cp.sigma_max),
    "std": Atom(cp.std, options={"axis": axis, "keepdims": boolean, "ddof": integer(0, 10**6)}),
    "sum": Atom(cp.sum, options=_REDUCTION),
    "sum_largest": Atom(cp.sum_largest, options={"k": number, **_REDUCTION}, required=1),
    "sum_smallest": Atom(cp.sum_smallest, options={"k": number, **_REDUCTION}, required=1),
    "sum_squares": Atom(cp.sum_squares, options=_REDUCTION),
    "tr_inv": Atom(cp.tr_inv, coefficients=_cubic),
    "trace": Atom(cp.trace),
    "tv": Atom(cp.tv, 1, None),
    "var": Atom(cp.var, options={**_REDUCTION, "ddof": integer(0, 10**6)}),
    "vdot": Atom(cp.vdot, 2, 2),
}

_ARRAY_VALUED = {
    "bmat": Atom(cp.bmat, blocks=True),
    "broadcast_to": Atom(cp.broadcast_to, options={"shape": shape}, required=1),
    "concatenate": Atom(cp.concatenate, 1, None, options={"axis": axis}, listed=True),
    "conv": Atom(_convolution, 2, 2, coefficients=_pairs),
    "convolve": Atom(cp.convolve, 2, 2, coefficients=_pairs),
    "cummax": Atom(cp.cummax, options={"axis": axis}),
    "cumprod": Atom(cp.cumprod, options={"axis": axis}),
    "cumsum": Atom(cp.cumsum, options={"axis": axis}),
    "diag": Atom(cp.diag, options={"k": _OFFSET}),
    "diff": Atom(cp.diff, options={"k": _DIFFERENCES, "axis": axis}),
    "eye_minus_inv": Atom(cp.eye_minus_inv, coefficients=_cubic),
    "gmatmul": Atom(cp.gmatmul, 2, 2, coefficients=product_coefficients),
    "hstack": Atom(cp.hstack, 1, None, listed=True),
    "kron": Atom(cp.kron, 2, 2),
    "matmul": Atom(cp.matmul, 2, 2, coefficients=product_coefficients),
    "moveaxis": Atom(cp.moveaxis, options={"source": axes, "destination": axes}, required=2),
    "outer": Atom(cp.outer, 2, 2),
    "partial_trace": Atom(cp.partial_trace, options={"dims": integers, "axis": axis}, required=1, coefficients=_cubic),
    "partial_transpose": Atom(
        cp.partial_transpose, options={"dims": integers, "axis": axis}, required=1, coefficients=_cubic
    ),
    "permute_dims": Atom(cp.permute_dims, options={"axes": integers}, required=1),
    "promote": Atom(cp.promote, options={"shape": shape}, required=1),
    "psd_wrap": Atom(cp.psd_wrap),
    "reshape": Atom(cp.reshape, options={"shape": shape, **_ORDER}, required=1, defaults=_COLUMN_MAJOR),
    "resolvent": Atom(cp.resolvent, options={"s": number_or_expression}, required=1, coefficients=_cubic),
    "skew_symmetric_wrap": Atom(cp.skew_symmetric_wrap),
    "squeeze": Atom(cp.squeeze, options={"axis": axes}),
    "stack": Atom(cp.stack, 1, None, options={"axis": axis}, listed=True),
    "swapaxes": Atom(cp.swapaxes, options={"axis1": axis, "axis2": axis}, required=2),
    "symmetric_wrap": Atom(cp.symmetric_wrap),
    "transpose": Atom(cp.transpose, options={"axes": integers}),
    "upper_tri": Atom(cp.upper_tri),
    "vec": Atom(cp.vec, options=_ORDER, defaults=_COLUMN_MAJOR),
    "vec_to_upper_tri": Atom(cp.vec_to_upper_tri, options={"strict": boolean}),
    "vstack": Atom(cp.vstack, 1, None, listed=True),
}

ATOMS: Mapping[str, Atom] = MappingProxyType(_ELEMENTWISE | _SCALAR_VALUED | _ARRAY_VALUED)
"""Atoms by name."""

CONSTRAINTS: Mapping[str, Atom] = MappingProxyType(
    {
        "soc": Atom(cp.SOC, 2, 2, options={"axis": integer(0, 1)}),
        "exp_cone": Atom(cp.ExpCone, 3, 3),
        "pow_cone": Atom(cp.PowCone3D, 3, 3, options={"alpha": weights}, required=1),
    }
)
"""Constraint functions by name."""
